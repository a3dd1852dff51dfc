"""What is done with a run or a recipe beside training it: `python -m pretrain COMMAND …`, one function a command."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from data_tools.errors import UserError

AVERAGED = 5
"""Checkpoints that `average` takes unless told otherwise."""
STEPS = 20
"""That `loss-compare --recipe` trains unless told otherwise."""


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


def average(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain average",
        description="Release the mean of a run's newest checkpoints: a folder that transformers.AutoModel opens, with "
        "a model card that says which steps it is the mean of.",
        epilog="examples:\n  python -m pretrain average runs/mae_digits --last 5\n"
        "  python -m pretrain average runs/mae_digits --steps 500,1000,1500 --out digits-encoder",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--last", type=int, metavar="N", help=f"how many of the newest (default: {AVERAGED})")
    parser.add_argument("--steps", metavar="A,B,C", help="those of these steps instead")
    parser.add_argument("--out", type=Path, help="default: RUN/average")
    arguments = parser.parse_args(argv)
    if arguments.steps is not None and arguments.last is not None:
        raise UserError("--last and --steps: say which checkpoints by one of them")
    steps = parse_steps(arguments.steps) if arguments.steps is not None else []
    quiet_libraries()
    from pretrain.release.average import average_run

    last = AVERAGED if arguments.last is None else arguments.last
    trained = average_run(arguments.run, last, steps, arguments.out)
    folder = arguments.out or arguments.run / "average"
    print(
        f"released: {folder}, the mean of steps {', '.join(map(str, trained.averaged))} "
        f"(transformers.AutoModel.from_pretrained({str(folder)!r}))"
    )
    return 0


def parse_steps(text: str) -> list[int]:
    """`500,1000` as numbers."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(f"--steps {text!r}: name steps with a checkpoint each, e.g. --steps 500,1000")
    return [int(word) for word in words]


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


def lr_find(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain lr-find",
        description="Suggest a learning rate: take some steps from the run's starting weights at a rate that rises "
        "exponentially, until the loss diverges. Nothing of a run is written.",
        epilog="examples:\n  python -m pretrain lr-find mae_digits\n"
        "  torchrun --nproc-per-node 8 -m pretrain lr-find mae_images data.path=shards/ --steps 200 --out lr",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a name from pretrain/recipes, or a YAML file")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="settings of the run")
    parser.add_argument(
        "--from", type=float, default=1e-6, dest="lowest", metavar="LR", help="the first (default: 1e-6)"
    )
    parser.add_argument(
        "--to", type=float, default=10.0, dest="highest", metavar="LR", help="the last (default: 10)"
    )
    parser.add_argument("--steps", type=int, default=100, help="from the one to the other (default: 100)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for lr_find.json and lr_find.png")
    arguments = parser.parse_intermixed_args(argv)
    quiet_libraries()
    from pretrain.config.load import load_config
    from pretrain.run.lr_find import lr_find as find_rate
    from pretrain.run.lr_find import write_range_test

    config, _ = load_config(arguments.recipe, arguments.overrides)
    found = find_rate(config, arguments.lowest, arguments.highest, arguments.steps)
    if os.environ.get("RANK", "0") != "0":
        return 0
    print(found.describe())
    if arguments.out:
        write_range_test(found, arguments.out)
        print(f"written: {arguments.out}/lr_find.json and lr_find.png")
    return 0


def batch_find(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain batch-find",
        description="Find the largest train.micro_batch_size that fits into memory, and the fastest: sizes are doubled "
        "until one does not fit, and bisected then. Each takes some steps in processes of its own; nothing is written.",
        epilog="examples:\n  python -m pretrain batch-find mae_digits --memory-gib 4\n"
        "  python -m pretrain batch-find mae_images data.path=shards/ engine=fsdp --ranks 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a name from pretrain/recipes, or a YAML file")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="settings of the run")
    parser.add_argument(
        "--ranks", type=int, default=1, help="that share the global batch, all of this machine"
    )
    parser.add_argument(
        "--memory-gib",
        type=float,
        metavar="GIB",
        help="that each rank may use (default: all of its GPU; without GPUs, its part of the host's free memory)",
    )
    arguments = parser.parse_intermixed_args(argv)
    quiet_libraries()
    from pretrain.config.load import load_config
    from pretrain.run.batch_find import batch_find as find_size

    config, _ = load_config(arguments.recipe, arguments.overrides)
    share = config.train.global_batch_size // max(1, arguments.ranks)
    found = find_size(config, arguments.ranks, arguments.memory_gib, lambda line: print(line, flush=True))
    print(found.describe(share))
    return 0


def compare(argv: list[str]) -> int:
    quiet_libraries()
    from pretrain.compare.command import main

    return main(argv)


def quiet_libraries() -> None:
    """No advice and no progress bars of libraries between our own lines; never a look at a model hub."""
    for key, value in {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                       "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "KINETO_LOG_LEVEL": "5"}.items():  # fmt: skip
        os.environ.setdefault(key, value)


COMMANDS = {
    "list": list_everything,
    "release": release,
    "average": average,
    "report": report,
    "replay": replay,
    "batch": batch,
    "loss-compare": loss_compare,
    "embed": embed,
    "compare": compare,
    "lr-find": lr_find,
    "batch-find": batch_find,
}
"""By the word that stands in a recipe's place."""
