"""The Brown corpus as sentences with the part of speech of every word, for the recipe `attribute_brown`.

    python -m benchmarks.brown brown-tagged.tar.gz brown.jsonl.gz
    python -m data_tools pack jsonl brown.jsonl.gz brown/

A line is {"text": "The jury said", "tags": ["at", "nn", "vbd"], "document": "ca01"}: words stand between single spaces.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

NOTES = re.compile(r"(?<=.)-(tl|hl|nc)(?=-|\+|$)")
"""Marks that a word stands in a title, in a headline, or is cited: of the place, not of the word."""


def read_sentences(archive: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(document, words, tags) of each sentence: a line of `word/tag`, in files named like `ca01`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if re.fullmatch(r"(?:.*/)?c[a-r]\d\d", member.name) else None
            for line in file.read().decode("latin-1").splitlines() if file else ():
                pairs = [token.rpartition("/") for token in line.split()]
                if pairs:
                    yield Path(member.name).name, [w for w, _, _ in pairs], [simplify(t) for _, _, t in pairs]


def simplify(tag: str) -> str:
    """A tag without what it says of the place (`nn-tl` → `nn`); foreign words are all `fw`."""
    return "fw" if tag.startswith("fw-") else NOTES.sub("", tag)


def write_lines(archive: Path, out: Path) -> int:
    """Write the sentences as JSON lines; return how many."""
    count = 0
    with gzip.open(out, "wt", encoding="utf-8") as lines:
        for document, words, tags in read_sentences(archive):
            lines.write(json.dumps({"text": " ".join(words), "tags": tags, "document": document}) + "\n")
            count += 1
    return count


if __name__ == "__main__":
    print(f"{write_lines(Path(sys.argv[1]), Path(sys.argv[2])):,} sentences")
