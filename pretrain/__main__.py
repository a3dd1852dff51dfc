"""`torchrun -m pretrain RECIPE [key=value …]`; the other commands are in `commands.py`."""

from __future__ import annotations

import argparse
import os
import sys

from data_tools.errors import UserError, run_cli
from pretrain.commands import COMMANDS, quiet_libraries
from pretrain.guards.preemption import leave_stop_mark, read_stop_mark

EPILOG = """examples:
  python -m pretrain list
  python -m pretrain mae_digits
  python -m pretrain mae_digits train.steps=200 run_dir=runs/short
  python -m pretrain mae_digits optimizer.lr=1e-3 --print-config
  python -m pretrain mae_digits --dry-run
  python -m pretrain mae_digits train.steps=4000 --allow-changes train.steps
  torchrun --nproc-per-node 2 -m pretrain mae_digits
  torchrun --nproc-per-node 8 -m pretrain mae_digits engine=fsdp
  python -m pretrain mae_images encoder.from_pretrained=vit-release encoder.image_size=384
  deepspeed --num_gpus 8 --module pretrain mae_digits engine=deepspeed deepspeed.stage=2
  python -m pretrain release runs/mae_digits
  python -m pretrain average runs/mae_digits --last 5
  python -m pretrain report runs/mae_digits
  python -m pretrain replay runs/mae_digits --step 120
  python -m pretrain batch runs/mae_digits --step 120
  python -m pretrain loss-compare runs/before runs/after
  python -m pretrain embed runs/mae_digits data=shards/ --labels label
  python -m pretrain compare data=shards/ label=label --objectives mae,autoencoder --budget 20min
  python -m pretrain lr-find mae_digits
  python -m pretrain batch-find mae_digits
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m pretrain` and of `masquerade pretrain`."""
    argv = sys.argv[1:] if argv is None else argv
    command = COMMANDS.get(argv[0]) if argv else None
    status = run_cli(lambda: command(argv[1:]) if command else pretrain(argv))
    if status:
        from pretrain.engine.closing import leave_job

        leave_job(status)
    return status


def pretrain(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain",
        description="Pretrain an encoder as a recipe says. Started again, a run goes on from its newest checkpoint.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipe",
        help="a name from pretrain/recipes, or a YAML file; or list; or release | average | report | replay | batch | "
        "embed RUN, loss-compare A B, lr-find | batch-find RECIPE",
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="settings that replace the recipe's"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on from the run's newest checkpoint, here or in checkpoint.targets, else start from init_from, "
        "else from the seed; never: refuse where there are checkpoints",
    )
    parser.add_argument(
        "--allow-changes",
        metavar="KEYS",
        help="settings that may be others than those of the run so far, e.g. train.steps,optimizer.lr or optimizer.*; "
        "the change is recorded in metrics.jsonl",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="take two steps, a picture and a probe, say how long and how much memory they took, and write nothing",
    )
    parser.add_argument(
        "--stop-at",
        type=int,
        metavar="STEP",
        help="save after this step and stop, with exit status 0; the schedule is that of the whole run, and the same "
        "command without this option goes on",
    )
    # The `deepspeed` launcher says this beside LOCAL_RANK, which is what counts.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(argv)  # options may stand anywhere

    status = read_stop_mark()
    if status is not None:  # the ranks before these have saved, and said so
        return status
    quiet_libraries()
    from pretrain.config.load import load_config
    from pretrain.config.show import describe_config, format_config
    from pretrain.run.changes import parse_changes

    if arguments.stop_at is not None and arguments.stop_at < 1:
        raise UserError(f"--stop-at {arguments.stop_at}: the first step is 1")
    allowed = parse_changes(arguments.allow_changes)
    config, origin = load_config(arguments.recipe, arguments.overrides)
    if arguments.print_config:
        print(format_config(config, origin))
        return 0
    is_main_process = os.environ.get("RANK", "0") == "0"
    if is_main_process:
        print(describe_config(config, origin, arguments.recipe), flush=True)
    if arguments.dry_run:
        from pretrain.run.dry_run import dry_run

        found = dry_run(config)
        if is_main_process:
            print(found.describe(config))
        return 0
    from pretrain.checkpoint.targets import refuse_checkpoints
    from pretrain.run.run import run

    if arguments.resume == "never":
        refuse_checkpoints(config)
    result = run(config, allowed, arguments.stop_at)
    if not result.finished and result.status == 0:
        if is_main_process:
            print(
                f"stopped after step {result.steps} (--stop-at), and saved; without it, the same command goes on"
            )
        return 0
    if not result.finished:
        if is_main_process:
            print(
                f"stopped as asked, after step {result.steps}, and saved; the same command goes on from there"
                if result.steps
                else "stopped as asked, before the first step; the same command begins anew"
            )
        leave_stop_mark(result.status)
        return result.status
    if is_main_process:
        result_in = result.folder / "report.html" if config.tracking.report else result.folder
        print(f"done: {result.steps} steps, {'report' if config.tracking.report else 'all'} in {result_in}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
