"""A dry run finds what would end the run, and leaves nothing behind."""

from __future__ import annotations

import pytest

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.run.dry_run import DryRun, dry_run
from tests.processes import run
from tests.tiny_run import SMALL, make_run

QUICK = (*SMALL, "train.global_batch_size=16", "probe.train_samples=20", "probe.test_samples=20")


def test_two_steps_are_taken_and_nothing_is_written(tmp_path):
    config, _ = load_config("mae_digits", [*QUICK, f"run_dir={tmp_path / 'run'}"])
    found = dry_run(config)
    assert not any(tmp_path.iterdir())
    assert len(found.seconds) == 2
    assert found.values["loss"] > 0
    _, objective = make_run(tmp_path / "other")
    parameters = sum(p.numel() for role in objective.roles.values() for p in role.parameters())
    assert found.parameters == parameters
    assert found.checkpoint_bytes == pytest.approx(3 * 4 * parameters, rel=0.2), (
        "weights and Adam's two averages"
    )
    assert "nothing was written" in found.describe(config)


def test_it_says_when_checkpoints_will_not_fit():
    config, _ = load_config("mae_digits", [])
    found = DryRun(1, (1.0, 0.5), {"loss": 1.0}, 10, checkpoint_bytes=100, free_bytes=250, peak_bytes=2**30)
    assert "3 checkpoints" in found.describe(config)
    assert "1.00 GiB of device memory" in found.describe(config)
    assert "checkpoints, as many" not in DryRun(1, (1, 1), {}, 10, 100, 301, None).describe(config)


def test_it_takes_the_largest_batch_and_finds_a_probes_missing_data(tmp_path):
    settings = [*QUICK, f"run_dir={tmp_path / 'run'}", "train.batch_size_warmup=[[8, 10]]"]
    found = dry_run(load_config("mae_digits", settings)[0])
    assert "steps of 16 samples" in found.describe(load_config("mae_digits", settings)[0])
    with pytest.raises(UserError, match="nowhere"):
        dry_run(load_config("mae_digits", [*settings, f"probe.train={tmp_path / 'nowhere'}"])[0])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_two_ranks_dry_run_together(tmp_path, engine):
    arguments = ["mae_digits", *QUICK, f"run_dir={tmp_path / 'run'}", f"engine={engine}", "--dry-run"]
    result = run("pretrain", arguments, processes=2)
    assert result.stdout.count("dry run: 2 steps of 16 samples on 2 rank(s)") == 1
    assert not any(tmp_path.iterdir())
