"""`torchrun -m pretrain RECIPE [key=value …]`, and what is done with a run afterwards."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from data_tools.errors import UserError, run_cli
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
  python -m pretrain report runs/mae_digits
  python -m pretrain replay runs/mae_digits --step 120
  python -m pretrain batch runs/mae_digits --step 120
  python -m pretrain loss-compare runs/before runs/after
  python -m pretrain embed runs/mae_digits data=shards/ --labels label
"""
STEPS = 20
"""That `loss-compare --recipe` trains unless told otherwise."""


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m pretrain` and of `masquerade pretrain`."""
    argv = sys.argv[1:] if argv is None else argv
    commands = {
        "list": list_everything,
        "release": release,
        "report": report,
        "replay": replay,
        "batch": batch,
        "loss-compare": loss_compare,
        "embed": embed,
    }
    command = commands.get(argv[0]) if argv else None
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
        help="a name from pretrain/recipes, or a YAML file; or list; or release | report | replay | batch | embed "
        "RUN, loss-compare A B",
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
    result = run(config, allowed)
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


def list_everything(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain list",
        description="Say which objectives, encoders and recipes there are, what each needs and gives, and which "
        "objective runs on which encoder.",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON; of a pair, why it cannot be")
    arguments = parser.parse_args(argv)
    quiet_libraries()
    from pretrain.run.listing import format_list, list_all

    found = list_all()
    print(json.dumps(found, indent=1, ensure_ascii=False) if arguments.json else format_list(found))
    return 0


def release(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain release",
        description="Write a run's encoder as a folder that transformers.AutoModel opens, with a model card.",
        epilog="example:\n  python -m pretrain release runs/mae_digits --out digits-encoder",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--out", type=Path, help="default: RUN/release")
    parser.add_argument(
        "--best",
        action="store_true",
        help="the checkpoint that checkpoint.keep_best kept, not the newest one",
    )
    arguments = parser.parse_args(argv)
    quiet_libraries()
    from pretrain.release.release import release_run

    folder = release_run(arguments.run, arguments.out, arguments.best)
    print(f"released: {folder} (transformers.AutoModel.from_pretrained({str(folder)!r}))")
    return 0


def report(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain report",
        description="Write report.html from what a run folder holds, at any time of the run.",
        epilog="example:\n  python -m pretrain report runs/mae_digits",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    arguments = parser.parse_args(argv)
    quiet_libraries()
    from pretrain.report.report import write_report
    from pretrain.run.folder import load_run_config

    load_run_config(arguments.run)  # refuses what is not a run folder
    print(write_report(arguments.run))
    return 0


def replay(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain replay",
        description="Run one step of a run again: the same batch from the same weights. Shows each sample's loss and "
        "each parameter's gradient; all of it goes to RUN/replay, and nothing else of the run is changed.",
        epilog="examples:\n  python -m pretrain replay runs/mae_digits --step 120\n"
        "  torchrun --nproc-per-node 8 -m pretrain replay runs/mae_digits --step 120 engine=fsdp\n\n"
        "On the ranks and the engine that the run had, the step's values are the logged ones to the last bit.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--step", type=int, required=True, help="as metrics.jsonl counts: the first is 1")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="how it is run now, e.g. engine=ddp"
    )
    arguments = parser.parse_intermixed_args(argv)
    quiet_libraries()
    from pretrain.run.replay import describe
    from pretrain.run.replay import replay as replay_step

    found = replay_step(arguments.run, arguments.step, arguments.overrides)
    if os.environ.get("RANK", "0") == "0":
        print(describe(found))
        print(f"all of it: {arguments.run / 'replay' / f'step_{arguments.step}.json'}")
    return 0


def batch(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain batch",
        description="Make the batch of one step of a run again, as every rank saw it: keys, shards, shapes, arrays and "
        "pictures go to RUN/replay. Needs the run's config.yaml and its data, no checkpoint, and one process.",
        epilog="example:\n  python -m pretrain batch runs/mae_digits --step 120",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--step", type=int, required=True, help="as metrics.jsonl counts: the first is 1")
    parser.add_argument(
        "--ranks", type=int, help="that shared it; default: as many as at the run's last start"
    )
    arguments = parser.parse_args(argv)
    quiet_libraries()
    from pretrain.run.batch import describe, show_batch

    print(describe(show_batch(arguments.run, arguments.step, arguments.ranks)))
    return 0


def loss_compare(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain loss-compare",
        description="Compare what two runs logged, bit for bit: exit status 0 where they are equal, 1 where they "
        "differ, with the first step and value that does. A and B are run folders; or, with --recipe, two states of "
        "this project's code (git revisions, or folders that hold it), which train the recipe for some steps each.",
        epilog="examples:\n  python -m pretrain loss-compare runs/before runs/after\n"
        "  python -m pretrain loss-compare main HEAD --recipe mlm_sotu --steps 20 train.global_batch_size=16\n"
        "  python -m pretrain loss-compare HEAD . --recipe mae_digits",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="a run's folder, or a state of the code")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="with --recipe: settings for both"
    )
    parser.add_argument("--recipe", help="train this one by both states of the code, in one process each")
    parser.add_argument("--steps", type=int, help=f"with --recipe: how many (default: {STEPS})")
    arguments = parser.parse_intermixed_args(argv)
    from pretrain.run.loss_compare import compare_code, compare_runs

    a, b = arguments.a, arguments.b
    if arguments.recipe:
        steps = STEPS if arguments.steps is None else arguments.steps
        found = compare_code(a, b, arguments.recipe, steps, arguments.overrides)
    elif arguments.overrides or arguments.steps is not None:
        raise UserError(
            "settings and --steps are for a recipe that is trained; add --recipe, or leave them out"
        )
    else:
        found = compare_runs(Path(a), Path(b))
    print(found.describe(a, b))
    return 0 if found.equal else 1


def embed(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain embed",
        description="Write what an encoder sees in each sample of a data set: keys, labels and features, as files that "
        "pandas, DuckDB or NumPy read. Started again, only what is missing is made; under torchrun, ranks share the "
        "work, and the files are the same to the last bit.",
        epilog="examples:\n  python -m pretrain embed runs/mae_digits data=shards/ --labels label\n"
        "  torchrun --nproc-per-node 8 -m pretrain embed vit-folder data=shards/ --format npz --features tokens",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("encoder", type=Path, help="a run, a release, or a folder of transformers")
    parser.add_argument("data", help="data=PATH: shards, their folder, or a URL")
    parser.add_argument("--out", type=Path, help="a folder (default: ENCODER/embeddings)")
    parser.add_argument("--format", choices=("parquet", "npz", "csv"), default="parquet")
    parser.add_argument(
        "--features",
        choices=("pooled", "tokens"),
        default="pooled",
        help="one vector a sample, or one a token",
    )
    parser.add_argument(
        "--labels", default="", metavar="FIELDS", help="to write beside them: label,json.party"
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--part-samples", type=int, default=4096, help="samples in one file (default: 4096)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--workers", type=int, default=2, help="threads that read ahead (default: 2)")
    arguments = parser.parse_intermixed_args(argv)
    key, _, data = arguments.data.partition("=")
    if key != "data" or not data:
        raise UserError(f"{arguments.data}: say data=PATH")
    quiet_libraries()
    from pretrain.evaluation.embed import EmbedOptions, embed_dataset

    out = arguments.out or arguments.encoder / "embeddings"
    options = EmbedOptions(
        arguments.encoder, data, out, arguments.format, arguments.features == "tokens",
        tuple(filter(None, arguments.labels.split(","))), arguments.batch_size, arguments.part_samples,
        arguments.bf16, arguments.workers,
    )  # fmt: skip
    written, damaged = embed_dataset(options, lambda line: print(line, flush=True))
    for line in damaged:
        print(f"left out: {line}", file=sys.stderr)
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    left_out = f"; {len(damaged)} damaged samples are left out" if damaged else ""
    print(f"{rank}{written} parts written to {out}{left_out}")
    return 0


def quiet_libraries() -> None:
    """No advice and no progress bars of libraries between our own lines; never a look at a model hub."""
    for key, value in {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                       "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "KINETO_LOG_LEVEL": "5"}.items():  # fmt: skip
        os.environ.setdefault(key, value)


if __name__ == "__main__":
    sys.exit(main())
