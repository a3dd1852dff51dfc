"""A file system for fsspec, `bad://…`, that stands in memory and misbehaves on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class BadFileSystem(MemoryFileSystem):
    """`written` and `deleted` are what happened, in order; `before_put` may wait, or raise."""

    protocol = "bad"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    written: ClassVar[list[str]] = []
    deleted: ClassVar[list[str]] = []
    before_put: ClassVar[Callable[[str], None]] = staticmethod(lambda _: None)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("bad://"))

    @classmethod
    def reset(cls):
        cls.store.clear()
        cls.written.clear()
        cls.deleted.clear()
        cls.pseudo_dirs[:] = [""]
        cls.before_put = staticmethod(lambda _: None)

    def put_file(self, lpath, rpath, **options):
        type(self).before_put(rpath)
        super().put_file(lpath, rpath, **options)
        self.written.append(rpath)

    def rm(self, path, **options):
        super().rm(path, **options)
        self.deleted.append(path)


fsspec.register_implementation("bad", BadFileSystem, clobber=True)
