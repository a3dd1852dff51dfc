"""Running out of memory, told with the numbers and with what to lower."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data_tools.errors import OneRankError
from pretrain.config.sections import TrainConfig

HOST_ALLOCATOR = "can't allocate memory"
"""What torch's allocator of host memory says in a plain RuntimeError."""


@contextmanager
def explain_out_of_memory(step: int, train: TrainConfig, samples: int) -> Iterator[None]:
    """Within it, running out of memory is a `OneRankError` that says what to lower.

    Args:
        samples: of one rank in one forward pass.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OneRankError(advice(step, train, samples, str(error))) from None
    except RuntimeError as error:
        if HOST_ALLOCATOR not in str(error):
            raise
        raise OneRankError(advice(step, train, samples, str(error))) from None


def advice(step: int, train: TrainConfig, samples: int, reason: str) -> str:
    """One line: where, how much, and what needs less, the cheapest first."""
    lower = [f"train.micro_batch_size={max(1, samples // 2)} (now {samples}; the result stays the same)"]
    if train.activation_checkpointing != "full":
        lower.append("train.activation_checkpointing=full")
    if train.precision in ("fp32", "tf32"):
        lower.append("train.precision=bf16")
    lower.append("engine=fsdp on more ranks")
    return f"step {step}: out of memory ({numbers(reason)}); set {', or '.join(lower)}"


def numbers(reason: str) -> str:
    """How much was asked for, and how much there is."""
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", reason, re.IGNORECASE)
    in_bytes = re.search(r"tried to allocate (\d+) bytes", reason)
    if in_bytes:
        told = f"{int(in_bytes[1]) / 2**20:,.1f} MiB more asked for"
    else:
        told = f"{asked[1]} more asked for" if asked else (reason.strip() or "host memory").splitlines()[0]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        free, whole = torch.cuda.mem_get_info()
        told += f", {(whole - free) / 2**30:.1f} of {whole / 2**30:.1f} GiB in use"
    return told
