"""What a data set holds: counts, sizes, lengths, labels, channels, and samples that occur twice."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset.content import digest_content
from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.decode.options import DecodeError, DecodeOptions
from data_tools.decode.pixels import white_of
from data_tools.decode.sample import decode_sample
from data_tools.jobs import Receipt, run_jobs


def statistics(dataset: Dataset, decode: bool = True, processes: int | None = None) -> dict[str, Any]:
    """A JSON-able summary; ``decode`` = False leaves out what needs pixels, frames or text."""
    work = partial(_shard_statistics, dataset.with_options(DecodeOptions(raw=True)), decode)
    found = run_jobs(work, range(len(dataset.manifest.urls)), "stats", None, processes)
    assert found is not None, "all parts ran here"
    sizes = np.concatenate([np.array(r["sizes"], dtype=np.int64) for r in found])
    unlabelled = sum(r["unlabelled"] for r in found)
    summary: dict[str, Any] = {
        "samples": len(sizes),
        "identity": dataset.fingerprint + ("" if dataset.knows_content else " (of the layout only: no CRC)"),
        "shards": len(found),
        "damaged": sum(r["damaged"] for r in found),
        "marked": len(dataset.marked),
        "bytes": _quantiles(sizes),
        "extensions": _merge(found, "extensions"),
        "labels": _name_labels(_merge(found, "labels"), dataset),
        **({"unlabelled": unlabelled} if unlabelled else {}),
        "shapes": dict(_merge(found, "shapes").most_common(10)),
        "duplicates": _duplicates([r["hashes"] for r in found], [r["keys"] for r in found]),
    }
    lengths = np.concatenate([np.array(r["lengths"], dtype=np.int64) for r in found])
    if len(lengths):
        summary["lengths"] = {"of": found[0]["length_of"], "total": int(lengths.sum()), **_quantiles(lengths)}
    channels = _channels(found)
    if channels:
        summary["channels"] = channels
    return summary


def _name_labels(counts: Counter[str], dataset: Dataset) -> dict[str, int]:
    """Samples of each class, in the order of their numbers, by name where the manifest names it."""
    names = dataset.manifest.about.get("classes") or []
    return {
        str(names[number]) if number < len(names) else str(number): counts[str(number)]
        for number in sorted(map(int, counts))
    }


def _merge(found: list[Receipt], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for receipt in found:
        total.update(receipt[name])
    return total


def _quantiles(values: NDArray[np.int64]) -> dict[str, float]:
    if not len(values):
        return {}
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {
        "min": int(values.min()), "5%": float(low), "median": float(middle), "95%": float(high),
        "max": int(values.max()), "mean": float(values.mean()),
    }  # fmt: skip


def _duplicates(hashes: list[list[int]], keys: list[list[str]]) -> dict[str, Any]:
    """Samples whose content occurs before, and the first twenty groups by key."""
    flat = np.concatenate([np.array(h, dtype=np.uint64) for h in hashes])
    names = [key for part in keys for key in part]
    _, first, counts = np.unique(flat, return_index=True, return_counts=True)
    groups = []
    for index in np.sort(first[counts > 1])[:20]:
        groups.append([names[i] for i in np.flatnonzero(flat == flat[index])])
    return {"count": int((counts - 1).sum()), "groups": groups}


def _channels(found: list[Receipt]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation of each channel, over pixels, by number of channels."""
    out: dict[str, dict[str, list[float]]] = {}
    for count in sorted({c for r in found for c in r["channels"]}):
        parts = [np.array(r["channels"][count]) for r in found if count in r["channels"]]
        pixels, sums, squares = (sum(part[i] for part in parts) for i in range(3))
        mean = sums / pixels
        out[count] = {
            "mean": mean.tolist(),
            "std": np.sqrt(np.maximum(0, squares / pixels - mean**2)).tolist(),
        }
    return out


def _shard_statistics(dataset: Dataset, decode: bool, shard: int) -> Receipt:
    extensions, labels, shapes = Counter[str](), Counter[str](), Counter[str]()
    sizes, lengths, hashes, keys = [], [], [], []
    moments: dict[str, list[Any]] = {}
    damaged, unlabelled, length_of = 0, 0, ""
    for number in range(int(dataset.manifest.counts[shard])):
        try:
            raw = dataset.read(shard, number)
            key = raw.pop("__key__")
            sample = decode_sample(key, raw, DecodeOptions(raw=not decode))
        except (DamagedSampleError, DecodeError):
            damaged += 1
            continue
        keys.append(key)
        sizes.append(sum(len(v) for v in raw.values()))
        hashes.append(int.from_bytes(digest_content(raw)[:8], "little"))
        extensions.update(raw.keys())
        unlabelled += "label" in sample and sample["label"] is None
        if isinstance(sample.get("label"), int):
            labels[str(sample["label"])] += 1
        for name, unit in (("tokens", "tokens"), ("text", "characters"), ("audio", "audio frames")):
            if name in sample:
                lengths.append(len(sample[name]))
                length_of = unit
                break
        if isinstance(image := sample.get("image"), np.ndarray):
            shapes["×".join(map(str, image.shape))] += 1
            _add_moments(moments, image)
    return {
        "sizes": sizes, "lengths": lengths, "length_of": length_of, "hashes": hashes, "keys": keys,
        "extensions": dict(extensions), "labels": dict(labels), "shapes": dict(shapes), "channels": moments,
        "damaged": damaged, "unlabelled": unlabelled, "samples": len(sizes), "bytes": sum(sizes),
    }  # fmt: skip


def _add_moments(moments: dict[str, list[Any]], image: np.ndarray) -> None:
    """Add pixels, sums and sums of squares of an image (H, W, C), as fractions of the full range.

    Values of 32 bits and floats are taken as they are, apart from those that have a range.
    """
    white, name = white_of(image.dtype), str(image.shape[2])
    if image.dtype not in (np.uint8, np.uint16):
        white, name = 1.0, f"{name} {image.dtype}"
    pixels = image.reshape(-1, image.shape[2]) / np.float64(white)
    new = [np.full(image.shape[2], len(pixels)), pixels.sum(0), (pixels**2).sum(0)]
    old = moments.get(name, [0, 0, 0])
    moments[name] = [(np.asarray(a) + b).tolist() for a, b in zip(old, new, strict=True)]
