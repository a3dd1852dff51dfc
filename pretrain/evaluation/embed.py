"""`python -m pretrain embed`: what an encoder sees in every sample of a data set, as files for other tools.

The data set is cut into parts of a fixed number of samples, and rank r of W makes parts r, r + W, …, each of which is
the work of one process from beginning to end. So the files have the same bytes on any number of ranks, and a job that
is started again makes only the parts that are not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data_tools.dataset.damage import DamagedSampleError, IncompleteSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from data_tools.storage.objects import redacted
from pretrain.encoders.base import field
from pretrain.evaluation.class_names import class_names
from pretrain.evaluation.feature_files import FORMATS, KINDS, Rows
from pretrain.objectives.base import Batch, Objective
from pretrain.release.release import load_run_encoder
from pretrain.weights.from_transformers import load_encoder
from pretrain.weights.model_folder import ModelFolder

INDEX = "embeddings.json"
LOOKED_AT = 100
"""Samples in which a label is looked for, to learn its type."""


@dataclass(frozen=True)
class EmbedOptions:
    """What is embedded and how it is written."""

    encoder: Path
    """A run, a release, or a `transformers` folder."""
    data: str
    out: Path
    format: Literal["parquet", "npz", "csv"] = "parquet"
    tokens: bool = False
    """Keep every token's vector (padding left out) instead of the pooled one."""
    labels: tuple[str, ...] = ()
    """Fields of the samples to write beside the features."""
    batch_size: int = 256
    part_samples: int = 4096
    bf16: bool = False
    workers: int = 2
    """Threads that read and decode ahead."""


def embed_dataset(options: EmbedOptions, say: Callable[[str], None] = print) -> tuple[int, list[str]]:
    """Write this rank's parts of the data set's features. No process group; every rank is called alike.

    Args:
        say: told of each part.

    Returns:
        Parts that this rank wrote, and a line for each damaged sample in them, which has no row.
    Raises:
        UserError: an option that does not hold, data that are not for this encoder, or a folder with other embeddings.
    """
    check_options(options)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    objective = open_encoder(options.encoder)
    dataset = open_dataset(options.data)
    encoder = objective.product_encoder
    seen = {encoder.modality} | ({"tokens"} if encoder.modality == "text" else set())
    if seen.isdisjoint(dataset.fields):
        raise UserError(
            f"data={redacted(options.data)}: its samples have no {encoder.modality}, which {options.encoder} sees; "
            f"they have: {', '.join(dataset.fields)}"
        )
    encoder.check_data(dataset, f"data={redacted(options.data)}")
    kinds = {name: find_kind(dataset, name, options.data) for name in options.labels}
    parts = -(-len(dataset) // options.part_samples)
    claim_folder(options, objective, dataset, kinds, parts)
    device = choose_device()
    for role in objective.roles.values():
        role.to(device).eval()
    written, damaged = 0, []
    with ThreadPoolExecutor(max(1, options.workers)) as pool:
        for part in range(rank, parts, ranks):
            path = part_path(options, part)
            if path.exists():
                continue
            rows = Rows(labels={name: [] for name in kinds})
            for batch, made in make_batches(options, objective, dataset, kinds, part, pool):
                damaged += made
                if batch is not None:
                    add_features(rows, batch, objective, device, options)
            write = FORMATS[options.format]
            write_atomically(path, write(rows, kinds, encoder.dim, options.tokens))
            written += 1
            say(f"{path}: {len(rows.index)} samples")
    return written, damaged


def check_options(options: EmbedOptions) -> None:
    """Raise a `UserError` where options cannot be, or cannot be together."""
    for name in ("batch_size", "part_samples"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    if options.format == "csv" and options.tokens:
        raise UserError("--format csv --features tokens: a table has a row a sample; take npz or parquet")
    if options.format == "parquet":
        FORMATS["parquet"](Rows(), {}, 1, False)  # is pyarrow there? known now, not after the first part


def open_encoder(path: Path) -> Objective:
    """An objective that does nothing but encode: a run's, or the encoder of a folder alone.

    Raises:
        UserError: no run and no folder of `transformers`.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run, a release, or a folder of transformers")
    if (path / "config.yaml").is_file():
        return load_run_encoder(path).objective
    folder: Any = ModelFolder(path)
    return Objective(None, load_encoder(path), folder)


def find_kind(dataset: Dataset, name: str, place: str) -> str:
    """The type of a label's column, by the first sample that has it.

    Raises:
        UserError: no sample among the first has it, or it is no single value.
    """
    for number in range(min(LOOKED_AT, len(dataset))):
        try:
            value = read_value(dataset[number], name)
        except DamagedSampleError:
            continue
        if value is not None:
            return KINDS[type(value)]
    raise UserError(
        f"--labels {name}: none of the first {min(LOOKED_AT, len(dataset))} samples of {redacted(place)} has it; they "
        f"have: {', '.join(dataset.fields)}"
    )


def read_value(sample: dict[str, Any], name: str) -> bool | int | float | str | None:
    """A single value of a sample; None where it has none.

    Raises:
        UserError: it is a list, a mapping or an array.
    """
    try:
        value = field(sample, name)
    except IncompleteSampleError:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and type(value) not in KINDS:
        raise UserError(
            f"--labels {name}: is a {type(value).__name__} in sample {sample.get('__key__')!r}; name a single value, "
            f"such as {name}.member"
        )
    return value


def claim_folder(
    options: EmbedOptions, objective: Objective, dataset: Dataset, kinds: dict[str, str], parts: int
) -> None:
    """Write the folder's index, or compare it with the one that is there.

    Raises:
        UserError: the folder holds other embeddings.
    """
    encoder = objective.product_encoder
    index = {
        "weights": hash_weights(encoder),
        "data": dataset.fingerprint,
        "samples": len(dataset),
        "features": "tokens" if options.tokens else "pooled",
        "dim": encoder.dim,
        "labels": kinds,
        "classes": {name: class_names(dataset, name) for name in kinds},
        "format": options.format,
        "precision": "bf16" if options.bf16 else "fp32",
        "batch_size": options.batch_size,
        "part_samples": options.part_samples,
        "parts": parts,
    }
    path = options.out / INDEX
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        other = [name for name, value in index.items() if before.get(name) != value]
        if other:
            raise UserError(
                f"--out {options.out}: holds embeddings with other {', '.join(other)}; choose another folder, or "
                "remove that one"
            )
        return
    if options.out.is_dir() and any(options.out.glob(f"part-*.{options.format}")):
        raise UserError(f"--out {options.out}: has parts but no {INDEX}; choose another folder")
    told = {"encoder": str(options.encoder), "path": redacted(options.data)}
    write_atomically(path, json.dumps({**told, **index}, indent=1) + "\n")


def hash_weights(encoder: torch.nn.Module) -> str:
    """Of all parameters and buffers, so that files of two encoders are never mixed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def choose_device() -> torch.device:
    """This rank's accelerator, else the CPU with one thread, whose sums are the same on any number of ranks."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.set_num_threads(1)
    return torch.device("cpu")


def part_path(options: EmbedOptions, part: int) -> Path:
    return options.out / f"part-{part:06d}.{options.format}"


Made = tuple[Batch, list[int], list[str], dict[str, list[Any]]]
"""A batch, and its samples' places in the data set, keys and labels."""


def make_batches(
    options: EmbedOptions,
    objective: Objective,
    dataset: Dataset,
    kinds: dict[str, str],
    part: int,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Made | None, list[str]]]:
    """A part's batches, made ahead, with a line for each damaged sample; None where all samples of one are."""

    def make(begin: int) -> tuple[Made | None, list[str]]:
        samples, damaged = [], []
        for number in range(begin, min(begin + options.batch_size, end)):
            try:
                sample = dataset[number]
                samples.append((number, sample, objective.view(sample)))
            except (DamagedSampleError, IncompleteSampleError) as error:
                damaged.append(str(error))
        if not samples:
            return None, damaged
        labels = {name: [typed(s, name, kind) for _, s, _ in samples] for name, kind in kinds.items()}
        batch = objective.collate([view for _, _, view in samples])
        return (batch, [n for n, _, _ in samples], [s["__key__"] for _, s, _ in samples], labels), damaged

    end = min(len(dataset), (part + 1) * options.part_samples)
    waiting: deque[Future[tuple[Made | None, list[str]]]] = deque()
    for begin in range(part * options.part_samples, end, options.batch_size):
        waiting.append(pool.submit(make, begin))
        if len(waiting) > options.workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def typed(sample: dict[str, Any], name: str, kind: str) -> Any:
    """A label as its column's type has it; raises a `UserError` where it is of another one."""
    value = read_value(sample, name)
    if value is None or KINDS[type(value)] == kind:
        return value
    if kind == "float64" and isinstance(value, int):
        return float(value)
    raise UserError(
        f"--labels {name}: is {value!r} in sample {sample['__key__']!r}, where others have a value of type {kind}"
    )


def add_features(
    rows: Rows, made: Made, objective: Objective, device: torch.device, options: EmbedOptions
) -> None:
    """Encode a batch, and add its rows."""
    batch, index, keys, labels = made
    on_device = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
        encoded = objective.encode(on_device)
    rows.index += index
    rows.keys += keys
    for name, values in labels.items():
        rows.labels[name] += values
    if not options.tokens:
        rows.features += list(encoded.pooled.float().cpu().numpy())
        return
    tokens = encoded.tokens.float().cpu().numpy()  # (B, N, D)
    valid = objective.product_encoder.find_valid(on_device).cpu().numpy()
    if valid.ndim == 1:  # of samples: none of their tokens is padding
        valid = np.ones(tokens.shape[:2], dtype=bool)
    rows.features += [of_sample[keep] for of_sample, keep in zip(tokens, valid, strict=True)]
