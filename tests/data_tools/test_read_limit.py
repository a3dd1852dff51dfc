"""A small object is read whole only where it is small."""

import pytest

from data_tools.errors import UserError
from data_tools.storage.objects import read_all


def test_an_object_that_is_no_manifest_is_refused_before_it_fills_the_memory():
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://limits/manifest.json", "wb") as file:
        file.write(bytes(1000))
    assert len(read_all("memory://limits/manifest.json", limit=1000)) == 1000
    with pytest.raises(UserError, match="has more than 999 bytes"):
        read_all("memory://limits/manifest.json", limit=999)
