"""Running out of memory, told with the numbers and with what to lower."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from data_tools.errors import OneRankError, lacks_memory
from pretrain.config.sections import TrainConfig


class OutOfMemoryError(OneRankError):
    """This rank has run out of memory; the message says what to lower."""


@contextmanager
def explain_out_of_memory(step: int, train: TrainConfig, samples: int) -> Iterator[None]:
    """Within it, running out of memory is an `OutOfMemoryError` that says what to lower.

    Args:
        samples: of one rank in one forward pass.
    """
    with refuse_out_of_memory(lambda reason: advice(step, train, samples, reason)):
        yield


@contextmanager
def explain_memory_of_reading(step: int, workers: int) -> Iterator[None]:
    """The same around taking a batch, which `workers` have made ahead in the host's memory."""

    def say(reason: str) -> str:
        fewer = (
            f"data.workers={workers // 2} (now {workers}, each of which works ahead), or " if workers else ""
        )
        return (
            f"step {step}: out of host memory while its batch was read ({numbers(reason)}); set {fewer}a lower "
            "train.global_batch_size, or use more ranks"
        )

    with refuse_out_of_memory(say):
        yield


@contextmanager
def refuse_out_of_memory(describe: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(describe(str(error))) from None
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        raise OutOfMemoryError(describe(str(error))) from None


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
