"""Hold-out by a hash: of the key, or of what must not be torn apart. Exact copies never stand on both sides."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.content import DIGEST, digest_content, find_originals
from data_tools.dataset.dataset import Dataset
from data_tools.dataset.expression import Expression, parse_expression
from data_tools.dataset.rows import MAX_NAMES, Found, check_columns, look_at_all, read_rows
from data_tools.dataset.selection import refuse_full, refuse_signed, whole_or_none, write_selection
from data_tools.errors import UserError


@dataclass(frozen=True)
class Split:
    """Samples in each part, and lines for the user about what was done with copies and groups."""

    train: int
    test: int
    notes: list[str] = field(default_factory=list)


def held_out(name: str, fraction: float, salt: str = "") -> bool:
    """Whether a key, or the name of a group, belongs to the held-out ``fraction``."""
    return _hash(name, salt) < fraction * 2**64


def _hash(name: str, salt: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, key=salt.encode()[:64])
    return int.from_bytes(digest.digest(), "little")


def split(
    dataset: Dataset, fraction: float, train: Path, test: Path, salt: str = "", by: str | None = None,
    by_key: str | None = None, stratify: str | None = None, keys_only: bool = False,
    processes: int | None = None,
) -> Split:  # fmt: skip
    """Write two manifests over the same shards, nothing copied. Samples that are damaged or marked are in neither.

    Each sample falls where the hash of its key does, and exact copies of it (by content, whatever their labels) fall
    where the first of them does: the same side in every later version of the data that keeps their order.

    Args:
        by: an expression, such as ``speaker``: samples of one value stand on one side, by the hash of the value. A
            sample held out of which a copy stands in ``train`` is in neither part.
        by_key: a regular expression, instead: what it matches of the key (its first group, if it has one).
        stratify: an expression, such as ``label``: of the samples of each value the same fraction is held out, those
            with the lowest hashes.
        keys_only: read headers, no payloads; exact copies may then stand on both sides.
    Raises:
        UserError: a side would be empty, a folder is not, or an expression is none or names no column.
    """
    if not 0 < fraction < 1:
        raise UserError(f"--fraction {fraction}: must lie between 0 and 1")
    if by is not None and by_key is not None:
        raise UserError("--by and --by-key: name one of them")
    for folder in (train, test):
        refuse_full(folder)
    refuse_signed(dataset)
    if keys_only and (by or by_key or stratify):
        raise UserError("--keys-only: does not go with --by, --by-key and --stratify, which read the samples")
    asked = _read_keys(dataset) if keys_only else _ask_all(dataset, by, by_key, stratify, processes)
    named, original = asked.groups is not None, asked.original
    names = asked.groups if asked.groups is not None else [asked.keys[i] for i in original.tolist()]
    out = _draw(names, asked.strata, fraction, salt)
    torn = np.zeros(len(out), dtype=np.bool_)
    if named:
        in_train = np.unique(original[~out])
        torn = out & np.isin(original, in_train)
    sides = [~out, out & ~torn]
    if not all(side.any() for side in sides):
        raise UserError(
            f"--fraction {fraction}: leaves one side empty with {len(out)} samples in {len(set(names)):,} groups; "
            "choose another"
        )
    how = {"fraction": fraction, "salt": salt, "by": by, "by_key": by_key, "stratify": stratify}
    how = {name: value for name, value in how.items() if value}
    with whole_or_none(train, test):
        for folder, side, part in ((train, sides[0], "train"), (test, sides[1], "test")):
            write_selection(dataset, asked.indices[side], folder, {"part": part, **how})
    notes = _describe(dataset, asked, torn)
    if asked.strata is not None:
        notes += _lacking(asked.strata, sides[1])
    return Split(int(sides[0].sum()), int(sides[1].sum()), notes)


@dataclass(frozen=True)
class _Asked:
    """What every readable sample says: its index, its key, and where asked for its group and stratum by name.

    ``original`` (samples,) is the first of the readable samples that has the same content.
    """

    indices: NDArray[np.int64]
    keys: list[str]
    original: NDArray[np.int64]
    groups: list[str] | None
    strata: list[str] | None


def _read_keys(dataset: Dataset) -> _Asked:
    """By headers alone: every sample counts as one of its kind."""
    indices = np.setdiff1d(np.arange(len(dataset)), dataset.marked)
    keys = list(dataset.select(indices).keys())
    return _Asked(indices, keys, np.arange(len(indices)), None, None)


def _ask_all(
    dataset: Dataset, by: str | None, by_key: str | None, stratify: str | None, processes: int | None
) -> _Asked:
    expressions = {
        name: parse_expression(text) for name, text in (("by", by), ("stratify", stratify)) if text
    }
    try:
        pattern = re.compile(by_key) if by_key is not None else None
    except re.error as error:
        raise UserError(f"--by-key {by_key}: not a regular expression ({error})") from None
    found = look_at_all(dataset, partial(_ask, expressions, pattern), "split", processes)
    names: set[str] = set().union(*(part["names"] for part in found))
    for expression in expressions.values():
        check_columns(expression, dataset, names)
    indices = np.concatenate([part["indices"] for part in found])
    if not len(indices):
        raise UserError(
            f"{dataset.folder}: none of {len(dataset):,} samples can be read; run `data_tools verify`"
        )
    grouped = by is not None or by_key is not None
    return _Asked(
        indices,
        [key for part in found for key in part["keys"]],
        find_originals(np.concatenate([part["digests"] for part in found])),
        [group for part in found for group in part["groups"]] if grouped else None,
        [stratum for part in found for stratum in part["strata"]] if stratify is not None else None,
    )


def _ask(
    expressions: dict[str, Expression],
    pattern: re.Pattern[str] | None,
    dataset: Dataset,
    first: int,
    last: int,
) -> Found:
    indices, keys, digests, groups, strata = [], [], [], [], []
    names: set[str] = set()
    for index, row in read_rows(dataset, list(expressions.values()), first, last):
        if isinstance(row.get("json"), dict) and len(names) < MAX_NAMES:
            names.update(row["json"])
        key = str(row["key"])
        indices.append(index)
        keys.append(key)
        digests.append(digest_content(row["members"]))
        if pattern is not None:
            groups.append(_part_of_key(key, pattern))
        elif "by" in expressions:
            value = expressions["by"](row)
            groups.append(f"key {key}" if value is None else _name(value))
        if "stratify" in expressions:
            strata.append(_name(expressions["stratify"](row)))
    return {
        "indices": np.array(indices, dtype=np.int64),
        "keys": keys,
        "digests": np.array(digests, dtype=DIGEST),
        "groups": groups,
        "strata": strata,
        "names": names,
    }


def _part_of_key(key: str, pattern: re.Pattern[str]) -> str:
    match = pattern.search(key)
    if match is None:
        raise UserError(f"--by-key {pattern.pattern}: does not match the key {key!r}")
    return match.group(1 if pattern.groups else 0) or ""


def _name(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _draw(
    names: Sequence[str], strata: Sequence[str] | None, fraction: float, salt: str
) -> NDArray[np.bool_]:
    """Which samples are held out, (samples,): whole groups of one name, a fraction of each stratum."""
    unique, number = np.unique(np.array(names, dtype=object), return_inverse=True)
    if strata is None:
        held = np.array([held_out(name, fraction, salt) for name in unique], dtype=np.bool_)
        return held[number]
    hashes = np.array([_hash(name, salt) for name in unique], dtype=np.uint64)
    _, first, sizes = np.unique(number, return_index=True, return_counts=True)
    held = np.zeros(len(unique), dtype=np.bool_)
    _, stratum = np.unique(np.array(strata, dtype=object)[first], return_inverse=True)
    for one in range(int(stratum.max()) + 1):
        groups = np.flatnonzero(stratum == one)
        groups = groups[np.argsort(hashes[groups], kind="stable")]
        middle = np.cumsum(sizes[groups]) - sizes[groups] / 2
        held[groups[middle < fraction * sizes[groups].sum()]] = True
    return held[number]


def _describe(dataset: Dataset, asked: _Asked, torn: NDArray[np.bool_]) -> list[str]:
    notes = []
    copies = int((asked.original != np.arange(len(asked.original))).sum())
    if copies:
        notes.append(f"{copies:,} exact copies; none stands on the other side than its original")
    if torn.any():
        notes.append(
            f"{int(torn.sum()):,} samples of held-out groups are copies of samples in train: in neither part"
        )
    if len(asked.indices) < len(dataset):
        notes.append(f"{len(dataset) - len(asked.indices):,} damaged samples are in neither part")
    return notes


def _lacking(strata: Sequence[str], test: NDArray[np.bool_]) -> list[str]:
    """A line where a stratum is too small to have a sample on the test side."""
    here = {stratum for stratum, held in zip(strata, test.tolist(), strict=True) if held}
    lacking = sorted(set(strata) - here)
    return [f"too few samples to hold one out of: {', '.join(lacking[:20])}"] if lacking else []
