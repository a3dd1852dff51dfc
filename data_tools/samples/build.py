"""Makes the embedded samples from the project's shared data folder: python -m data_tools.samples.build FOLDER"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from data_tools.commands.pack.idx import read_idx
from data_tools.errors import UserError, run_cli
from data_tools.formats.shard_writer import ShardWriter
from data_tools.tokenizer import save_tokenizer, train_tokenizer

_TARGET = Path(__file__).parent
PARAGRAPH_CHARACTERS = 700
FIRST_YEAR = 1900  # keeps the folder under 8 MB
VOCABULARY = 4096  # of the tokenizer beside the paragraphs: small, as the demo's encoders are
_VARIANT = re.compile(
    r"^(h-|mon-|day-|ascii)"
)  # inflected prompts of the speech folders: ordinals, months, codes

_MNIST = """MNIST handwritten digits, Yann LeCun, Corinna Cortes, Christopher J. C. Burges.
Licence: Creative Commons Attribution-Share Alike 3.0 (CC BY-SA 3.0).
A subset, converted from IDX to PNG without loss.
"""
_SOTU = """State of the Union addresses, works of the United States government: public domain.
A subset of the years, cut into paragraphs at the ends of sentences.
"""
_SPEECH = """Telephone prompts read by Allison Smith (English) and June Wallack (French).
Licence: Creative Commons Attribution-Share Alike 3.0 (CC BY-SA 3.0).
A subset: spoken numbers, letters and the phonetic alphabet, unchanged FLAC files.
"""

Members = dict[str, bytes]


def digits(shared: Path, part: str, count: int) -> Iterator[tuple[str, Members]]:
    """The first ``count`` images of "train" or "t10k". PNG without compression: the gzip around it does better."""
    images = read_idx(shared / "mnist" / f"{part}-images-idx3-ubyte.gz")[:count]
    labels = read_idx(shared / "mnist" / f"{part}-labels-idx1-ubyte.gz")[:count]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=0)
        yield f"{number:05d}", {"png": buffer.getvalue(), "cls": str(int(label)).encode()}


def sotu(shared: Path) -> Iterator[tuple[str, Members]]:
    with gzip.open(shared / "sotu" / "sotu.jsonl.gz", "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            address = json.loads(line)
            if address["year"] < FIRST_YEAR:
                continue
            about = {"year": address["year"], "president": address["name"], "party": address["party"]}
            for part, paragraph in enumerate(paragraphs(address["text"])):
                members = {"txt": paragraph.encode(), "json": json.dumps(about, ensure_ascii=False).encode()}
                yield f"{number:03d}_{part:03d}", members


def paragraphs(text: str, characters: int = PARAGRAPH_CHARACTERS) -> Iterator[str]:
    """Whole sentences, joined until a paragraph has at least ``characters``."""
    paragraph = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", text.strip()):
        paragraph = f"{paragraph} {sentence}" if paragraph else sentence
        if len(paragraph) >= characters:
            yield paragraph
            paragraph = ""
    if paragraph:
        yield paragraph


def speech(shared: Path) -> Iterator[tuple[str, Members]]:
    for language in ("en", "fr"):
        for folder in ("digits", "letters", "phonetic"):
            for path in sorted((shared / "speech" / language / folder).glob("*.flac")):
                if _VARIANT.match(path.stem):
                    continue
                about = {"word": path.stem, "language": language}
                yield (
                    f"{language}_{folder}_{path.stem}",
                    {
                        "flac": path.read_bytes(),
                        "json": json.dumps(about).encode(),
                    },
                )


def write_sample(name: str, samples: Iterable[tuple[str, Members]], licence: str, shards: int = 1) -> int:
    """Write ``<name>/*.tar.gz`` and LICENCE.txt; the gzip has no time in it, so the same data give the same bytes."""
    target = _TARGET / name
    target.mkdir(exist_ok=True)
    everything = list(samples)
    size = 0
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(Path(folder), max_samples=-(-len(everything) // shards)) as writer:
            for key, members in everything:
                writer.write(key, members)
        for path in sorted(Path(folder).glob("*.tar")):
            packed = gzip.compress(path.read_bytes(), compresslevel=9, mtime=0)
            (target / f"{path.name}.gz").write_bytes(packed)
            size += len(packed)
    (target / "LICENCE.txt").write_text(licence)
    print(f"{name:12s} {len(everything):6d} samples  {size / 1e6:.2f} MB")
    return size


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python -m data_tools.samples.build ../shared/data"
    )
    parser.add_argument("shared", type=Path, help="folder with mnist/, sotu/ and speech/")
    shared = parser.parse_args(argv).shared
    if not (shared / "mnist").is_dir():
        raise UserError(f"{shared}: has no mnist/ folder; give the shared data folder")
    write_sample("digits", digits(shared, "train", 12_000), _MNIST)
    write_sample("digits_test", digits(shared, "t10k", 2_000), _MNIST)
    paragraphs_of_sotu = list(sotu(shared))
    write_sample("sotu", paragraphs_of_sotu, _SOTU, shards=2)
    texts = (members["txt"].decode() for _, members in paragraphs_of_sotu)
    save_tokenizer(train_tokenizer(texts, VOCABULARY), _TARGET / "sotu" / "tokenizer", length=512)
    write_sample("speech", speech(shared), _SPEECH)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
