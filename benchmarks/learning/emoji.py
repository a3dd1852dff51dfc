"""The coloured drawings of ../shared/data/emoji as shards: what is pretrained on, what chooses, what judges.

Skin tones of one drawing are nearly copies, so whole names are held out. Pretraining sees all tones of its names;
labels are drawn from, and encoders judged by, drawings without a tone, or people would be two thirds of every answer.
"""

from __future__ import annotations

import csv
import hashlib
import tarfile
from pathlib import Path

from data_tools.formats.shard_writer import ShardWriter, finish_dataset

PARTS = ("pretrain", "train", "select", "test")
SHARES = (("train", 0.6), ("select", 0.2), ("test", 0.2))
TOO_FEW = ("Component",)
"""A category of five drawings (hair)."""


def pack_emoji(source: Path, out: Path) -> dict[str, str]:
    """The folder of each part; written once. `source` holds noto.tar and labels.csv."""
    folders = {part: out / part for part in PARTS}
    if not all((folder / "manifest.json").exists() for folder in folders.values()):
        rows = read_rows(source / "labels.csv")
        with tarfile.open(source / "noto.tar") as tar:
            drawings = {Path(member.name).name: read_member(tar, member) for member in tar if member.isfile()}
        classes = sorted({row["category"] for row in rows})
        for part, folder in folders.items():
            write_part(folder, [row for row in rows if belongs(row, part)], classes, drawings)
    return {part: str(folder) for part, folder in folders.items()}


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if row["category"] not in TOO_FEW]


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "a file"
    return file.read()


def belongs(row: dict[str, str], part: str) -> bool:
    """Whether a drawing belongs to a part, by a hash of its name."""
    side = choose_side(row["name"])
    if part == "pretrain":
        return side == "train"
    return side == part and not row["skin_tone"]


def choose_side(name: str) -> str:
    at = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    for side, share in SHARES:
        if at < share:
            return side
        at -= share
    return SHARES[-1][0]


def write_part(
    folder: Path, rows: list[dict[str, str]], classes: list[str], drawings: dict[str, bytes]
) -> None:
    with ShardWriter(folder) as writer:
        for row in rows:
            label = str(classes.index(row["category"])).encode()
            writer.write(Path(row["image"]).stem, {"png": drawings[row["image"]], "cls": label})
        finish_dataset(writer, {"classes": classes})
