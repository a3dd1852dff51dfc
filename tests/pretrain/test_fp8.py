"""fp8 layers take the place of linear ones: the same names and weights, nearly the same outputs and gradients."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pretrain.engine.precision import convert_to_fp8


def test_converted_layers_are_the_same_to_a_checkpoint_and_nearly_so_to_the_loss():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.Linear(32, 5))
    converted = copy.deepcopy(plain)
    convert_to_fp8(converted)
    kinds = [type(layer).__name__ for layer in converted]
    assert kinds == ["Float8Linear", "GELU", "Float8Linear", "Linear"], "five columns do not fit fp8 units"
    for name, value in plain.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value), name
    x = torch.randn(16, 32)
    outputs = plain(x), converted(x)
    error = (outputs[0] - outputs[1]).norm() / outputs[0].norm()
    assert 0 < error < 0.1
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(plain.parameters(), converted.parameters(), strict=True):
        assert (one.grad - other.grad).norm() < 0.2 * one.grad.norm()
