"""How a store is opened: what cannot stand in a URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_S3 = {
    "endpoint_url": "endpoint_url",
    "profile": "profile",
    "requester_pays": "requester_pays",
    "anon": "anon",
}
_GCS = {"endpoint_url": "endpoint_url", "requester_pays": "requester_pays"}
_AZURE = {"anon": "anon"}
KNOWN = {
    "s3": _S3, "s3a": _S3, "gs": _GCS, "gcs": _GCS,
    "az": _AZURE, "abfs": _AZURE, "abfss": _AZURE, "adl": _AZURE,
}  # fmt: skip
"""By scheme, what the file systems of fsspec call our options; what a store has no word for is not passed on."""


@dataclass(frozen=True)
class StorageOptions:
    """One for all stores of a run; each takes what it knows."""

    endpoint_url: str | None = None
    """Of a store that speaks S3 and is not Amazon's: https://minio.example.org."""
    profile: str | None = None
    """Of the credentials in ~/.aws. A password, key or signature has no place in a recipe."""
    anon: bool = False
    """Read a public bucket without credentials."""
    requester_pays: bool = False
    """Read from buckets whose readers pay for the traffic."""
    headers: dict[str, str] = field(default_factory=dict, hash=False)
    """Sent with every HTTP request."""
    other: dict[str, Any] = field(default_factory=dict, hash=False)
    """Whatever else the fsspec file system takes, by its own names."""

    def for_filesystem(self, scheme: str) -> dict[str, Any]:
        """The keyword arguments of fsspec's file system for ``scheme``, such as s3."""
        known = {
            name: getattr(self, option)
            for option, name in KNOWN.get(scheme, {}).items()
            if getattr(self, option)
        }
        if self.anon and scheme in ("gs", "gcs"):
            known["token"] = "anon"
        return known | self.other


AS_IT_IS = StorageOptions()
"""What the environment and the URL say is enough."""
