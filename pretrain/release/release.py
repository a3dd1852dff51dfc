"""A run → a folder that `transformers` opens, which is called released only after it has been opened and compared."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_tools.dataset.damage import DamagedSampleError
from data_tools.dataset.dataset import Dataset
from data_tools.errors import UserError
from data_tools.storage.atomic import follow_umask, full_disk_explained
from pretrain.checkpoint.best import best_checkpoint
from pretrain.checkpoint.folder import newest_valid
from pretrain.checkpoint.weights import read_weights
from pretrain.config.load import build_config
from pretrain.config.schema import plain
from pretrain.config.sections import Config
from pretrain.data import first_of, open_sources
from pretrain.encoders.base import Encoder
from pretrain.encoders.hf_model import without_pooler
from pretrain.encoders.text.tokenizer import copy_tokenizer
from pretrain.objectives.base import Batch, Companion, Objective
from pretrain.release.model_card import write_model_card
from pretrain.run.folder import load_run_config
from pretrain.weights.from_transformers import refuse_loading_gaps
from pretrain.weights.gaps import refuse_gaps
from pretrain.weights.model_folder import SETTINGS_KEY, no_progress_bars

log = logging.getLogger(__name__)
SAMPLES = 8
"""Real samples on which the release must equal the trained encoder."""
TOLERANCE = 1e-4
"""Largest difference of tokens of about unit variance: the model's own forward sums in another order than ours."""


@dataclass(frozen=True)
class Trained:
    """The encoder of a run as its newest valid checkpoint holds it, averaged where the run keeps an average."""

    objective: Objective
    config: Config
    step: int
    averaged: tuple[int, ...] = ()
    """The steps whose checkpoints it is the mean of, where it is one."""

    @property
    def encoder(self) -> Encoder:
        return self.objective.product_encoder

    @property
    def dataset(self) -> Dataset:
        return self.objective.dataset


def load_run_encoder(run: Path, best: bool = False) -> Trained:
    """Read the encoder out of a run folder, alone: no process group, no optimizer state.

    Args:
        best: that of the checkpoint which `checkpoint.keep_best` kept; else the newest valid one's.
    Raises:
        UserError: not a run folder, no valid checkpoint, an encoder or a data set that is not there any more.
    """
    config = build_config(load_run_config(run))
    checkpoint, broken = (best_checkpoint(run), []) if best else newest_valid(run / "checkpoints")
    if checkpoint is None:
        why = f"no valid one among its checkpoints ({'; '.join(broken)})" if broken else "no checkpoint yet"
        raise UserError(f"{run}: {why}; let the run reach checkpoint.every={config.checkpoint.every} steps")
    for fault in broken:
        log.warning("passed over a broken checkpoint: %s", fault)
    objective = build_run_objective(config)
    state = states_of(objective)
    read_weights(checkpoint, state)
    for name, module in objective.roles.items():
        module.load_state_dict(state[name])
    step = int(json.loads((checkpoint / "progress.json").read_text())["step"])
    return Trained(objective, config, step)


def build_run_objective(config: Config) -> Objective:
    """A run's objective around its first data set, to be given weights; dropout is off in the encoder."""
    from pretrain.run.run import build_objective

    objective = build_objective(config, first_of(open_sources(config.data)))
    objective.product_encoder.eval()
    return objective


def states_of(objective: Objective) -> dict[str, dict[str, Tensor]]:
    """The tensors of the roles, by role and name."""
    return {name: module.state_dict() for name, module in objective.roles.items()}


def release_run(run: Path, out: Path | None = None, best: bool = False) -> Path:
    """Write the encoder of a run's newest (or best) checkpoint as a folder for `transformers`, with its model card.

    Everything is written beside the target, opened again through `AutoModel`, compared on real samples, and only then
    given its name. An earlier release there is replaced.

    Raises:
        UserError: nothing to release, or the release does not give the trained encoder's outputs.
    """
    no_progress_bars()
    out = out or run / "release"
    refuse_foreign(out)
    return write_release(load_run_encoder(run, best), run, out)


def write_release(trained: Trained, run: Path, out: Path) -> Path:
    """Write what a run has trained into the folder `out`, as `release_run` does."""

    def write(folder: Path) -> None:
        trained.encoder.save(folder)
        record_settings(trained.encoder, folder)
        check_release(trained.encoder, trained.dataset, folder)
        for name, companion in trained.objective.companions().items():
            save_companion(companion, trained.encoder, trained.dataset, folder / name)
        write_model_card(folder, run, trained.objective, trained.config, trained.step, trained.averaged)

    return write_whole(out, write)


def refuse_foreign(out: Path) -> None:
    """Raise a `UserError` where something stands that is no release, which must not be deleted."""
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not (out / "model.safetensors").is_file():
        raise UserError(f"{out}: exists and is no release; choose another folder with --out")


def write_whole(out: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder that gets the name `out` only when all is done; what stood there goes last."""
    partial, previous = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.previous")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with full_disk_explained(out):
            write(partial)
        follow_umask(partial)
        if out.exists():
            shutil.rmtree(previous, ignore_errors=True)
            out.rename(previous)
        partial.rename(out)
        shutil.rmtree(previous, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); choose another folder"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def record_settings(encoder: Encoder, folder: Path) -> None:
    """Keep the encoder's own settings (such as its pooling) in `config.json`, where `load_encoder` finds them."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values[SETTINGS_KEY] = plain(asdict(encoder.config))
    for name in ("from_pretrained", "transformers"):  # where weights once came from; what stands here anyway
        values[SETTINGS_KEY].pop(name, None)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@torch.no_grad()
def check_release(encoder: Encoder, dataset: Dataset, folder: Path) -> None:
    """Open the folder as its users will, and compare with the trained encoder.

    Raises:
        UserError: a tensor is missing or unexpected, or outputs or pixels differ.
    """
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(
        folder,
        output_loading_info=True,
        local_files_only=True,
        use_safetensors=True,
        **without_pooler(type(encoder.model)),
    )
    refuse_loading_gaps(report, folder)
    encoder = encoder.cpu().eval()
    samples = choose_samples(encoder, dataset)
    batch = encoder.collate([encoder.view(sample) for sample in samples])
    expected, mask = encoder(batch), encoder.find_valid(batch)
    difference = (plain_tokens(model.eval(), encoder, batch) - expected).abs()[mask].max().item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"{folder}: its outputs differ from the trained encoder's by {difference:.2g} "
            f"(at most {TOLERANCE:g} is rounding); the release is not written, please report this"
        )
    encoder.check_processor(folder, samples)


@torch.no_grad()
def save_companion(companion: Companion, encoder: Encoder, dataset: Dataset, folder: Path) -> None:
    """Write a model that goes with the encoder, open it again, and compare its logits with what was trained.

    Raises:
        UserError: a tensor is missing or unexpected, or logits differ.
    """
    companion.model.save_pretrained(folder)
    if source := getattr(encoder, "tokenizer_folder", None):
        copy_tokenizer(source, folder)
    opened, report = type(companion.model).from_pretrained(
        folder, output_loading_info=True, local_files_only=True, use_safetensors=True
    )
    refuse_gaps(f"{folder}: does not hold what was written", dict.fromkeys(report["missing_keys"], "missing"))
    batch = encoder.collate([encoder.view(sample) for sample in choose_samples(encoder, dataset)])
    expected, mask = companion.logits(batch), encoder.find_valid(batch)
    difference = (opened.eval()(**encoder.plain_inputs(batch)).logits - expected).abs()[mask].max().item()
    if not difference <= TOLERANCE * max(1.0, expected[mask].abs().max().item()):
        raise UserError(
            f"{folder}: its logits differ from those of training by {difference:.2g}; the release is not written, "
            "please report this"
        )


def choose_samples(encoder: Encoder, dataset: Any) -> list[dict[str, Any]]:
    """The first few samples of a data set, or a labelled one, that are whole and have something to see in them.

    Raises:
        UserError: there are none.
    """
    chosen: list[dict[str, Any]] = []
    for i in range(len(dataset)):
        try:
            sample = dataset[i]
        except DamagedSampleError:
            continue
        if bool(torch.as_tensor(encoder.find_valid(encoder.collate([encoder.view(sample)]))).any()):
            chosen.append(sample)
        if len(chosen) == SAMPLES:
            break
    if not chosen:
        raise UserError(
            f"{dataset.folder}: has no sample with anything in it, to compare the encoder's outputs on; "
            "restore the run's data"
        )
    return chosen


def plain_tokens(model: Any, encoder: Encoder, batch: Batch) -> Tensor:
    """Tokens (B, N, D) as a user of plain `transformers` gets them from the same whole samples."""
    tokens: Tensor = model(**encoder.plain_inputs(batch)).last_hidden_state
    return tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
