"""Parsers of the commands that look at data: stats, show, bench."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

from data_tools.commands.cli import add_processes, add_storage, command, fetching_of, positive
from data_tools.errors import UserError, one_line
from data_tools.storage.urls import redacted

SHOWN = 20
"""Keys and groups of them that are printed; `--json` has them all."""


def add_stats(commands: Any) -> None:
    parser = command(
        commands,
        "stats",
        _run_stats,
        "counts, sizes, lengths, labels, channels, duplicates",
        "stats sample:digits",
    )
    parser.add_argument("data", help="data set: folder, URL, glob or sample:NAME")
    parser.add_argument("--no-decode", action="store_true", help="leave out what needs pixels or text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there too")
    add_processes(parser)
    add_storage(parser)


def _run_stats(a: argparse.Namespace) -> int:
    from data_tools.commands.stats import statistics
    from data_tools.dataset.open import open_dataset
    from data_tools.storage.atomic import write_atomically

    summary = statistics(open_dataset(a.data, fetching=fetching_of(a)), not a.no_decode, a.processes)
    for name, value in summary.items():
        if value not in ({}, []):
            print(f"{name:12s} {_line(value)}")
    if a.json is not None:
        write_atomically(a.json, json.dumps(summary, indent=1).encode())
    return 0


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{one_line(str(k))} {_line(v)}" for k, v in value.items())
    if isinstance(value, list):
        more = f", … and {len(value) - SHOWN:,} more" if len(value) > SHOWN else ""
        return "[" + ", ".join(map(_line, value[:SHOWN])) + more + "]"
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else one_line(str(value))
    )


def add_show(commands: Any) -> None:
    parser = command(
        commands, "show", _run_show, "a contact sheet of images and spectrograms, excerpts of text",
        "show sample:digits --output digits.png",
    )  # fmt: skip
    parser.add_argument("data", help="data set: folder, URL, glob or sample:NAME")
    parser.add_argument(
        "--output", type=Path, default=Path("contact_sheet.png"), help="PNG (default: contact_sheet.png)"
    )
    parser.add_argument("--count", type=positive, default=48, help="samples (default: 48)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other samples")
    add_storage(parser)


def _run_show(a: argparse.Namespace) -> int:
    from PIL import Image

    from data_tools.commands.show import contact_sheet, excerpt
    from data_tools.dataset.open import open_dataset
    from data_tools.storage.atomic import write_atomically
    from data_tools.stream.samples import Stream

    dataset = open_dataset(a.data, fetching=fetching_of(a))
    stream = Stream(dataset, a.seed)
    samples = [stream.sample(position) for position in range(min(a.count, len(dataset)))]
    classes = dataset.manifest.about.get("classes")
    sheet = contact_sheet(samples, classes)
    if sheet is not None:
        kind = Image.registered_extensions().get(a.output.suffix.lower())
        if kind not in Image.SAVE:
            raise UserError(f"--output {a.output}: not a picture's name; end it in .png or .jpg")
        picture = io.BytesIO()
        sheet.save(picture, kind)
        write_atomically(a.output, picture.getvalue())
        print(f"{a.output}: {len(samples)} of {len(dataset):,} samples")
    else:
        print("\n".join(excerpt(sample, classes) for sample in samples))
    return 0


def add_bench(commands: Any) -> None:
    parser = command(
        commands, "bench", _run_bench, "how many samples a second machine and storage give, and the workers advised",
        "bench shards/ --seconds 20 --image-size 224",
    )  # fmt: skip
    parser.add_argument("data", help="data set: folder, URL, glob or sample:NAME")
    parser.add_argument(
        "--seconds",
        type=positive,
        default=10,
        help="measure about so long (default: 10); processes start besides",
    )
    parser.add_argument("--batch-size", type=positive, default=64, help="samples (default: 64)")
    parser.add_argument(
        "--image-size",
        type=positive,
        help="resize pictures to such squares, as a recipe does (default: as they are)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    add_storage(parser)


def _run_bench(a: argparse.Namespace) -> int:
    from data_tools.commands.bench import bench, describe
    from data_tools.dataset.open import open_dataset
    from data_tools.storage.atomic import write_atomically

    dataset = open_dataset(a.data, fetching=fetching_of(a))
    where = "elsewhere" if dataset.remote else "on this machine"
    print(
        f"{redacted(a.data)}: {len(dataset):,} samples of {dataset.sample_bytes / 1000:,.3g} kB in"
        f" {len(dataset.manifest.urls):,} shard(s) {where}"
    )
    found = bench(dataset, a.seconds, a.batch_size, a.image_size)
    print("\n".join(describe(found)))
    if a.json is not None:
        write_atomically(a.json, json.dumps(found.as_dict(), indent=1).encode())
    return 0
