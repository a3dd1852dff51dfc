"""`torchrun -m finetune RECIPE encoder=RUN_OR_RELEASE [key=value …]`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, cast

from data_tools.errors import run_cli

EPILOG = """examples:
  python -m finetune digits encoder=runs/mae_digits
  torchrun --nproc-per-node 2 -m finetune digits encoder=runs/mae_digits protocol.draws=10
  python -m finetune digits encoder=runs/mae_digits/release protocol.labels_per_class=null
  python -m finetune image_classification encoder=RELEASE data.train=SHARDS data.test=SHARDS
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m finetune` and of `masquerade finetune`."""
    status = run_cli(lambda: finetune(sys.argv[1:] if argv is None else argv))
    if status:
        from pretrain.engine.closing import leave_job

        leave_job(status)
    return status


def finetune(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m finetune",
        description="Teach a pretrained encoder a task from labels, and measure it against training from scratch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a name from finetune/recipes, or a YAML file")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings that replace the recipe's; encoder= is needed",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    arguments = parser.parse_intermixed_args(argv)  # options may stand anywhere

    from pretrain.commands import quiet_libraries

    quiet_libraries()
    from finetune.config import load_config
    from pretrain.config.show import format_config, list_overrides

    config, origin = load_config(arguments.recipe, arguments.overrides)
    if arguments.print_config:
        print(format_config(cast(Any, config), origin))  # it formats any dataclass
        return 0
    from finetune.job import run

    is_main_process = os.environ.get("RANK", "0") == "0"
    if is_main_process:
        print(
            f"{arguments.recipe}: {config.task.name} → {config.folder}{list_overrides(config, origin)}",
            flush=True,
        )
    for line in run(config, lambda text: print(text, flush=True) if is_main_process else None):
        if is_main_process:
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
