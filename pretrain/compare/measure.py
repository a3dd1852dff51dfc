"""`python -m pretrain.compare.measure FILE RECIPE`: some steps of a recipe, and how long each took, as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from data_tools.errors import run_cli
from data_tools.storage.atomic import write_atomically

STEPS = 10
WARMING_UP = 2
"""The first steps allocate, compile and fill queues, and are left out."""


def measure(argv: list[str]) -> int:
    from pretrain.commands import quiet_libraries

    quiet_libraries()
    from pretrain.config.load import load_config
    from pretrain.run.dry_run import dry_run

    target, recipe = argv
    found = dry_run(load_config(recipe, [])[0], STEPS, beside=False)
    if os.environ.get("RANK", "0") == "0":
        steady = found.seconds[WARMING_UP:]
        values = {
            "step": sum(steady) / len(steady),
            "steps": sum(found.seconds),
            "parameters": found.parameters,
        }
        write_atomically(Path(target), json.dumps(values, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(lambda: measure(sys.argv[1:])))
