"""What the commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_tools.formats.manifest import Manifest
from data_tools.storage.atomic import describe_bytes

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


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def print_manifest(folder: Path | str, manifest: Manifest) -> None:
    size = describe_bytes(int(manifest.bytes.sum()))
    print(f"{folder}: {manifest.counts.sum():,} samples in {len(manifest.urls)} shards, {size}")
