"""Near copies: pictures that were resized or compressed anew, texts that differ in a few words.

A signature a sample, and bands of it: near copies have a band in common with near certainty, so that few signatures are
ever compared (locality-sensitive hashing).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools.decode.pixels import lay_on, white_of

HASHES, ROWS = 120, 5
"""MinHashes of a text, and how many of them are one band: of texts with a Jaccard index of 0.8 one in 10⁴ is missed."""
SHINGLE = 5
"""Words in a row that are compared."""
SIDE = 16
"""Of the grey picture by which pictures are compared."""
MOST_KEPT = 1000
"""Kept samples of one value of a band that others are compared with: more are boilerplate, such as blank pages."""

_SIDE_OF_COSINES, _FREQUENCIES = 32, 8
_WORD = re.compile(r"[฀-๿぀-ヿ㐀-䶿一-鿿]|\w+?(?=[฀-๿぀-ヿ㐀-䶿一-鿿]|\W|$)")
Signatures = NDArray[Any]
Bands = NDArray[np.uint64]
NearCopies = tuple[NDArray[np.int64], NDArray[np.float64]]
"""For each sample the kept one that it is a near copy of, itself where it is kept, and how similar they are."""


def thumbnail(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The signature of a picture (H, W, C) of any depth: its grey values on 32 × 32 pixels, (1024,)."""
    flat = lay_on(image)
    white = white_of(flat.dtype)
    grey = flat[..., :3].astype(np.float32).mean(axis=2)  # (H, W)
    if white is None:  # nothing says where black and white lie
        low, high = float(grey.min()), float(grey.max())
        grey, white = grey - low, max(high - low, 1e-9)
    side = (_SIDE_OF_COSINES, _SIDE_OF_COSINES)
    small = np.asarray(Image.fromarray(grey).resize(side, Image.Resampling.BOX))
    return np.clip(np.nan_to_num(small) * (255 / white), 0, 255).round().astype(np.uint8).reshape(-1)


def picture_bands(thumbnails: Signatures) -> Bands:
    """The perceptual hash of each thumbnail (n, 1024), 64 signs of low frequencies, in bands of 16: (n, 4)."""
    k, x = np.arange(_FREQUENCIES)[:, None], np.arange(_SIDE_OF_COSINES)[None]
    cosines = np.cos(np.pi * k * (2 * x + 1) / (2 * _SIDE_OF_COSINES)).astype(np.float32)  # (8, 32)
    bands = np.empty((len(thumbnails), 4), dtype=np.uint64)
    for start in range(0, len(thumbnails), 4096):
        part = thumbnails[start : start + 4096].reshape(-1, _SIDE_OF_COSINES, _SIDE_OF_COSINES)
        low = (cosines @ part.astype(np.float32) @ cosines.T).reshape(-1, _FREQUENCIES**2)
        low[:, 0] = 0  # brightness
        bits = low.round() > np.median(low, axis=1, keepdims=True).round()
        bands[start : start + 4096] = np.packbits(bits, axis=1).view(">u2")
    return bands


def shrink(thumbnails: Signatures) -> Signatures:
    """Thumbnails (n, 1024) on 16 × 16 pixels, (n, 256): what compression and resizing change little."""
    pixels = thumbnails.reshape(-1, SIDE, _SIDE_OF_COSINES // SIDE, SIDE, _SIDE_OF_COSINES // SIDE)
    return pixels.mean(axis=(2, 4), dtype=np.float32).round().astype(np.uint8).reshape(-1, SIDE * SIDE)


def compare_pictures(one: Signatures, others: Signatures) -> NDArray[np.float64]:
    """Of small pictures (256,) and (n, 256), 1 minus their root mean square difference over their contrast: (n,).

    The contrast is the deviation of the first one's pixels, 12 of 255 at least.
    """
    difference = others.astype(np.float32) - one
    return 1 - np.sqrt((difference**2).mean(axis=1)) / max(float(one.std()), 12.0)


def minhash(words: NDArray[np.uint64]) -> NDArray[np.uint32] | None:
    """The signature of a text, by the hashes of its words in order, (n,): (120,); None of one without words."""
    if not len(words):
        return None
    factors, addends, powers = _multipliers()
    length = min(SHINGLE, len(words))
    shingles = np.zeros(len(words) - length + 1, dtype=np.uint64)
    for i in range(length):
        shingles += words[i : len(words) - length + 1 + i] * powers[i]
    shingles = np.unique(shingles)
    shingles ^= shingles >> np.uint64(29)
    least = np.full(HASHES, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(shingles), 4096):
        hashed = shingles[start : start + 4096, None] * factors + addends  # (shingles, hashes), modulo 2⁶⁴
        least = np.minimum(least, (hashed >> np.uint64(32)).astype(np.uint32).min(axis=0))
    return least


@lru_cache(maxsize=1)
def _multipliers() -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    draw = np.random.Generator(np.random.PCG64(20))  # the same signatures always
    numbers = draw.integers(0, 2**64, 2 * HASHES + SHINGLE, dtype=np.uint64)
    numbers |= np.uint64(1)
    return numbers[:HASHES], numbers[HASHES : 2 * HASHES], numbers[2 * HASHES :]


def hash_words(text: str) -> NDArray[np.uint64]:
    """A number for each word of a text, whatever its case, in order; scripts without spaces by characters: (n,)."""
    return np.array([_hash_word(word) for word in _WORD.findall(text.lower())], dtype=np.uint64)


@lru_cache(maxsize=1 << 18)
def _hash_word(word: str) -> int:
    data = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def hash_tokens(tokens: NDArray[Any]) -> NDArray[np.uint64]:
    """A number for each token, (n,)."""
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ (mixed >> np.uint64(32))


def text_bands(signatures: Signatures) -> Bands:
    """Bands of MinHashes (n, 120): (n, 24)."""
    rows = signatures.reshape(len(signatures), HASHES // ROWS, ROWS).astype(np.uint64)
    bands = np.zeros(rows.shape[:2], dtype=np.uint64)
    for i in range(ROWS):
        bands = (bands ^ rows[..., i]) * np.uint64(0x9E3779B97F4A7C15)
        bands ^= bands >> np.uint64(31)
    return bands


def compare_texts(one: Signatures, others: Signatures) -> NDArray[np.float64]:
    """The estimated Jaccard index of the shingles of texts, by signatures (120,) and (n, 120): (n,)."""
    return (others == one).mean(axis=1)


def find_near(
    signatures: Signatures,
    bands: Bands,
    compare: Callable[[Signatures, Signatures], NDArray[np.float64]],
    least: float,
) -> NearCopies:
    """The near copies of signatures (n, …) by their bands (n, bands); the first of several is kept.

    ``least``: the similarity from which on two are near copies.
    """
    count = len(signatures)
    original, similarity = np.arange(count), np.ones(count)
    shared = np.zeros(bands.shape, dtype=np.bool_)  # whether another sample has this value of the band
    for band in range(bands.shape[1]):
        _, inverse, counts = np.unique(bands[:, band], return_inverse=True, return_counts=True)
        shared[:, band] = counts[inverse] > 1
    kept: dict[tuple[int, int], list[int]] = {}
    for sample in np.flatnonzero(shared.any(axis=1)).tolist():
        own = [(band, int(bands[sample, band])) for band in np.flatnonzero(shared[sample]).tolist()]
        candidates = np.array(
            sorted({other for place in own for other in kept.get(place, ())}), dtype=np.int64
        )
        if len(candidates):
            scores = compare(signatures[sample], signatures[candidates])
            best = int(scores.argmax())
            if scores[best] >= least:
                original[sample], similarity[sample] = candidates[best], scores[best]
                continue
        for place in own:
            others = kept.setdefault(place, [])
            if len(others) < MOST_KEPT:
                others.append(sample)
    return original, similarity
