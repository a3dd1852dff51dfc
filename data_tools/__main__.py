"""python -m data_tools pack|tokenizer|tokenize|index|verify|stats|show|bench|split|select|dedup|merge|append"""

from __future__ import annotations

import argparse
import sys

from data_tools.commands.curate_cli import add_append, add_dedup, add_merge, add_select, add_split
from data_tools.commands.look_cli import add_bench, add_show, add_stats
from data_tools.commands.pack.cli import add_pack
from data_tools.commands.shards_cli import add_index, add_verify
from data_tools.commands.text_cli import add_tokenize, add_tokenizer
from data_tools.errors import run_cli


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m data_tools` and of `masquerade data`."""

    def run() -> int:
        arguments = _parser().parse_args(argv)
        status: int = arguments.run(arguments)
        return status

    return run_cli(run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_tools",
        description="Raw files to WebDataset shards, and a look at what is in them.",
        epilog="example: python -m data_tools pack images photos/ shards/ && python -m data_tools show shards/",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_pack(commands)
    for add in (
        add_tokenizer, add_tokenize, add_index, add_verify, add_stats, add_show, add_bench,
        add_split, add_select, add_dedup, add_merge, add_append,
    ):  # fmt: skip
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
