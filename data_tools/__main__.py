"""python -m data_tools pack|tokenizer|tokenize|index|verify|stats|show|split"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data_tools.commands.cli import add_processes, command, positive, print_manifest
from data_tools.commands.pack.cli import add_output, add_pack, run_pack
from data_tools.errors import UserError, run_cli


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
    for add in (_add_tokenizer, _add_tokenize, _add_index, _add_verify, _add_stats, _add_show, _add_split):
        add(commands)
    return parser


def _add_tokenizer(commands: Any) -> None:
    parser = command(
        commands, "tokenizer", _run_tokenizer, "train a byte-level BPE tokenizer on a data set's text",
        "tokenizer sample:sotu tokenizer/ --vocabulary 8192",
    )  # fmt: skip
    parser.add_argument("data", help="data set with text: folder, glob or sample:NAME")
    parser.add_argument("output", type=Path, help="folder for tokenizer.json and tokenizer_config.json")
    parser.add_argument(
        "--vocabulary", type=positive, default=32768, help="number of tokens (default: 32768)"
    )
    parser.add_argument(
        "--length", type=positive, default=1024, help="the model's maximum length (default: 1024)"
    )


def _run_tokenizer(a: argparse.Namespace) -> int:
    from data_tools.dataset.open import open_dataset
    from data_tools.tokenizer import save_tokenizer, texts_of, train_tokenizer

    if a.output.exists() and any(a.output.iterdir()):
        raise UserError(f"{a.output}: is not empty; choose another folder")
    tokenizer = train_tokenizer(texts_of(open_dataset(a.data)), a.vocabulary, progress=sys.stderr.isatty())
    save_tokenizer(tokenizer, a.output, a.length)
    print(f"{a.output}: {tokenizer.get_vocab_size():,} tokens")
    return 0


def _add_tokenize(commands: Any) -> None:
    parser = command(
        commands, "tokenize", run_pack, "documents to token arrays, their lengths in the sidecar",
        "tokenize sample:sotu tokens/ --tokenizer tokenizer/",
    )  # fmt: skip
    parser.add_argument("data", help="data set with text: folder, glob or sample:NAME")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument(
        "--ends", choices=["end", "cls-sep", "none"], default="end",
        help="append <|endoftext|> to each document, frame it with [CLS] and [SEP], or neither (default: end)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", nargs="*", default=[], metavar="EXT", help="members to carry over, such as json cls"
    )
    add_output(parser)
    parser.set_defaults(plan=_plan_tokenize)


def _plan_tokenize(a: argparse.Namespace) -> Any:
    from data_tools.commands.tokenize import plan_tokenize
    from data_tools.dataset.open import open_dataset

    return plan_tokenize(a.data, open_dataset(a.data), a.tokenizer, a.ends, a.keep)


# index, verify, split


def _add_index(commands: Any) -> None:
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
    from data_tools.formats.foreign_indexes import export_dali, export_energon, import_energon

    if not a.folder.is_dir():
        raise UserError(f"{a.folder}: there is no such folder; give the folder that holds the .tar files")
    bad: list[tuple[str, str, str]] = []
    if a.from_index:
        manifest = import_energon(a.folder)
    else:
        manifest, bad = index_shards(sorted(a.folder.rglob("*.tar")), a.folder, a.crc, a.processes)
    if a.export:
        {"energon": export_energon, "dali": export_dali}[a.export](open_dataset(a.folder))
    print_manifest(a.folder, manifest)
    _print_bad(bad)
    return 0


def _print_bad(bad: list[tuple[str, str, str]], shown: int = 20) -> None:
    if bad:
        print(f"{len(bad)} damaged:")
    for shard, name, reason in bad[:shown]:
        print(f"  {shard}: {name or 'the shard'}: {reason}")
    if len(bad) > shown:
        print(f"  … and {len(bad) - shown} more")


def _add_verify(commands: Any) -> None:
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


def _add_split(commands: Any) -> None:
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


# stats, show


def _add_stats(commands: Any) -> None:
    parser = command(
        commands,
        "stats",
        _run_stats,
        "counts, sizes, lengths, labels, channels, duplicates",
        "stats sample:digits",
    )
    parser.add_argument("data", help="data set: folder, glob or sample:NAME")
    parser.add_argument("--no-decode", action="store_true", help="leave out what needs pixels or text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there too")
    add_processes(parser)


def _run_stats(a: argparse.Namespace) -> int:
    from data_tools.commands.stats import statistics
    from data_tools.dataset.open import open_dataset
    from data_tools.storage.atomic import write_atomically

    summary = statistics(a.data, open_dataset(a.data), not a.no_decode, a.processes)
    for name, value in summary.items():
        if value not in ({}, []):
            print(f"{name:12s} {_line(value)}")
    if a.json is not None:
        write_atomically(a.json, json.dumps(summary, indent=1).encode())
    return 0


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{k} {_line(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(_line, value)) + "]"
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _add_show(commands: Any) -> None:
    parser = command(
        commands, "show", _run_show, "a contact sheet of images and spectrograms, excerpts of text",
        "show sample:digits --output digits.png",
    )  # fmt: skip
    parser.add_argument("data", help="data set: folder, glob or sample:NAME")
    parser.add_argument(
        "--output", type=Path, default=Path("contact_sheet.png"), help="PNG (default: contact_sheet.png)"
    )
    parser.add_argument("--count", type=positive, default=48, help="samples (default: 48)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other samples")


def _run_show(a: argparse.Namespace) -> int:
    from data_tools.commands.show import contact_sheet, excerpt
    from data_tools.dataset.open import open_dataset
    from data_tools.stream.samples import Stream

    dataset = open_dataset(a.data)
    stream = Stream(dataset, a.seed)
    samples = [stream.sample(position) for position in range(min(a.count, len(dataset)))]
    sheet = contact_sheet(samples, dataset.manifest.about.get("classes"))
    if sheet is not None:
        a.output.parent.mkdir(parents=True, exist_ok=True)
        try:
            sheet.save(a.output)
        except ValueError:  # by its ending
            raise UserError(f"--output {a.output}: not a picture's name; end it in .png or .jpg") from None
        print(f"{a.output}: {len(samples)} of {len(dataset):,} samples")
    else:
        print("\n".join(excerpt(sample) for sample in samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
