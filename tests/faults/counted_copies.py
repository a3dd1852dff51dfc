"""`pretrain` that writes down how many bytes each rank copies for each checkpoint: `staged_RANK` in PLACE.

Example: torchrun --nproc-per-node 2 -m tests.faults.counted_copies place mae_digits
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from torch.distributed.checkpoint._state_dict_stager import StateDictStager

from pretrain.__main__ import main
from pretrain.engine.saving import count_bytes

if __name__ == "__main__":
    _, place, *arguments = sys.argv
    stage = StateDictStager.stage

    def counted(self, state):
        with Path(place, f"staged_{os.environ['RANK']}").open("a") as file:
            file.write(f"{count_bytes(state)}\n")
        return stage(self, state)

    StateDictStager.stage = counted  # type: ignore[method-assign]
    sys.exit(main(arguments))
