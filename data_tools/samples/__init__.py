"""The embedded real data, opened as ``open_dataset("sample:digits")``; licences lie beside the shards.

digits        12,000 MNIST training images (png) with labels (cls)
digits_test    2,000 MNIST test images with labels
sotu          paragraphs of State of the Union addresses (txt) with year, president, party (json); a tokenizer
speech        spoken English and French words (flac, 8 kHz) with word and language (json)
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
from pathlib import Path

from data_tools.dataset.index import index_shards
from data_tools.errors import UserError
from data_tools.formats.manifest import MANIFEST_VERSION
from data_tools.storage.cache_folder import build_once, cache_folder

_ROOT = Path(__file__).parent
NAMES = ("digits", "digits_test", "sotu", "speech")


def sample_folder(name: str) -> Path:
    """The unpacked, indexed folder of a sample: made in the cache at first use, whole or not at all."""
    if name not in NAMES:
        raise UserError(f"sample:{name}: no such sample; there are {', '.join('sample:' + n for n in NAMES)}")
    packed = sorted((_ROOT / name).glob("*.tar.gz"))
    tokenizer = _ROOT / name / "tokenizer"
    digest = hashlib.blake2b(digest_size=8)
    for path in [*packed, *sorted(tokenizer.glob("*"))]:
        digest.update(path.read_bytes())

    def build(folder: Path) -> None:
        for path in packed:
            with gzip.open(path) as source, (folder / path.name.removesuffix(".gz")).open("wb") as target:
                shutil.copyfileobj(source, target)
        shutil.copy(_ROOT / name / "LICENCE.txt", folder)
        if tokenizer.is_dir():
            shutil.copytree(tokenizer, folder / "tokenizer")
        index_shards(sorted(folder.glob("*.tar")), folder, with_crc=True)

    return build_once(cache_folder() / f"samples-v{MANIFEST_VERSION}" / f"{name}-{digest.hexdigest()}", build)
