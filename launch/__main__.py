"""`python -m launch local …`: start jobs; this package only knows commands, run folders and exit codes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_tools.errors import run_cli
from launch.demo import MODALITIES, run_demo
from launch.local import run_processes

EPILOG = """examples:
  python -m launch local demo
  python -m launch local demo --modality text
  python -m launch local --processes 2 pretrain mae_digits train.steps=200
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m launch` and of `masquerade launch`."""
    return run_cli(lambda: launch(argv))


def launch(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Start jobs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    places = parser.add_subparsers(dest="place", required=True, metavar="local")
    local = places.add_parser(
        "local",
        help="on this machine",
        description="Start a job on this machine, one process a GPU, or as many as --processes says.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    local.add_argument("--processes", type=int, default=None, help="default: one a GPU, or 2 on a CPU")
    jobs = local.add_subparsers(dest="job", required=True, metavar="demo|pretrain|finetune")
    demo = jobs.add_parser("demo", help="the whole story on embedded real data, in minutes")
    demo.add_argument("--modality", choices=sorted(MODALITIES), default="image", help="default: image")
    demo.add_argument(
        "--out", type=Path, default=None, help="the run's folder; default: runs/demo_<modality>"
    )
    demo.add_argument(
        "--quick",
        action="store_true",
        help="every step for a moment, to see that it runs here: 8 steps of pretraining, 3 of fine-tuning on 5 labels "
        "a class, judged by 200 test samples; its numbers mean nothing",
    )
    for name in ("pretrain", "finetune"):
        job = jobs.add_parser(name, help=f"python -m {name} in every process", add_help=False)
        job.add_argument("arguments", nargs=argparse.REMAINDER)
    arguments = parser.parse_args(argv)
    if arguments.processes is not None and arguments.processes < 1:
        parser.error("--processes: at least 1")
    if arguments.job == "demo":
        return run_demo(arguments.modality, arguments.out, arguments.processes, arguments.quick)
    return run_processes(arguments.job, arguments.arguments, arguments.processes)


if __name__ == "__main__":
    sys.exit(main())
