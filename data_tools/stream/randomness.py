"""The random numbers of a sample: a pure function of (seed, epoch, key)."""

from __future__ import annotations

import hashlib
import threading

import numpy as np

_local = threading.local()


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator of one sample in one epoch; one generator a thread is set again rather than made anew.

    It is valid until the same thread asks for the next one.
    """
    if not hasattr(_local, "generator"):
        _local.generator = np.random.Generator(np.random.PCG64(0))
    digest = hashlib.blake2b(
        key.encode("utf-8", "surrogateescape"), digest_size=32, key=b"%d/%d" % (seed, epoch)
    )
    state, increment = (
        int.from_bytes(half, "little") for half in (digest.digest()[:16], digest.digest()[16:])
    )
    generator: np.random.Generator = _local.generator
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": increment | 1},
        "has_uint32": 0,
        "uinteger": 0,
    }
    return generator
