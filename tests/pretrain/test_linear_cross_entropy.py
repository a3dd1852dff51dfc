"""The chunked loss is plain cross-entropy, and never holds all logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.ops.linear_cross_entropy import IGNORE, linear_cross_entropy


def problem(rows, dtype=torch.float64, width=8, vocabulary=23):
    generator = torch.Generator().manual_seed(rows)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((rows, width), (vocabulary, width), (vocabulary,))
    )
    target = torch.randint(0, vocabulary, (rows,), generator=generator)
    target[::3] = IGNORE
    return hidden, weight, bias, target


class Watch(TorchDispatchMode):
    """Remembers how large the largest tensor was that any operation made, and how many matrix products there were."""

    size = 0
    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        if isinstance(out, torch.Tensor):
            self.size = max(self.size, out.numel())
        return out


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), chunk=st.integers(1, 50), with_bias=st.booleans())
def test_loss_and_gradients_are_those_of_plain_cross_entropy(rows, chunk, with_bias):
    hidden, weight, bias, target = problem(rows)
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    loss, right = linear_cross_entropy(hidden, weight, bias if with_bias else None, target, chunk)
    logits = F.linear(hidden, weight, bias if with_bias else None)
    reference = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(loss, reference)
    assert right == ((logits.argmax(1) == target) & (target != IGNORE)).sum()
    for ours, plain in zip(
        torch.autograd.grad(loss * 0.5, inputs), torch.autograd.grad(reference * 0.5, inputs), strict=True
    ):
        torch.testing.assert_close(ours, plain)


def test_logits_never_exist_at_once():
    hidden, weight, bias, target = problem(512, width=8, vocabulary=1000)
    with Watch() as seen:
        linear_cross_entropy(hidden, weight, bias, target, chunk=32)[0].backward()
    assert seen.size == 32 * 1000
    with Watch() as plain:
        F.cross_entropy(F.linear(hidden, weight, bias), target).backward()
    assert plain.size == 512 * 1000


def test_without_gradients_only_the_loss_is_computed():
    hidden, weight, bias, target = problem(40)
    with torch.no_grad(), Watch() as seen:
        loss, _ = linear_cross_entropy(hidden, weight, bias, target, chunk=4)
    assert not loss.requires_grad
    assert seen.products == 10, "one for each chunk"
    frozen = linear_cross_entropy(hidden, weight.detach(), None, target)[0]
    assert torch.autograd.grad(frozen, hidden)[0].abs().sum() > 0


def test_bf16_autocast_sums_in_fp32():
    hidden, weight, bias, target = problem(64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, bias, target, chunk=8)
    loss.backward()
    assert loss.dtype == weight.grad.dtype == hidden.grad.dtype == torch.float32
    reference = F.cross_entropy(F.linear(hidden, weight, bias), target, reduction="sum")
    assert loss.item() == pytest.approx(reference.item(), rel=1e-2)
    plain = torch.autograd.grad(reference, weight)[0]
    assert torch.nn.functional.cosine_similarity(weight.grad.flatten(), plain.flatten(), dim=0) > 0.999
