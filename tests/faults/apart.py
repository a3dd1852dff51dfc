"""`pretrain` on ranks that do not share a disk: each works in a folder of its own below PLACE.

Example: torchrun --nproc-per-node 2 -m tests.faults.apart place at_start mae_digits run_dir=run
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pretrain.checkpoint.targets
from pretrain.__main__ import main

if __name__ == "__main__":
    _, place, found, *arguments = sys.argv
    own = Path(place, f"host_{os.environ['RANK']}")
    own.mkdir(parents=True, exist_ok=True)
    os.chdir(own)
    if found == "late":  # as if the disk was lost after the start
        pretrain.checkpoint.targets.refuse_unshared = lambda *_: None  # type: ignore[assignment]
    sys.exit(main(arguments))
