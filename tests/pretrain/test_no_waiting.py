"""Nothing inside a step makes the host wait for the device.

A GPU counts the waits itself (`torch.cuda.set_sync_debug_mode`, tests/end_to_end/test_on_a_gpu.py). Here, where there
is none, a spy looks for the operations that would wait: those whose result's value or shape the host must know.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.engine.torch_engine import TorchEngine
from tests.distributed.curves import build_trainer

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.index.Tensor,  # waits where an index is a mask
    aten._unique2.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.repeat_interleave.Tensor,
}


class Spy(TorchDispatchMode):
    """Notes the operations that a device would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = function is not aten.index.Tensor or any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if function in WAITING and by_mask:
            self.waits.append(str(function))
        return function(*args, **(kwargs or {}))


def spied(spy, method):
    def call(*arguments, **named):
        with spy:
            return method(*arguments, **named)

    return call


CASES = [
    ("mae", []), ("mlm", []), ("mlm", ["train.attention=varlen"]), ("clm", []), ("clm", ["train.attention=varlen"]),
    ("gan", []), ("hard", []), ("vae", []), ("vqvae", []), ("bigan", []), ("context_encoder", []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "overrides"), CASES, ids=lambda value: value if isinstance(value, str) else "+".join(value)
)
def test_no_operation_of_a_step_waits_for_the_device(case, overrides):
    trainer = build_trainer(case, ["train.ema_decay=0.9", *overrides])
    # A CPU's varlen kernel is a loop over documents, whose lengths the host must know; a GPU's is not.
    spy = Spy()
    steps = iter(trainer.loader)
    with mock.patch("pretrain.ops.attention.attend_by_document", lambda q, k, v, *_: (q + k + v) / 3):
        for name in ("backward", "step", "after_step"):
            setattr(trainer.engine, name, spied(spy, getattr(trainer.engine, name)))
        trainer.train_step(next(steps))
        trainer.train_step(next(steps))
    assert isinstance(trainer.engine, TorchEngine)
    assert spy.waits == []


def test_the_spy_sees_what_waits():
    with Spy() as spy:
        torch.ones(2).sum().item(), torch.ones(2).nonzero(), torch.ones(2)[torch.tensor([True, False])]
        torch.ones(2)[torch.tensor([1])]
    assert len(spy.waits) == 3
