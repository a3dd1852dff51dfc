"""A release of the mean of a run's checkpoints."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModel

from data_tools.errors import UserError
from pretrain.__main__ import main
from pretrain.checkpoint.folder import complete
from pretrain.checkpoint.weights import read_weights, saved_shapes
from pretrain.engine.saving import without_advice
from pretrain.release.average import average_run, average_weights, load_average
from tests.processes import QUIET
from tests.tiny_run import SMALL

SETTINGS = (*QUIET, "train.global_batch_size=8", "train.steps=6", "checkpoint.every=2", "checkpoint.keep=3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["mae_digits", *SMALL, *SETTINGS, "optimizer.lr=0.01", f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy to write into."""
    return shutil.copytree(trained, tmp_path / "run")


def weights(folder, step):
    """By name, every tensor of a checkpoint's roles, as NumPy has it."""
    checkpoint = folder / "checkpoints" / f"step_{step:08d}"
    kinds = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    roles = {}
    for name, shape in saved_shapes(checkpoint).items():
        role, _, key = name.partition(".")
        roles.setdefault(role, {})[key] = torch.zeros(shape, dtype=kinds[f"roles.{name}"].properties.dtype)
    read_weights(checkpoint, roles)
    return {f"{role}.{key}": t.numpy() for role, own in roles.items() for key, t in own.items()}


def test_the_release_is_numpys_mean_and_opens_in_transformers(run):
    trained = average_run(run, last=3)
    assert trained.averaged == (2, 4, 6)
    steps = [weights(run, step) for step in trained.averaged]
    for role, module in trained.objective.roles.items():
        for name, tensor in module.state_dict().items():
            expected = np.mean([step[f"{role}.{name}"].astype(np.float64) for step in steps], axis=0)
            np.testing.assert_array_equal(tensor.numpy(), expected.astype(np.float32), err_msg=name)
    moved = [not np.array_equal(steps[0][name], steps[2][name]) for name in steps[0]]
    assert sum(moved) > len(moved) / 2, "the mean of equal weights would prove nothing"
    model = AutoModel.from_pretrained(run / "average")
    own = trained.encoder.model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items() if name in own)
    card = (run / "average" / "README.md").read_text()
    assert "the mean of 3 checkpoints, those of steps 2, 4, 6." in card


def test_steps_may_be_named_and_the_command_says_where_it_is(run, tmp_path, capfd):
    assert main(["average", str(run), "--steps", "6,2", "--out", str(tmp_path / "mean")]) == 0
    assert f"released: {tmp_path / 'mean'}, the mean of steps 2, 6 (" in capfd.readouterr().out
    assert "those of steps 2, 6." in (tmp_path / "mean" / "README.md").read_text()
    assert not (run / "average").exists()


class Counting(nn.Module):
    """A weight, and a buffer that counts."""

    def __init__(self, *, size: int, value: float, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), value))
        self.register_buffer("count", torch.tensor(count))


def save_checkpoints(folder, *modules):
    for i, module in enumerate(modules):
        with without_advice():
            dcp.save(
                {"roles": {"net": module.state_dict()}}, checkpoint_id=folder / f"step_{i}", no_dist=True
            )
    return [folder / f"step_{i}" for i in range(len(modules))]


def test_what_counts_is_the_newests(tmp_path):
    modules = [Counting(size=3, value=float(i), count=10 * i) for i in (1, 2, 6)]
    averaged = Counting(size=3, value=0.0, count=0)
    average_weights(SimpleNamespace(roles={"net": averaged}), save_checkpoints(tmp_path, *modules))
    assert averaged.weight.tolist() == [3.0] * 3
    assert averaged.count.item() == 60


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    modules = [Counting(size=size, value=1.0, count=1) for size in (3, 4)]
    averaged = SimpleNamespace(roles={"net": Counting(size=3, value=0.0, count=0)})
    with pytest.raises(
        UserError, match=r"step_1: net\.weight is \[4\], and \[3\] by the run's settings.*--steps"
    ):
        average_weights(averaged, save_checkpoints(tmp_path, *modules))


def test_fewer_checkpoints_than_asked_for_are_told_with_what_keeps_more(run):
    with pytest.raises(
        UserError,
        match=r"has 3 checkpoints \(of steps 2, 4, 6\), not 5 to average; --last 3 .*checkpoint\.keep=5 \(now 3\)",
    ):
        average_run(run, last=5)
    with pytest.raises(UserError, match=r"--steps 3: .* has 3 checkpoints \(of steps 2, 4, 6\)"):
        average_run(run, last=0, steps=[2, 3])
    with pytest.raises(UserError, match="one checkpoint has no mean"):
        average_run(run, last=1)
    assert not (run / "average").exists()


def test_a_broken_checkpoint_is_passed_over_or_refused_where_it_was_named(run):
    newest = complete(run / "checkpoints")[-1]
    progress = newest / "progress.json"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | {"step": 7}))
    assert load_average(run, last=2).averaged == (2, 4)
    with pytest.raises(UserError, match="--steps 6: the checkpoint is broken"):
        load_average(run, last=0, steps=[4, 6])
