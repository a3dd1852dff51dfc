"""Shares of the sources of a mixture: by their sizes and a temperature, and capped by how often one may be repeated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


def temper_weights(weights: Float64Array, sizes: Float64Array, temperature: float) -> Float64Array:
    """Weights times size to the power of ``temperature``, (sources,), summing to 1.

    0 leaves the weights alone, 1 makes shares of sizes; between them small sources have more than their size gives.
    """
    tempered = weights * (sizes / sizes.max()) ** temperature
    result: Float64Array = tempered / tempered.sum()
    return result


def cap_shares(shares: Float64Array, most: Float64Array) -> Float64Array | None:
    """Shares (sources,) of which none is above ``most``; what is cut off goes to the others in proportion to theirs.

    None where the caps together leave something over.
    """
    capped = most <= 0
    while True:
        rest = 1 - most[capped].clip(min=0).sum()
        wanted = shares[~capped].sum()
        if rest <= 1e-9:  # the caps are the shares
            return np.where(capped, most.clip(min=0), 0.0)
        if not wanted:
            return None
        given = np.where(capped, most.clip(min=0), shares / wanted * rest)
        over = ~capped & (given > most)
        if not over.any():
            return given
        capped |= over
