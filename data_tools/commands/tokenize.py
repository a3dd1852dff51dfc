"""Documents → token arrays: ``tokens.npy`` members, with their lengths in the sidecar."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_tools.commands.pack.engine import Packed, Skipped, Source
from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.dataset.opened import open_once
from data_tools.decode.options import DecodeOptions
from data_tools.errors import UserError
from data_tools.storage.location import location_of
from data_tools.storage.objects import redacted
from data_tools.storage.segments import FetchOptions
from data_tools.tokenizer import LONGEST_PIECE, encode_texts, load_tokenizer

TOKENIZER_FOLDER = "tokenizer"
BATCH = 256  # documents encoded together, fewer where they are long
ENDS = {"end": ("", "<|endoftext|>"), "cls-sep": ("[CLS]", "[SEP]"), "none": ("", "")}


def plan_tokenize(data: str, dataset: Dataset, tokenizer: Path, ends: str, keep: list[str]) -> Source:
    """One job a shard. ``ends``: "end" appends <|endoftext|>, "cls-sep" frames with [CLS] … [SEP], "none" neither.

    ``data``: by what the ``dataset`` was opened, and is in each process. A fresh signature in it is no other work.
    ``keep``: extensions of other members to carry over, such as json or cls.
    """
    if "text" not in dataset.fields:
        raise UserError(f"{redacted(data)}: samples have {', '.join(dataset.fields)}, no text to tokenize")
    folder = tokenizer.parent if tokenizer.is_file() else tokenizer
    _end_ids(load_tokenizer(folder), ends)
    files = {
        f"{TOKENIZER_FOLDER}/{name}": folder / name
        for name in ("tokenizer.json", "tokenizer_config.json")
        if (folder / name).is_file()
    }
    kept = {
        name: value for name, value in dataset.manifest.about.items() if name != "classes" or "cls" in keep
    }
    about = {**kept, "tokenizer": TOKENIZER_FOLDER, "document_ends": ends}
    stamp = dataset.fingerprint
    place = location_of(data)
    jobs = [[place, stamp, shard, str(folder), ends, keep] for shard in range(len(dataset.manifest.urls))]
    work = partial(read, data, dataset.fetching)
    return Source(work, jobs, about, with_length=True, files=files, stamp=stamp)


def _end_ids(tokenizer: Tokenizer, ends: str) -> tuple[list[int], list[int]]:
    """(ids before, ids after) each document; raises UserError when the vocabulary lacks them."""
    ids: list[list[int]] = []
    for token in ENDS[ends]:
        number = tokenizer.token_to_id(token) if token else None
        if token and number is None:
            raise UserError(
                f"--ends {ends}: the tokenizer has no {token}; use --ends none or another tokenizer"
            )
        ids.append([] if number is None else [number])
    return ids[0], ids[1]


def read(data: str, fetching: FetchOptions, job: list[Any]) -> Iterator[Packed | Skipped]:
    _, stamp, shard, folder, ends, keep = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    tokenizer = load_tokenizer(Path(folder))
    before, after = _end_ids(tokenizer, ends)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())  # ids may have gaps
    dtype = np.uint16 if largest < 1 << 16 else np.uint32
    first, last = np.array(before, dtype=dtype), np.array(after, dtype=dtype)
    dataset = open_once(data, stamp, DecodeOptions(raw=True), fetching)
    extension = dataset.fields["text"]
    batch: list[tuple[str, str, dict[str, bytes]]] = []
    waiting = 0  # characters in it

    def encode() -> Iterator[Packed]:
        encoded = encode_texts(tokenizer, [text for _, text, _ in batch])
        for (key, _, kept), ids in zip(batch, encoded, strict=True):
            tokens = np.concatenate([first, ids.astype(dtype), last])
            buffer = io.BytesIO()
            np.save(buffer, tokens)
            yield Packed(key, {"tokens.npy": buffer.getvalue(), **kept}, len(tokens))
        batch.clear()

    for number in range(int(dataset.manifest.counts[shard])):
        try:
            sample = dataset.read(shard, number)
            text = str(sample[extension], "utf-8").removeprefix("\ufeff")
        except (DamagedSampleError, KeyError, UnicodeDecodeError) as error:
            yield Skipped(f"{dataset.manifest.urls[shard]} #{number}", f"{type(error).__name__}: {error}")
            continue
        batch.append(
            (sample["__key__"], text, {name: bytes(sample[name]) for name in keep if name in sample})
        )
        waiting += len(text)
        if len(batch) == BATCH or waiting > LONGEST_PIECE:
            yield from encode()
            waiting = 0
    yield from encode()
