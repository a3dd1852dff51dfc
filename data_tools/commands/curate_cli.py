"""Parsers of the commands that make data sets of data sets, no shard copied: split, select, dedup, merge, append."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_tools.commands.cli import add_processes, add_storage, command, fetching_of, print_manifest

_DATA = "data set: folder with manifest.json, or its URL; sample:NAME"


def add_split(commands: Any) -> None:
    parser = command(
        commands, "split", _run_split,
        "hold samples out by a hash of their key, exact copies together; nothing is copied",
        "split shards/ train/ test/ --fraction 0.1 --stratify label",
    )  # fmt: skip
    parser.add_argument("data", help=_DATA)
    parser.add_argument("train", type=Path, help="new folder for the larger part's manifest")
    parser.add_argument("test", type=Path, help="new folder for the held-out part's manifest")
    parser.add_argument("--fraction", type=float, default=0.1, help="held out (default: 0.1)")
    parser.add_argument("--salt", default="", help="another word, another split")
    parser.add_argument(
        "--by", metavar="EXPR", help="samples of one value on one side, such as a JSON field: --by speaker"
    )
    parser.add_argument(
        "--by-key",
        metavar="REGEX",
        help="samples on one side whose keys have that in common: --by-key '^[^_]+'",
    )
    parser.add_argument(
        "--stratify", metavar="EXPR", help="the same fraction of each value: --stratify label"
    )
    parser.add_argument(
        "--keys-only", action="store_true",
        help="read headers, no payloads: quick, but exact copies may stand on both sides",
    )  # fmt: skip
    add_processes(parser)
    add_storage(parser)


def _run_split(a: argparse.Namespace) -> int:
    from data_tools.commands.split import split
    from data_tools.dataset.open import open_dataset

    dataset = open_dataset(a.data, fetching=fetching_of(a))
    parts = split(
        dataset, a.fraction, a.train, a.test, a.salt, a.by, a.by_key, a.stratify, a.keys_only, a.processes
    )
    print(f"{a.train}: {parts.train:,} samples\n{a.test}: {parts.test:,} samples")
    for note in parts.notes:
        print(note)
    return 0


def add_select(commands: Any) -> None:
    parser = command(
        commands, "select", _run_select, "the samples for which an expression holds, as a data set; nothing is copied",
        "select shards/ recent/ --where 'year >= 1900 and label in (1, 2)'",
    )  # fmt: skip
    parser.add_argument("data", help=_DATA)
    parser.add_argument("output", type=Path, help="new folder for the manifest")
    parser.add_argument(
        "--where", metavar="EXPR", required=True,
        help="over the JSON fields, key, label, class_name, shard, size (bytes), length: comparisons, and, or, not, "
        "in, arithmetic",
    )  # fmt: skip
    add_processes(parser)
    add_storage(parser)


def _run_select(a: argparse.Namespace) -> int:
    from data_tools.commands.select import select
    from data_tools.dataset.open import open_dataset

    dataset = open_dataset(a.data, fetching=fetching_of(a))
    manifest, unread = select(dataset, a.where, a.output, a.processes)
    print(f"{a.output}: {manifest.counts.sum():,} of {len(dataset):,} samples")
    if unread:
        print(f"{unread:,} damaged samples are left out")
    return 0


def add_dedup(commands: Any) -> None:
    parser = command(
        commands, "dedup", _run_dedup, "leave out exact copies, and near ones where asked for; nothing is copied",
        "dedup shards/ unique/ --near image",
    )  # fmt: skip
    parser.add_argument("data", help=_DATA)
    parser.add_argument(
        "output", type=Path, help="new folder for the manifest, and for the list of what was dropped"
    )
    parser.add_argument(
        "--near", choices=["image", "text"],
        help="near copies too: pictures that were resized or compressed anew, texts that differ in a few words",
    )  # fmt: skip
    parser.add_argument(
        "--similarity", type=float,
        help="from which on two are near copies (default: 0.9 of pictures, 0.8 of texts; 1 is the same)",
    )  # fmt: skip
    add_processes(parser)
    add_storage(parser)


def _run_dedup(a: argparse.Namespace) -> int:
    from data_tools.commands.dedup import DROPPED, dedup
    from data_tools.dataset.open import open_dataset

    dataset = open_dataset(a.data, fetching=fetching_of(a))
    done = dedup(dataset, a.output, a.near, a.similarity, a.processes)
    print(f"{a.output}: {done.manifest.counts.sum():,} of {len(dataset):,} samples")
    near = f", {done.near:,} near ones" if a.near else ""
    print(f"dropped {done.exact:,} exact copies{near}; listed in {a.output / DROPPED}")
    if done.damaged:
        print(f"{done.damaged:,} damaged samples are left out")
    return 0


def add_merge(commands: Any) -> None:
    parser = command(
        commands, "merge", _run_merge, "several data sets of one kind as one; nothing is copied",
        "merge shards/a shards/b all/",
    )  # fmt: skip
    parser.add_argument("data", nargs="+", help=_DATA)
    parser.add_argument("output", type=Path, help="new folder for the manifest")
    add_storage(parser)


def _run_merge(a: argparse.Namespace) -> int:
    from data_tools.commands.merge import merge
    from data_tools.dataset.open import open_dataset

    fetching = fetching_of(a)
    print_manifest(a.output, merge([open_dataset(data, fetching=fetching) for data in a.data], a.output))
    return 0


def add_append(commands: Any) -> None:
    parser = command(
        commands, "append", _run_append, "add new shards to a data set's manifest; the old ones are not read again",
        "append shards/ new/*.tar",
    )  # fmt: skip
    parser.add_argument("folder", type=Path, help="folder with manifest.json")
    parser.add_argument(
        "data",
        nargs="*",
        help="data sets or tars to add (default: the tars in the folder that its manifest lacks)",
    )
    add_storage(parser)


def _run_append(a: argparse.Namespace) -> int:
    from data_tools.commands.merge import append

    manifest, added = append(a.folder, a.data, fetching_of(a))
    print_manifest(a.folder, manifest)
    print(f"{added:,} shards are new; runs over the data of before go on with those only")
    return 0
