"""`pretrain` with MEBIBYTES more memory than it has in use when its trainer begins a method for the first time.

Example: python -m tests.faults.limited_memory 80 train_step mae_digits train.steps=4
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from pretrain.__main__ import main
from pretrain.trainer import Trainer


def limit_when(begin: str, mebibytes: int) -> None:
    goes_on = getattr(Trainer, begin)

    def limit_memory(*own):
        setattr(Trainer, begin, goes_on)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + mebibytes * 2**20,) * 2)
        return goes_on(*own)

    setattr(Trainer, begin, limit_memory)


if __name__ == "__main__":
    _, amount, method, *arguments = sys.argv
    limit_when(method, int(amount))
    sys.exit(main(arguments))
