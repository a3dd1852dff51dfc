"""A server that speaks S3, on this machine, for as long as it is wanted."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, bucket: str = "bucket") -> Iterator[Any]:
    """An empty bucket on it, which this process and those that it starts find; gives the file system."""
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0, ip_address="127.0.0.1")
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # servers of one process share what they hold
        s3fs.S3FileSystem.clear_instance_cache()  # those of another server
        s3 = s3fs.S3FileSystem()
        s3.mkdir(bucket)
        yield s3
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()  # whoever asks next must not be sent to it
