"""A data set without its copies: exact ones, and near ones where asked for; the first of each is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_tools.commands.near_copies import (
    NearCopies,
    compare_pictures,
    compare_texts,
    find_near,
    hash_tokens,
    hash_words,
    minhash,
    picture_bands,
    shrink,
    text_bands,
    thumbnail,
)
from data_tools.dataset.content import DIGEST, digest_content, find_originals
from data_tools.dataset.dataset import Dataset
from data_tools.dataset.rows import Found, look_at_all, read_rows
from data_tools.dataset.selection import refuse_full, refuse_signed, whole_or_none, write_selection
from data_tools.decode.kinds import field_names
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.sample import decode_sample
from data_tools.errors import UserError
from data_tools.formats.manifest import Manifest
from data_tools.storage.atomic import write_atomically

Near = Literal["image", "text"]
DROPPED = "dropped.jsonl"
SIMILARITY = {"image": 0.9, "text": 0.8}
"""From which on two samples are near copies, unless told."""
LEAST_SIMILARITY = {"image": 0.8, "text": 0.7}
"""Below it, near copies would be missed."""


@dataclass(frozen=True)
class Deduplicated:
    """The new manifest, and how many samples were dropped as exact copies, as near ones, and as damaged."""

    manifest: Manifest
    exact: int
    near: int
    damaged: int


def dedup(
    dataset: Dataset, folder: Path, near: Near | None = None, similarity: float | None = None,
    processes: int | None = None,
) -> Deduplicated:  # fmt: skip
    """Write a manifest without copies over the same shards, and ``dropped.jsonl``: each copy and what is kept for it.

    Exact copies have the same bytes, labels and JSON aside. Memory: 100 bytes a sample, 1.2 kB more for near copies.

    Args:
        near: drop near copies too: pictures by a perceptual hash and thumbnails, texts or tokens by MinHash.
        similarity: from which on two samples are near copies: 1 minus the difference of pictures over their contrast
            (0.9 unless told), the Jaccard index of the five words in a row that texts have (0.8).
    Raises:
        UserError: the folder is not empty, or the samples have nothing to compare.
    """
    refuse_full(folder)
    refuse_signed(dataset)
    field = _compared(dataset, near)
    least = similarity if similarity is not None or near is None else SIMILARITY[near]
    if least is not None and near is not None and not LEAST_SIMILARITY[near] <= least <= 1:
        raise UserError(f"--similarity {least}: must lie between {LEAST_SIMILARITY[near]} and 1 for {near}")
    found = look_at_all(dataset, partial(_describe, field), "dedup", processes)
    indices = np.concatenate([part["indices"] for part in found])
    keys = [key for part in found for key in part["keys"]]
    if not keys:
        raise UserError(
            f"{dataset.folder}: none of {len(dataset):,} samples can be read; run `data_tools verify`"
        )
    exact = find_originals(np.concatenate([part["digests"] for part in found]))
    kept_for, score = exact.copy(), np.ones(len(exact))
    if field is not None and least is not None:
        signed = np.concatenate([part["signed"] for part in found]) & (exact == np.arange(len(exact)))
        signatures = np.concatenate([part["signatures"] for part in found])[signed]
        original, similar = _FINDERS[field](signatures, least)
        rows = np.flatnonzero(signed)
        kept_for[rows], score[rows] = rows[original], similar
        kept_for = kept_for[exact]
    dropped = np.flatnonzero(kept_for != np.arange(len(kept_for)))
    lines = _list_dropped(dataset, indices, keys, dropped, kept_for, exact, score)
    with whole_or_none(folder):
        chosen = np.delete(indices, dropped)
        how = {"dedup": near or "exact", "similarity": least} if near else {"dedup": "exact"}
        manifest = write_selection(dataset, chosen, folder, how)
        write_atomically(folder / DROPPED, "".join(lines).encode("utf-8", "replace"))
    copies = int((exact != np.arange(len(exact))).sum())
    return Deduplicated(manifest, copies, len(dropped) - copies, len(dataset) - len(indices))


def _find_near_pictures(thumbnails: NDArray[Any], least: float) -> NearCopies:
    return find_near(shrink(thumbnails), picture_bands(thumbnails), compare_pictures, least)


def _find_near_texts(signatures: NDArray[Any], least: float) -> NearCopies:
    return find_near(signatures, text_bands(signatures), compare_texts, least)


_FINDERS = {"image": _find_near_pictures, "text": _find_near_texts, "tokens": _find_near_texts}
_SHAPES: dict[str, tuple[int, Any]] = {
    "image": (1024, np.uint8),
    "text": (120, np.uint32),
    "tokens": (120, np.uint32),
}


def _compared(dataset: Dataset, near: Near | None) -> str | None:
    """The field that near copies are judged by."""
    if near is None:
        return None
    fields = dataset.fields
    wanted = ("image",) if near == "image" else ("text", "tokens")
    for name in wanted:
        if name in fields:
            return name
    raise UserError(f"--near {near}: samples have {', '.join(fields)}, and no {' or '.join(wanted)}")


def _describe(field: str | None, dataset: Dataset, first: int, last: int) -> Found:
    indices, keys, digests, signed, signatures = [], [], [], [], []
    length, dtype = _SHAPES[field] if field else (0, np.uint8)
    for index, row in read_rows(dataset, [], first, last):
        indices.append(index)
        keys.append(str(row["key"]))
        digests.append(digest_content(row["members"]))
        if field is not None:
            signature = _sign(field, row["members"])
            signed.append(signature is not None)
            signatures.append(np.zeros(length, dtype) if signature is None else signature)
    return {
        "indices": np.array(indices, dtype=np.int64),
        "keys": keys,
        "digests": np.array(digests, dtype=DIGEST),
        "signed": np.array(signed, dtype=np.bool_),
        "signatures": np.array(signatures, dtype=dtype).reshape(len(signatures), length),
    }


def _sign(field: str, members: dict[str, memoryview]) -> NDArray[Any] | None:
    """The signature of a sample; None where it has not the field, or nothing is in it, or it does not decode."""
    extension = next((e for e, name in field_names(tuple(members)).items() if name == field), None)
    if extension is None:
        return None
    try:
        sample = decode_sample("", {extension: members[extension]}, DecodeOptions(min_side=64))
    except DecodeError:
        return None
    if field == "image":
        return thumbnail(sample[field])
    return minhash(hash_words(sample[field]) if field == "text" else hash_tokens(sample[field]))


def _list_dropped(
    dataset: Dataset, indices: NDArray[np.int64], keys: list[str], dropped: NDArray[np.int64],
    kept_for: NDArray[np.int64], exact: NDArray[np.int64], score: NDArray[np.float64],
) -> list[str]:  # fmt: skip
    """One JSON line for each dropped sample."""
    shards = [dataset.manifest.urls[shard] for shard in dataset.locate(indices)[0].tolist()]
    lines = []
    for copy in dropped.tolist():
        kept, first = int(kept_for[copy]), int(exact[copy])
        said = {"sample": keys[copy], "shard": shards[copy], "kept": keys[kept], "kept_shard": shards[kept]}
        near = kept != first
        said |= {"copy": "near", "similarity": round(float(score[first]), 3)} if near else {"copy": "exact"}
        lines.append(json.dumps(said) + "\n")
    return lines
