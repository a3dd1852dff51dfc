"""What pretraining is worth, by objective: python -m benchmarks.learning [image] [text] [generated]

`image`: MNIST and emoji categories at ten labels a class; `text`: parts of speech and bits a byte; `generated`: FID
and KID. Data are read from --data (../shared/data). What is finished stands in --out and is not done again; each line
of the tables is printed as soon as it is measured, and all of them are written to --report.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.learning import generated, image, text

TABLES = ("image", "text", "generated")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tables", nargs="*", default=[], metavar="TABLE", help="image, text, generated; all by default"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="the folder with mnist, emoji, brown"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/learning"), help="where runs and results are kept"
    )
    parser.add_argument("--only", nargs="+", default=[], help="some of the rows: mae vicreg …")
    parser.add_argument(
        "--report", type=Path, help="also write the tables there, e.g. benchmarks/results/learning.md"
    )
    asked = parser.parse_args()
    if unknown := set(asked.tables) - set(TABLES):
        parser.error(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    lines = []
    for table in asked.tables or TABLES:
        for line in [*measure(table, asked.data, asked.out.resolve(), asked.only)]:
            lines.append(line)
    if asked.report:
        asked.report.write_text("# What pretraining is worth\n\n" + "\n".join(lines) + "\n", "utf-8")


def measure(table: str, source: Path, out: Path, only: list[str]) -> Iterator[str]:
    """The lines of a table, printed as they come."""
    if table == "image":
        parts = [
            image.measure(images, out, only)
            for images in (image.open_mnist(source, out), image.open_emoji(source, out))
        ]
    else:
        parts = [{"text": text, "generated": generated}[table].measure(source, out, only)]
    for part in parts:
        for line in part:
            print(line, flush=True)
            yield line
        print(flush=True)
        yield ""


if __name__ == "__main__":
    main()
