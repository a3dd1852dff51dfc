"""python -m data_tools pack images|idx|jsonl|csv|text"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.commands.cli import Parser, add_processes, command, positive, print_manifest
from data_tools.errors import one_line

if TYPE_CHECKING:
    from data_tools.commands.pack.engine import Skipped


def add_pack(commands: Any) -> None:
    pack = commands.add_parser(
        "pack",
        help="raw files to shards with a manifest",
        description="Raw files to shards with a manifest. Resumes where it stopped; lists unusable files.",
        epilog="example: python -m data_tools pack images photos/ shards/",
    )
    sources = pack.add_subparsers(required=True, metavar="SOURCE")
    images = _pack_command(
        sources,
        "images",
        _plan_images,
        "a folder of images, one folder a class or not",
        "images photos/ shards/",
    )
    images.add_argument("input", type=Path, help="folder with the images")
    images.add_argument(
        "--labels",
        choices=["auto", "folder", "none"],
        default="auto",
        help="labels from folder names (default: auto)",
    )
    images.add_argument(
        "--classes",
        type=Path,
        metavar="FILE|FOLDER",
        help="number the classes as there: a labelled pack, a folder of class folders, or a file with one name a line",
    )
    images.add_argument(
        "--pages",
        choices=["first", "all"],
        default="first",
        help="of files with several pages or frames: the first, or a sample of each (default: first)",
    )
    idx = _pack_command(
        sources, "idx", _plan_idx, "images in an IDX file, as MNIST",
        "idx train-images-idx3-ubyte.gz shards/ --labels train-labels-idx1-ubyte.gz",
    )  # fmt: skip
    idx.add_argument("input", type=Path, help="IDX file of images, .gz or not")
    idx.add_argument("--labels", type=Path, help="IDX file of labels")
    jsonl = _pack_command(
        sources, "jsonl", _plan_jsonl, "JSON with a text field: lines, files of one object, arrays",
        "jsonl corpus.jsonl.gz shards/",
    )  # fmt: skip
    table = _pack_command(
        sources, "csv", _plan_csv, "tables with a text column", "csv reviews.csv shards/ --text-field review"
    )
    for parser in (jsonl, table):
        parser.add_argument("input", type=Path, nargs="+", help="files, .gz or not, or folders of them")
        parser.add_argument("--text-field", default="text", help="which field is the text (default: text)")
        _add_text_options(parser, labels="none")
    text = _pack_command(
        sources, "text", _plan_text, "text files, mails and web pages",
        "text books/ shards/ --document paragraph",
    )  # fmt: skip
    text.add_argument("input", type=Path, nargs="+", help="files, .gz or not, or folders of them")
    text.add_argument(
        "--document",
        choices=["file", "paragraph", "line"],
        default="file",
        help="what one sample is (default: file)",
    )
    _add_text_options(text, labels="auto")
    for parser in (images, idx, jsonl, table, text):
        add_output(parser)


def _pack_command(sources: Any, name: str, plan: Callable[..., Any], help_: str, example: str) -> Parser:
    parser = command(sources, name, run_pack, help_, example)
    parser.epilog = f"example: python -m data_tools pack {example}"
    parser.set_defaults(plan=plan)
    return parser


def _add_text_options(parser: Parser, labels: str) -> None:
    parser.add_argument(
        "--encoding", default="utf-8",
        help="of files that do not say it; auto finds it for each that is not UTF-8 (default: utf-8)",
    )  # fmt: skip
    parser.add_argument(
        "--labels", choices=["auto", "folder", "none"], default=labels,
        help=f"labels from folder names (default: {labels})",
    )  # fmt: skip
    parser.add_argument(
        "--classes", type=Path, metavar="FILE|FOLDER",
        help="number the classes as there: a labelled pack, a folder of class folders, or a file with one name a line",
    )  # fmt: skip


def add_output(parser: Parser) -> None:
    parser.add_argument("output", type=Path, help="new folder for the shards")
    parser.add_argument("--shard-mb", type=positive, default=64, help="size of a shard in MB (default: 64)")
    parser.add_argument(
        "--shard", default="0/1", metavar="K/N", help="do part K of N only, as one task of a job array"
    )
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="run on this Dask cluster, which must see the same folders"
    )
    add_processes(parser)


def _plan_images(a: argparse.Namespace) -> Any:
    from data_tools.commands.pack import image_folder

    return image_folder.plan(a.input, a.shard_mb << 20, a.labels, a.classes, a.pages)


def _plan_idx(a: argparse.Namespace) -> Any:
    from data_tools.commands.pack import idx

    return idx.plan(a.input, a.labels)


def _plan_jsonl(a: argparse.Namespace) -> Any:
    from data_tools.commands.pack import text

    return text.plan_jsonl(a.input, a.shard_mb << 20, a.text_field, a.encoding, a.labels, a.classes)


def _plan_csv(a: argparse.Namespace) -> Any:
    from data_tools.commands.pack import text

    return text.plan_csv(a.input, a.shard_mb << 20, a.text_field, a.encoding, a.labels, a.classes)


def _plan_text(a: argparse.Namespace) -> Any:
    from data_tools.commands.pack import text

    return text.plan_text(a.input, a.shard_mb << 20, a.document, a.encoding, a.labels, a.classes)


def run_pack(a: argparse.Namespace) -> int:
    from data_tools.commands.pack.engine import SKIPPED_NAME, pack
    from data_tools.jobs import dask_executor, parse_part

    source, part = a.plan(a), parse_part(a.shard)
    with dask_executor(a.dask) if a.dask else nullcontext() as executor:
        result = pack(source, a.output, a.shard_mb << 20, a.processes, part, executor)
    if result.manifest is None:
        print(f"part {a.shard} is done; the manifest is written by the part that finishes last")
        return 0
    print_manifest(a.output, result.manifest)
    if result.classes:
        print(f"{len(result.classes)} classes: {count_names(result.classes)}")
    for note, count in result.notes.items():
        print(f"{count:,} {note}")
    if result.skipped:
        print(f"skipped {len(result.skipped)} unusable inputs, listed in {a.output / SKIPPED_NAME}:")
        for line in count_reasons(result.skipped):
            print(f"  {line}")
    return 0


def count_names(counts: dict[str, int], shown: int = 20) -> str:
    """`cat 12, dog 30`; of very many names the first."""
    more = f", … and {len(counts) - shown} more" if len(counts) > shown else ""
    return ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:shown]) + more


def count_reasons(skipped: list[Skipped]) -> Iterator[str]:
    """A line for each kind of reason, the commonest first: how many inputs have it, and the first of them."""
    by_kind: dict[str, list[Skipped]] = {}
    for item in skipped:
        by_kind.setdefault(item.reason.split(": ", 1)[0], []).append(item)
    for kind, items in sorted(by_kind.items(), key=lambda found: -len(found[1])):
        _, _, details = items[0].reason.partition(": ")
        yield f"{len(items):,} {kind}; first {one_line(items[0].name)}{f' ({one_line(details)})' if details else ''}"
