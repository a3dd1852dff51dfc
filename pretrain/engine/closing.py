"""How a rank leaves its job: told first, and without waiting for ranks that may be gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from data_tools.errors import tell_error
from pretrain.engine.base import Engine


@contextmanager
def closing_engine(engine: Engine) -> Iterator[None]:
    """Close the engine afterwards. After an error in a job of several ranks it stays open, and the error is told.

    A rank may have failed alone: NCCL would wait for the others in closing, for as long as a collective may take. The
    command then ends with `leave_job`.
    """
    try:
        yield
    except BaseException as error:
        if engine.world.size > 1:
            tell_error(error)
        else:
            engine.close()
        raise
    engine.close()


def leave_job(status: int) -> None:
    """End this process at once where it failed as one of several ranks: no thread and no group is waited for."""
    if status and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
