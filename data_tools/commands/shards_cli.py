"""Parsers of the commands that write manifests: index, verify."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from data_tools.commands.cli import add_processes, add_storage, command, fetching_of, print_manifest
from data_tools.errors import UserError, one_line
from data_tools.storage.urls import is_remote


def add_index(commands: Any) -> None:
    parser = command(
        commands,
        "index",
        _run_index,
        "write the manifest and sidecars for anyone's tars",
        "index shards/",
    )
    parser.add_argument(
        "data", help="folder with .tar files, or its URL (s3://bucket/prefix); a glob, braces or URL of tars"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write manifest and sidecars there, not beside the tars"
    )
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
        "--crc", action=argparse.BooleanOptionalAction, default=True,
        help="read the payloads too and keep a checksum of each sample; without, the data set's identity is that of "
        "its layout only (default: --crc)",
    )  # fmt: skip
    add_processes(parser)
    add_storage(parser)


def _run_index(a: argparse.Namespace) -> int:
    from data_tools.commands.index import index
    from data_tools.dataset.foreign_indexes import export_dali, export_energon, import_energon
    from data_tools.dataset.open import open_dataset

    bad: list[tuple[str, str, str]] = []
    if a.from_index:
        manifest = import_energon(_local_folder(a.data))
    else:
        manifest, bad = index(a.data, a.output, a.crc, a.processes, fetching_of(a))
    if a.export:
        {"energon": export_energon, "dali": export_dali}[a.export](open_dataset(_local_folder(a.data)))
    print_manifest(a.output or a.data, manifest)
    if manifest.has_crc is False:
        print(f"identity: {manifest.fingerprint}, of the layout only: no CRC of the samples was taken")
    _print_bad(bad, "damaged, incomplete or left out")
    return 0


def _local_folder(data: str) -> Path:
    if not Path(data).is_dir():
        raise UserError(f"{data}: there is no such folder; give the folder that holds the .tar files")
    return Path(data)


def _print_bad(bad: list[tuple[str, str, str]], what: str = "damaged", shown: int = 20) -> None:
    if bad:
        print(f"{len(bad)} {what}:")
    for shard, name, reason in bad[:shown]:
        print(f"  {shard}: {one_line(name) or 'the shard'}: {one_line(reason)}")
    if len(bad) > shown:
        print(f"  … and {len(bad) - shown} more")


def add_verify(commands: Any) -> None:
    parser = command(
        commands, "verify", _run_verify, "read everything once, mark bad samples so that no run reads them",
        "verify shards/",
    )  # fmt: skip
    parser.add_argument("data", help="folder with manifest.json, or its URL")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="write a manifest with the marks there, where the data cannot be written to",
    )  # fmt: skip
    parser.add_argument(
        "--exclude", type=Path, metavar="FOLDER",
        help="write there the next data set: a manifest without the bad samples, with an order of its own",
    )  # fmt: skip
    parser.add_argument("--no-decode", action="store_true", help="check bytes and checksums only")
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="write all bad samples there, one JSON a line"
    )
    add_processes(parser)
    add_storage(parser)


def _run_verify(a: argparse.Namespace) -> int:
    from data_tools.commands.verify import verify
    from data_tools.dataset.open import open_marked
    from data_tools.storage.atomic import write_atomically

    dataset = open_marked(a.data, fetching_of(a))
    manifest, bad = verify(dataset, not a.no_decode, a.processes, a.output, a.exclude)
    print_manifest(a.exclude or a.output or a.data, manifest)
    if not dataset.knows_content:
        print("no CRC was taken when this was indexed: damage that still decodes is not found")
    _print_bad(bad)
    if bad and is_remote(a.data) and not (dataset.base or a.output):
        print(f"marked beside the index of these tars, in {dataset.folder}: on this machine alone")
    if a.list is not None:
        lines = [
            json.dumps({"shard": shard, "sample": name, "reason": reason}) + "\n"
            for shard, name, reason in bad
        ]
        write_atomically(a.list, "".join(lines).encode())
    return 1 if bad else 0
