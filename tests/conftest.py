"""Shared by all tests: a cache of their own, no network, few threads."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Embedded data are unpacked into a folder of this session, never the user's."""
    os.environ["MASQUERADE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
