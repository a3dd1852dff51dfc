"""Parsers of the commands that make tokens: tokenizer, tokenize."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from data_tools.commands.cli import add_storage, command, fetching_of, positive
from data_tools.commands.pack.cli import add_output, run_pack
from data_tools.errors import UserError


def add_tokenizer(commands: Any) -> None:
    parser = command(
        commands, "tokenizer", _run_tokenizer, "train a byte-level BPE tokenizer on a data set's text",
        "tokenizer sample:sotu tokenizer/ --vocabulary 8192",
    )  # fmt: skip
    parser.add_argument("data", help="data set with text: folder, URL, glob or sample:NAME")
    parser.add_argument("output", type=Path, help="folder for tokenizer.json and tokenizer_config.json")
    parser.add_argument(
        "--vocabulary", type=positive, default=32768, help="number of tokens (default: 32768)"
    )
    parser.add_argument(
        "--length", type=positive, default=1024, help="the model's maximum length (default: 1024)"
    )
    add_storage(parser)


def _run_tokenizer(a: argparse.Namespace) -> int:
    from data_tools.dataset.open import open_dataset
    from data_tools.tokenizer import save_tokenizer, texts_of, train_tokenizer

    if a.output.exists() and any(a.output.iterdir()):
        raise UserError(f"{a.output}: is not empty; choose another folder")
    dataset = open_dataset(a.data, fetching=fetching_of(a))
    tokenizer = train_tokenizer(texts_of(dataset), a.vocabulary, progress=sys.stderr.isatty())
    save_tokenizer(tokenizer, a.output, a.length)
    print(f"{a.output}: {tokenizer.get_vocab_size():,} tokens")
    return 0


def add_tokenize(commands: Any) -> None:
    parser = command(
        commands, "tokenize", run_pack, "documents to token arrays, their lengths in the sidecar",
        "tokenize sample:sotu tokens/ --tokenizer tokenizer/",
    )  # fmt: skip
    parser.add_argument("data", help="data set with text: folder, URL, glob or sample:NAME")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument(
        "--ends", choices=["end", "cls-sep", "none"], default="end",
        help="append <|endoftext|> to each document, frame it with [CLS] and [SEP], or neither (default: end)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", nargs="*", default=[], metavar="EXT", help="members to carry over, such as json cls"
    )
    add_output(parser)
    add_storage(parser)
    parser.set_defaults(plan=_plan_tokenize)


def _plan_tokenize(a: argparse.Namespace) -> Any:
    from data_tools.commands.tokenize import plan_tokenize
    from data_tools.dataset.open import open_dataset

    return plan_tokenize(a.data, open_dataset(a.data, fetching=fetching_of(a)), a.tokenizer, a.ends, a.keep)
