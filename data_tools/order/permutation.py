"""Keyed permutations of [0, n) in closed form, and the keys."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]

UInt64Array = NDArray[np.uint64]

ROUNDS = (
    6  # three a half; four make a Feistel network a strong pseudo-random permutation (Luby & Rackoff, 1988)
)

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: the increment of splitmix64

_MASK64 = (1 << 64) - 1


def mix(x: UInt64Array) -> UInt64Array:
    """The finaliser of splitmix64 (Steele, Lea & Flood, 2014): 64 bits in, 64 well-mixed bits out."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def derive_key(*parts: int) -> int:
    """One 64-bit key from integers such as (seed, epoch, purpose)."""
    key = 0
    for part in parts:
        value = np.array([(key + _GOLDEN * (1 + (part & _MASK64))) & _MASK64], dtype=np.uint64)
        key = int(mix(value)[0])
    return key


def permute(x: Int64Array, n: int, key: int | UInt64Array) -> Int64Array:
    """Where a keyed permutation of [0, n) sends each ``x``; ``key`` is one number or one for each element."""
    if n <= 1 or x.size == 0:
        return x.copy()
    values = x.astype(np.uint64)
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), values.shape)
    out = _feistel(values, n, keys)
    walking = np.flatnonzero(out >= n)
    while walking.size:  # fewer than half the domain lies outside [0, n), so few walk and not for long
        out[walking] = _feistel(out[walking], n, keys[walking])
        walking = walking[out[walking] >= n]
    return out.astype(np.int64)


def _feistel(values: UInt64Array, n: int, keys: UInt64Array) -> UInt64Array:
    """One pass of the alternating (unbalanced) Feistel network over the least power of two ≥ n."""
    bits = (n - 1).bit_length()
    low_bits = (bits + 1) // 2
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << (bits - low_bits)) - 1)
    high, low = values >> np.uint64(low_bits), values & low_mask
    for number in range(1, ROUNDS + 1):
        round_keys = keys + np.uint64(_GOLDEN * number & _MASK64)
        if number % 2:
            low = low ^ (mix(high + round_keys) & low_mask)
        else:
            high = high ^ (mix(low + round_keys) & high_mask)
    return (high << np.uint64(low_bits)) | low
