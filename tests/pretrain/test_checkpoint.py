"""Checkpoints: valid last and at once, and never trusted unseen."""

from __future__ import annotations

import threading

import pytest
import torch

from data_tools.errors import UserError
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.folder import complete, find_fault, newest_valid
from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.sections import TrainConfig
from pretrain.encoders.image.vit import ViTEncoder, ViTEncoderConfig
from pretrain.engine import base
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.objectives.mae import MAE, MAEConfig
from pretrain.optim.build import build_optimizer
from pretrain.optim.config import OptimizerConfig

TINY = ViTEncoderConfig(
    image_size=8, patch_size=4, num_channels=1, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    image_mean=(0.5,), image_std=(0.5,),
)  # fmt: skip


def tiny_engine(seed):
    torch.manual_seed(seed)
    decoder = MAEConfig(decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    objective = MAE(decoder, ViTEncoder(TINY), dataset=None)
    engine = DDPEngine(TrainConfig(), World())
    engine.prepare(objective, lambda _, roles: build_optimizer(roles, OptimizerConfig()))
    return engine


def train(engine, steps):
    generator = torch.Generator().manual_seed(0)
    phase = engine.objective.phases()[0]
    for _ in range(steps):
        image = torch.randint(0, 255, (4, 1, 8, 8), dtype=torch.uint8, generator=generator)
        order = torch.stack([torch.randperm(4, generator=generator) for _ in range(4)])
        engine.backward(phase, {"image": image, "order": order}, 0.1, last=True)
        engine.step(phase, 1.0, max_norm=1.0)


def tensors(state, prefix=""):
    flat = {}
    for key, value in state.items():
        flat |= tensors(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return {key: value for key, value in flat.items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def saved(tmp_path):
    """Checkpoints at steps 1, 2 and 3 of a tiny run."""
    engine = tiny_engine(seed=0)
    checkpoints = Checkpoints(tmp_path, engine, CheckpointConfig(asynchronous=False, keep=3))
    for step in (1, 2, 3):
        train(engine, steps=1)
        checkpoints.save(step, {"stream": {"position": step}})
    return checkpoints


def test_another_process_gets_back_every_weight_and_moment(saved):
    other = tiny_engine(seed=1)
    progress, broken = Checkpoints(saved.folder, other, CheckpointConfig(asynchronous=False, keep=3)).resume()
    assert progress == {"step": 3, "stream": {"position": 3}}
    assert broken == []
    before, after = tensors(saved.engine.state_dict()), tensors(other.state_dict())
    assert before.keys() == after.keys()
    assert any(key.endswith("exp_avg_sq") and value.abs().sum() > 0 for key, value in after.items())
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_only_the_newest_are_kept(saved):
    saved.config = CheckpointConfig(asynchronous=False, keep=2)
    train(saved.engine, steps=1)
    saved.save(4, {"stream": {}})
    assert [path.name for path in complete(saved.folder)] == ["step_00000003", "step_00000004"]


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_remove])
@pytest.mark.parametrize("name", ["*.distcp", ".metadata", "progress.json", "manifest.json"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(saved, damage, name):
    newest = complete(saved.folder)[-1]
    damage(next(newest.glob(name)))
    path, broken = newest_valid(saved.folder)
    assert path == complete(saved.folder)[-2]
    assert len(broken) == 1
    assert newest.name in broken[0]


def test_no_valid_checkpoint_left_is_an_error_that_says_so(saved):
    for path in complete(saved.folder):
        damage_truncate(path / "progress.json")
    with pytest.raises(UserError, match="no valid checkpoint"):
        saved.resume()


def test_an_unfinished_checkpoint_is_never_taken(saved):
    newest = complete(saved.folder)[-1]
    newest.rename(saved.folder / ".step_00000003.partial")
    path, broken = newest_valid(saved.folder)
    assert path is not None and path.name == "step_00000002"
    assert broken == []
    assert find_fault(path) is None


def test_permanent_checkpoints_stay_beside_the_newest(tmp_path):
    engine = tiny_engine(seed=0)
    config = CheckpointConfig(asynchronous=False, every=1, keep=2, permanent_every=3)
    checkpoints = Checkpoints(tmp_path, engine, config)
    for step in range(1, 9):
        checkpoints.save(step, {"stream": {}})
    assert [path.name for path in complete(tmp_path)] == [f"step_{n:08d}" for n in (3, 6, 7, 8)]


def test_what_is_written_in_the_background_is_the_moment_it_was_asked_for(tmp_path, monkeypatch):
    engine, control = tiny_engine(seed=0), tiny_engine(seed=0)
    slowly, go_on = threading.Event(), threading.Event()
    write = base.save_state

    def save_state(*arguments):
        slowly.set()
        assert go_on.wait(60)
        return write(*arguments)

    monkeypatch.setattr(base, "save_state", save_state)
    checkpoints = Checkpoints(tmp_path, engine, CheckpointConfig())
    train(engine, steps=2)
    checkpoints.save(2, {"stream": {}})
    assert slowly.wait(60)
    train(engine, steps=1)  # meanwhile
    assert complete(tmp_path) == []
    go_on.set()
    assert checkpoints.finish() == []
    train(control, steps=2)
    expected = tensors(control.state_dict())
    other = tiny_engine(seed=1)
    Checkpoints(tmp_path, other, CheckpointConfig()).resume()
    found = tensors(other.state_dict())
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    assert not all(torch.equal(value, found[key]) for key, value in tensors(engine.state_dict()).items())


def test_a_checkpoint_follows_the_one_before_it(tmp_path):
    engine = tiny_engine(seed=0)
    checkpoints = Checkpoints(tmp_path, engine, CheckpointConfig(every=1))
    for step in (1, 2, 3):
        train(engine, steps=1)
        checkpoints.save(step, {"stream": {"position": step}})
    checkpoints.finish()
    assert [path.name for path in complete(tmp_path)] == ["step_00000002", "step_00000003"]
    assert all(find_fault(path) is None for path in complete(tmp_path))
