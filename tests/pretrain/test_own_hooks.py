"""Hooks of the user's own, named in a recipe."""

from __future__ import annotations

import shutil

import pytest

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.run.run import run
from pretrain.tracking.metrics import read_metrics
from tests.processes import QUIET
from tests.tiny_run import SMALL

HOOK = "tests.pretrain.counting_hook:Counts"
SETTINGS = [*SMALL, "train.global_batch_size=8", "checkpoint.every=2", "tracking.log_every=2",
            *QUIET, "train.steps=4"]  # fmt: skip


def train(folder, hooks):
    run(load_config("mae_digits", [*SETTINGS, f"run_dir={folder}", f"hooks={hooks}"])[0])
    return [line for line in read_metrics(folder) if line["kind"] == "counted"]


def test_a_hook_runs_when_it_is_due_and_goes_on_in_its_state_after_a_resume(tmp_path):
    whole = train(tmp_path, f"[{{name: '{HOOK}', every: 1}}]")
    assert whole[-1]["steps"] == [0, 1, 2, 3, 4]
    assert not whole[-1]["training"]
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    assert train(tmp_path, f"[{{name: '{HOOK}', every: 1}}]")[-1]["steps"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ("['tests.pretrain.counting_hook:Lost']", "hooks='tests.pretrain.counting_hook:Lost': cannot be imported"),
        (f"[{{name: '{HOOK}', evry: 2}}]", "unexpected keyword argument 'evry'"),
        ("['tests.pretrain.counting_hook:Never']", "runs every 0 steps; give it an `every` of at least 1"),
        ("[{every: 2}]", "has no name; write module:Class"),
    ],
)  # fmt: skip
def test_a_hook_that_cannot_be_is_refused_in_one_line(tmp_path, hooks, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path, hooks)
