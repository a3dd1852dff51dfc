"""What the commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.formats.manifest import Manifest
from data_tools.storage.atomic import describe_bytes
from data_tools.storage.urls import redacted

if TYPE_CHECKING:
    from data_tools.storage.segments import FetchOptions

Parser = argparse.ArgumentParser
Command = Callable[[argparse.Namespace], int]


def command(commands: Any, name: str, run: Command, help_: str, example: str) -> Parser:
    parser: Parser = commands.add_parser(
        name,
        help=help_,
        description=help_[0].upper() + help_[1:] + ".",
        epilog=f"example: python -m data_tools {example}",
    )
    parser.set_defaults(run=run)
    return parser


def add_processes(parser: Parser) -> None:
    parser.add_argument("--processes", type=positive, help="worker processes (default: one a core)")


def add_storage(parser: Parser) -> None:
    """The option that says how remote data are reached; `fetching_of` reads it."""
    parser.add_argument(
        "--storage", action="append", default=[], metavar="KEY=VALUE",
        help="for remote data: a key of a recipe's data.storage, such as cache_folder=/scratch/me or "
        "options.endpoint_url=https://minio.example.org, or a YAML file of them; give it as often as need be",
    )  # fmt: skip


def fetching_of(arguments: argparse.Namespace) -> FetchOptions:
    """How remote data are read, as ``--storage`` says; raises UserError for what is no such key."""
    from data_tools.storage.settings import read_settings

    return read_settings(arguments.storage).fetching


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def print_manifest(folder: Path | str, manifest: Manifest) -> None:
    size = describe_bytes(int(manifest.bytes.sum()))
    print(
        f"{redacted(str(folder))}: {manifest.counts.sum():,} samples in {len(manifest.urls)} shards, {size}"
    )
