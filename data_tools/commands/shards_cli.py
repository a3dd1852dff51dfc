"""Parsers of the commands that write manifests: index, verify, split."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from data_tools.commands.cli import add_processes, command, print_manifest
from data_tools.errors import UserError


def add_index(commands: Any) -> None:
    parser = command(
        commands,
        "index",
        _run_index,
        "write the manifest and sidecars for anyone's tars",
        "index shards/ --crc",
    )
    parser.add_argument("folder", type=Path, help="folder with .tar files")
    parser.add_argument(
        "--import",
        dest="from_index",
        choices=["energon"],
        help="take over Energon's index instead of scanning",
    )
    parser.add_argument(
        "--export", choices=["energon", "dali"], help="write this index too, beside the shards"
    )
    parser.add_argument(
        "--crc", action="store_true", help="read the payloads too and keep a checksum of each sample"
    )
    add_processes(parser)


def _run_index(a: argparse.Namespace) -> int:
    from data_tools.dataset.index import index_shards
    from data_tools.dataset.open import open_dataset
    from data_tools.dataset.shard_files import find_shards
    from data_tools.formats.foreign_indexes import export_dali, export_energon, import_energon

    if not a.folder.is_dir():
        raise UserError(f"{a.folder}: there is no such folder; give the folder that holds the .tar files")
    bad: list[tuple[str, str, str]] = []
    if a.from_index:
        manifest = import_energon(a.folder)
    else:
        shards = find_shards(a.folder, gzipped=False)
        for path, why in shards.left_out:
            print(f"left out: {path}: {why}")
        manifest, bad = index_shards(shards.used, a.folder, a.crc, a.processes)
    if a.export:
        {"energon": export_energon, "dali": export_dali}[a.export](open_dataset(a.folder))
    print_manifest(a.folder, manifest)
    _print_bad(bad, "damaged, incomplete or left out")
    return 0


def _print_bad(bad: list[tuple[str, str, str]], what: str = "damaged", shown: int = 20) -> None:
    if bad:
        print(f"{len(bad)} {what}:")
    for shard, name, reason in bad[:shown]:
        print(f"  {shard}: {name or 'the shard'}: {reason}")
    if len(bad) > shown:
        print(f"  … and {len(bad) - shown} more")


def add_verify(commands: Any) -> None:
    parser = command(
        commands, "verify", _run_verify, "read everything once, mark bad samples so that no run sees them",
        "verify shards/",
    )  # fmt: skip
    parser.add_argument("folder", help="folder with manifest.json")
    parser.add_argument("--no-decode", action="store_true", help="check bytes and checksums only")
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="write all bad samples there, one JSON a line"
    )
    add_processes(parser)


def _run_verify(a: argparse.Namespace) -> int:
    from data_tools.commands.verify import verify
    from data_tools.dataset.open import open_marked
    from data_tools.storage.atomic import write_atomically

    manifest, bad = verify(open_marked(Path(a.folder)), not a.no_decode, a.processes)
    print_manifest(Path(a.folder), manifest)
    _print_bad(bad)
    if a.list is not None:
        lines = [
            json.dumps({"shard": shard, "sample": name, "reason": reason}) + "\n"
            for shard, name, reason in bad
        ]
        write_atomically(a.list, "".join(lines).encode())
    return 1 if bad else 0


def add_split(commands: Any) -> None:
    parser = command(
        commands, "split", _run_split, "hold samples out by a hash of their key; nothing is copied",
        "split shards/ train/ test/ --fraction 0.1",
    )  # fmt: skip
    parser.add_argument("data", help="folder with manifest.json, or sample:NAME")
    parser.add_argument("train", type=Path, help="new folder for the larger part's manifest")
    parser.add_argument("test", type=Path, help="new folder for the held-out part's manifest")
    parser.add_argument("--fraction", type=float, default=0.1, help="held out (default: 0.1)")
    parser.add_argument("--salt", default="", help="another word, another split")


def _run_split(a: argparse.Namespace) -> int:
    from data_tools.commands.split import split
    from data_tools.dataset.open import open_dataset

    train, test = split(open_dataset(a.data), a.fraction, a.train, a.test, a.salt)
    print(f"{a.train}: {train:,} samples\n{a.test}: {test:,} samples")
    return 0
