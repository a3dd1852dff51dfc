"""A step of a run is run again: the same batch, the same weights, the same numbers."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
from safetensors.torch import load_file

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.run.replay import describe, replay
from pretrain.run.run import run
from pretrain.tracking.metrics import read_metrics
from tests.processes import QUIET, losses
from tests.processes import run as run_command
from tests.tiny_run import SMALL

SHORT = (*SMALL, "train.global_batch_size=16", "train.steps=8", "checkpoint.every=3", "checkpoint.keep=9",
         "tracking.log_every=1", *QUIET,
         "tracking.progress=false", "train.micro_batch_size=4")  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run(load_config("mae_digits", [*SHORT, f"run_dir={folder}"])[0])
    return folder


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "replay" not in path.parts
    }


@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_replayed_step_has_the_logged_values_to_the_last_bit(finished, step):
    before = digests(finished)
    found = replay(finished, step, [])
    assert found["values"] == found["logged"]
    assert set(found["values"]) == {"loss", "grad_norm"}
    assert digests(finished) == before, "a replay changes nothing of the run"
    assert "as logged" in describe(found)


def test_it_names_the_samples_and_saves_the_batch(finished):
    found = replay(finished, 5, [])
    line = next(v for v in read_metrics(finished) if v["kind"] == "train" and v["step"] == 5)
    assert found["position"] + 16 == line["position"]
    (samples,) = found["samples"].values()
    assert len({key for key, _ in samples}) == 16
    assert [loss for _, loss in samples] == sorted((loss for _, loss in samples), reverse=True)
    total = math.sqrt(sum(norm**2 for norm in found["gradients"]["train"].values()))
    assert total == pytest.approx(found["values"]["grad_norm"], rel=1e-5)
    batch = load_file(finished / "replay" / "step_5_rank_0.safetensors")
    assert batch["0.image"].shape[0] == 4
    assert len({name.split(".")[0] for name in batch}) == 4
    assert json.loads((finished / "replay" / "step_5.json").read_text())["values"] == found["values"]


def test_what_cannot_be_replayed_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match="has steps 1 to 8"):
        replay(finished, 9, [])
    with pytest.raises(UserError, match=r"optimizer.lr=1: would make it another run"):
        replay(finished, 1, ["optimizer.lr=1"])
    with pytest.raises(UserError, match="not a run folder"):
        replay(tmp_path, 1, [])


def test_a_run_stuck_at_a_poisoned_sample_names_its_batch_and_a_replay_names_the_sample(finished, tmp_path):
    (samples,) = replay(finished, 6, [])["samples"].values()
    key = samples[7][0]
    folder = tmp_path / "run"
    poisoned = f"objective={{name: 'tests.pretrain.poisoned:Poisoned', key: '{key}', decoder_hidden_size: 8, " \
               "decoder_num_hidden_layers: 1, decoder_num_attention_heads: 2}"  # fmt: skip
    settings = [*(s for s in SHORT if not s.startswith("objective")), poisoned, "train.max_skipped_steps=1"]
    with pytest.raises(UserError, match=r"step 6: the gradient was not finite.*replay .* --step 6"):
        run(load_config("mae_digits", [*settings, f"run_dir={folder}"])[0])
    (event,) = [v for v in read_metrics(folder) if v["kind"] == "aborted"]
    assert len(event["keys"]) == 16
    assert key in event["keys"]
    found = replay(folder, 6, [])
    assert found["skipped_updates"] == 1
    (samples,) = found["samples"].values()
    assert samples[0][0] == key
    assert math.isnan(samples[0][1])
    assert all(math.isfinite(loss) for _, loss in samples[1:])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_ranks_replay_together(tmp_path, engine):
    folder = tmp_path / "run"
    run_command("pretrain", ["mae_digits", *SHORT, f"run_dir={folder}", f"engine={engine}"], processes=2)
    result = run_command("pretrain", ["replay", str(folder), "--step", "5"], processes=2)
    assert "as logged" in result.stdout
    assert "logged then" not in result.stdout
    found = json.loads((folder / "replay" / "step_5.json").read_text())
    assert found["values"]["loss"] == losses(folder)[5]["loss"]
    assert len({key for key, _ in found["samples"]["train"]}) == 16
    assert found["gradients"]["train"]
    assert (folder / "replay" / "step_5_rank_1.safetensors").is_file()
