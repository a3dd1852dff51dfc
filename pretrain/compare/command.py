"""The command line of `python -m pretrain compare`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from data_tools.errors import UserError
from data_tools.storage.objects import redacted
from pretrain.compare.jobs import Jobs, StoppedError
from pretrain.compare.options import Options, check_options, parse_duration
from pretrain.guards.preemption import StopRequest

EPILOG = """examples:
  python -m pretrain compare data=shards/ label=label --objectives mae,simmim,autoencoder --budget 20min
  python -m pretrain compare data=shards/ label=json.kind --group patient --encoder vit-folder --budget 2h
  python -m pretrain compare data=shards/ --objectives mae,mine=my.yaml --set mae:optimizer.lr=1e-3

Started again, the same command goes on where it was stopped."""


def main(argv: list[str]) -> int:
    """Compare, and print the table; the exit status."""
    options = read_options(argv)
    from pretrain.compare.compare import compare  # which imports what trains

    began = time.monotonic()

    def say(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(f"{minutes:3}:{seconds:02}  {line}", flush=True)

    with StopRequest() as stop:
        try:
            lines = compare(options, Jobs(options.out, options.ranks, stop, say), say)
        except StoppedError:
            print("stopped as asked; the same command goes on from there", flush=True)
            return stop.status
    print("\n" + "\n".join(lines))
    return 0


def read_options(argv: list[str]) -> Options:
    """Parse and check; raises a `UserError` for what cannot be."""
    values = vars(build_parser().parse_intermixed_args(argv))
    for text in values.pop("given"):
        key, _, value = text.partition("=")
        if key not in ("data", "label") or not value:
            raise UserError(
                f"{text}: say data=PATH and label=FIELD; settings of runs are written --set name:key=value"
            )
        values[key] = value
    if "data" not in values:
        raise UserError("data: missing; name your labelled samples, data=shards/")
    name = Path(redacted(values["data"]).rstrip("/").replace(":", "_")).name or "data"
    values["out"] = values["out"] or Path("runs") / f"compare_{name}"
    values["objectives"] = tuple(filter(None, values["objectives"].split(",")))
    options = Options(
        **{**values, "budget": parse_duration(values["budget"]), "settings": tuple(values["settings"])}
    )
    check_options(options)
    return options


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain compare",
        description="Which objective pays on my data? Trains each for the same time, stops the worse half after each "
        "part of it, and compares the rest with training from scratch, the raw input, an untrained encoder and your "
        "own, by accuracy at few labels. Ends with a table, a picture and the winner's command.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("given", nargs="*", metavar="data=PATH label=FIELD", help="label: label (default), or json.NAME")
    add("--objectives", default="", metavar="LIST", help="names, or name=recipe.yaml (default: all that can)")
    add("--budget", default="20min", help="of everything: 90s, 20min, 2h (default: 20min)")
    add("--set", action="append", default=[], dest="settings", metavar="NAME:KEY=VALUE",
        help="a setting of one candidate, of all, or of finetune; may be said several times")  # fmt: skip
    add("--encoder", type=Path, help="a release or a folder of transformers: as it is, and continued from")
    add("--labels", type=int, default=10, dest="shots", metavar="N", help="labels a class (default: 10)")
    add("--draws", type=int, default=5, metavar="N", help="of the labels, for fine-tuning (default: 5)")
    add("--group", metavar="EXPR", help="samples of one value are never torn apart: a JSON field, patient")
    add("--group-key", metavar="REGEX", help="the same by what is common to their keys: '^[^_]+'")
    add("--nproc", type=int, default=1, dest="ranks", metavar="N",
        help="processes that share each run, by torchrun (default: 1)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the split and of every run (default: 0)")
    add("--out", type=Path, help="a folder (default: runs/compare_<data>)")
    return parser
