"""What a sample holds, apart from what is said about it: two samples of the same content are exact copies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.decode.kinds import kind_of
from data_tools.storage.checksum import text_bytes

DIGEST = np.dtype("S16")
"""Of an array of content digests."""
_ABOUT = frozenset({"label", "json"})


def digest_content(members: Mapping[str, memoryview]) -> bytes:
    """16 bytes over the members (extension → payload) that are no label and no JSON, where there are others."""
    content = sorted(e for e in members if kind_of(e) not in _ABOUT) or sorted(members)
    digest = hashlib.blake2b(digest_size=16)
    for extension in content:
        digest.update(text_bytes(f"{extension}\0{len(members[extension])}\0"))
        digest.update(members[extension])
    return digest.digest()


def digest_fields(sample: Mapping[str, Any]) -> bytes:
    """The same for a decoded sample: 16 bytes over the values of its fields that are no label, no JSON and no key."""
    content = sorted(name for name in sample if name not in _ABOUT and not name.startswith("__"))
    digest = hashlib.blake2b(digest_size=16)
    for name in content or sorted(name for name in sample if not name.startswith("__")):
        value = sample[name]
        if isinstance(value, np.ndarray):
            digest.update(text_bytes(f"{name}\0{value.dtype}\0{value.shape}\0"))
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            data = value if isinstance(value, bytes) else text_bytes(str(value))
            digest.update(text_bytes(f"{name}\0{len(data)}\0") + data)
    return digest.digest()


def find_originals(digests: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """For each content digest, (n,), the index of the first that equals it: its own where it is no copy."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)
