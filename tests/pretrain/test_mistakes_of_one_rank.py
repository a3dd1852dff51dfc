"""What only one rank need have met: nobody waits for the others then, and a sample that is to blame is named."""

from __future__ import annotations

import time
import traceback

import pytest

from data_tools.dataset.open import open_dataset
from data_tools.errors import OneRankError
from data_tools.stream.loader import Loader
from data_tools.stream.samples import Stream
from pretrain.checkpoint.folder import complete
from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.load import load_config
from pretrain.run.run import run
from tests.processes import QUIET
from tests.tiny_run import SMALL

SETTINGS = [*SMALL, "train.global_batch_size=8", "checkpoint.every=2",
            *QUIET, "train.steps=4"]  # fmt: skip


def refuse(sample, rng):
    raise ArithmeticError(f"planted, number {int(sample['label'])}")


@pytest.mark.parametrize("mistake", [True, False])
def test_one_process_keeps_the_checkpoint_that_is_being_written_when_it_fails(tmp_path, monkeypatch, mistake):
    publish = Checkpoints.publish

    def publish_slowly(*arguments):
        time.sleep(1)
        publish(*arguments)

    monkeypatch.setattr(Checkpoints, "publish", publish_slowly)
    hook = f"hooks=[{{name: 'tests.pretrain.counting_hook:Refuses', at: 3, mistake: {mistake}}}]"
    with pytest.raises(OneRankError if mistake else ArithmeticError, match="planted"):
        run(load_config("mae_digits", [*SETTINGS, f"run_dir={tmp_path}", hook])[0])
    assert [path.name for path in complete(tmp_path / "checkpoints")] == ["step_00000002"]


@pytest.mark.parametrize(
    "how",
    [{}, {"workers": 1}, pytest.param({"workers": 1, "worker_kind": "process"}, marks=pytest.mark.slow)],
)
def test_an_error_of_a_transform_names_the_sample(how):
    stream = Stream(open_dataset("sample:digits"), seed=0)
    loader = Loader(stream, refuse, global_batch_size=2, **how)
    first = next(stream.samples(loader.micro_positions(0)[0]))
    with pytest.raises(ArithmeticError) as caught:
        next(iter(loader))
    loader.close()
    told = "".join(traceback.format_exception(caught.value))
    assert f"planted, number {int(first['label'])}" in told
    assert f"while the sample {first['__key__']!r} of 000000.tar was transformed" in told
