"""Precision: what matrix products are computed in. Weights, gradients' sums and optimizer states stay fp32."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from data_tools.errors import UserError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""The type that autocast computes in, by precision; fp8 applies to linear layers, everything around them is bf16."""
FP8_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs with fp8 matrix units (Ada, Hopper)."""
TF32_CAPABILITY = (8, 0)
FP8_MULTIPLE = 16
"""fp8 matrix products need both sizes of a matrix to be multiples of this."""


def check_precision(precision: str) -> None:
    """Raise a `UserError` where this machine cannot compute in `precision`."""
    place = f"train.precision={precision}"
    if precision not in ("tf32", "fp8"):
        return
    if not torch.cuda.is_available():
        raise UserError(f"{place}: needs an NVIDIA GPU, and this machine shows none; use fp32 or bf16")
    needed = FP8_CAPABILITY if precision == "fp8" else TF32_CAPABILITY
    have = torch.cuda.get_device_capability()
    if have < needed:
        raise UserError(
            f"{place}: needs a GPU of compute capability {needed[0]}.{needed[1]}, "
            f"{torch.cuda.get_device_name()} has {have[0]}.{have[1]}; use bf16 or fp16"
        )
    if precision == "fp8":
        require_torchao()


def require_torchao() -> None:
    try:
        import torchao.float8  # noqa: F401
    except ImportError:
        raise UserError(
            'train.precision=fp8: torchao is not installed; pip install "masquerade[fp8]"'
        ) from None


def set_matmul_precision(precision: str) -> None:
    """Let fp32 matrix products use TF32 units, or forbid it: fp32 means fp32."""
    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def set_deterministic(enabled: bool) -> None:
    """Allow only algorithms that give the same bits every time; torch names one that has no such form and stops."""
    if enabled:  # cuBLAS reads this when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.benchmark = False


def convert_to_fp8(role: nn.Module) -> None:
    """Replace a role's large linear layers by torchao's fp8 ones, in place; names and weights stay as they are."""
    from torchao.float8 import convert_to_float8_training

    def fits(module: nn.Module, _name: str) -> bool:
        sizes = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (1,)
        return all(size % FP8_MULTIPLE == 0 for size in sizes)

    convert_to_float8_training(role, module_filter_fn=fits)


class Scaler:
    """Dynamic loss scale of fp16 (Micikevicius et al. 2017, arXiv:1710.03740), wholly on the device.

    `torch.amp.GradScaler` asks the host whether gradients overflowed; here the fused optimizer is told on the device.
    """

    def __init__(self, enabled: bool, device: torch.device, interval: int = 2000) -> None:
        self.enabled = enabled
        self.interval = interval
        self.scale = torch.full((), 2.0**16 if enabled else 1.0, device=device)
        self.healthy = torch.zeros((), dtype=torch.int32, device=device)
        """Steps since the scale last changed."""

    def update(self, overflowed: Tensor) -> None:
        """Halve the scale after an overflow, double it after `interval` healthy steps."""
        if self.enabled:
            torch._amp_update_scale_(self.scale, self.healthy, overflowed, 2.0, 0.5, self.interval)

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "healthy": self.healthy} if self.enabled else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.enabled:
            self.scale.copy_(state["scale"])
            self.healthy.copy_(state["healthy"])
