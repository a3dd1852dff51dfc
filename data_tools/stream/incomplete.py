"""Samples that lack a field which the transform asks for: damage of their data set, not the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.damage import DamagedSampleError, IncompleteSampleError
from data_tools.decode.sample import Sample


class HasStandIns(Protocol):
    """What is needed of a stream here."""

    def shards(self, positions: NDArray[np.int64]) -> list[list[str]]: ...
    def stand_ins(self, position: int, error: DamagedSampleError) -> Iterator[Sample]: ...


def complete_example(
    stream: HasStandIns, position: int, sample: Sample, make: Callable[[Sample], dict[str, Any]]
) -> tuple[Sample, dict[str, Any]]:
    """(sample, what ``make`` gives of it), of a stand-in where the sample at ``position`` lacks a field.

    ``make`` says that a field is lacking by IncompleteSampleError, or by the KeyError of ``sample["image"]``. Where
    no stand-in has the field, or ``make`` fails for another reason, its error is raised.
    """
    try:
        return sample, make(sample)
    except (IncompleteSampleError, KeyError) as error:
        first, lacking = error, _lacking(sample, error)
        if lacking is None:
            raise
    shard = stream.shards(np.array([position], dtype=np.int64))[0][0]
    damage = DamagedSampleError(shard, sample["__key__"], f"incomplete: has no {lacking}, which is needed")
    for other in stream.stand_ins(position, damage):
        try:
            example = make(other)
        except (IncompleteSampleError, KeyError) as error:
            if _lacking(other, error) is None:
                raise
            continue
        if isinstance(first, KeyError) and lacking not in other:
            break  # no field of a sample, but a mistake in the transform
        other["__damage__"] = sample.get("__damage__", other["__damage__"])
        return other, example
    raise first


def _lacking(sample: Sample, error: IncompleteSampleError | KeyError) -> str | None:
    """The field that the error says the sample lacks; None where it says another thing."""
    if isinstance(error, IncompleteSampleError):
        return error.field
    name = error.args[0] if error.args else None
    return name if isinstance(name, str) and name not in sample else None
