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
from torch import Tensor, nn

from data_tools.atomic import follow_umask, full_disk_explained
from data_tools.dataset import Dataset
from data_tools.errors import UserError
from pretrain.checkpoint.folder import newest_valid
from pretrain.checkpoint.weights import read_weights
from pretrain.config.load import build_config
from pretrain.config.schema import plain
from pretrain.config.sections import Config
from pretrain.data import first_of, open_sources
from pretrain.encoders.base import Encoder
from pretrain.objectives.base import Batch
from pretrain.release.model_card import write_model_card
from pretrain.run.folder import load_run_config
from pretrain.weights.from_transformers import SETTINGS_KEY, no_progress_bars, refuse_gaps, without_pooler

log = logging.getLogger(__name__)
SAMPLES = 8
"""Real samples on which the release must equal the trained encoder."""
TOLERANCE = 1e-4
"""Largest difference of tokens of about unit variance: the model's own forward sums in another order than ours."""
ONE_GREY_LEVEL = 1.01 / 255
"""The stock processor rounds bytes after resizing, and so do we; the two may round one level apart."""


@dataclass(frozen=True)
class Trained:
    """The encoder of a run as its newest valid checkpoint holds it, averaged where the run keeps an average."""

    encoder: Encoder
    config: Config
    dataset: Dataset
    step: int


def load_run_encoder(run: Path) -> Trained:
    """Read the encoder out of a run folder, alone: no process group, no optimizer state.

    Raises:
        UserError: not a run folder, no valid checkpoint, an encoder or a data set that is not there any more.
    """
    config = build_config(load_run_config(run))
    checkpoint, broken = newest_valid(run / "checkpoints")
    if checkpoint is None:
        why = f"no valid one among its checkpoints ({'; '.join(broken)})" if broken else "no checkpoint yet"
        raise UserError(f"{run}: {why}; let the run reach checkpoint.every={config.checkpoint.every} steps")
    for fault in broken:
        log.warning("passed over a broken checkpoint: %s", fault)
    from pretrain.run.run import build_objective

    dataset = first_of(open_sources(config.data))
    objective = build_objective(config, dataset)
    state = {name: module.state_dict() for name, module in objective.roles.items()}
    read_weights(checkpoint, state)
    for name, module in objective.roles.items():
        module.load_state_dict(state[name])
    step = int(json.loads((checkpoint / "progress.json").read_text())["step"])
    return Trained(objective.product_encoder.eval(), config, dataset, step)


def release_run(run: Path, out: Path | None = None) -> Path:
    """Write the encoder of a run's newest valid checkpoint as a folder for `transformers`, with its model card.

    Everything is written beside the target, opened again through `AutoModel`, compared on real samples, and only then
    given its name. An earlier release there is replaced.

    Raises:
        UserError: nothing to release, or the release does not give the trained encoder's outputs.
    """
    no_progress_bars()
    out = out or run / "release"
    refuse_foreign(out)
    trained = load_run_encoder(run)

    def write(folder: Path) -> None:
        trained.encoder.save(folder)
        record_settings(trained.encoder, folder)
        check_release(trained.encoder, trained.dataset, folder)
        write_model_card(folder, run, trained.config, trained.encoder, trained.dataset, trained.step)

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
    values[SETTINGS_KEY].pop("from_pretrained", None)  # where these weights once came from is not theirs
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
    refuse_gaps(report, folder)
    encoder = encoder.cpu().eval()
    samples = [dataset[i] for i in range(min(SAMPLES, len(dataset)))]
    batch = encoder.collate([encoder.view(sample) for sample in samples])
    expected, mask = encoder(batch), valid_tokens(batch)
    difference = (plain_forward(model.eval(), encoder, batch) - expected).abs()[mask].max().item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"{folder}: its outputs differ from the trained encoder's by {difference:.2g} "
            f"(at most {TOLERANCE:g} is rounding); the release is not written, please report this"
        )
    if encoder.modality == "image":
        check_processor(encoder, samples, batch, folder)


def plain_forward(model: nn.Module, encoder: Any, batch: Batch) -> Tensor:
    """Tokens (B, N, D) as a user of plain `transformers` gets them from the same whole samples."""
    if encoder.modality == "image":
        tokens = model(pixel_values=encoder.pixels(batch["image"])).last_hidden_state
        return tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
    return model(
        input_ids=batch["tokens"].long(), attention_mask=valid_tokens(batch).long()
    ).last_hidden_state


def valid_tokens(batch: Batch) -> Any:
    """Where a text batch holds tokens and no padding, (B, N); everything of other batches."""
    return batch["document_ids"] > 0 if "document_ids" in batch else slice(None)


def check_processor(encoder: Any, samples: list[dict[str, Any]], batch: Batch, folder: Path) -> None:
    """Pixels from `AutoImageProcessor` must be those that training saw, up to one grey level where it resizes."""
    from transformers import AutoImageProcessor

    if (
        samples[0]["image"].dtype.name != "uint8"
        or encoder.config.num_channels != samples[0]["image"].shape[2]
    ):
        return  # deeper or converted pictures are prepared by their users; the model card says how
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    ours = encoder.displayable(encoder.pixels(batch["image"]))
    images = [sample["image"] for sample in samples]
    stock = processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    difference = (encoder.displayable(stock) - ours).abs().max().item()
    if not difference <= ONE_GREY_LEVEL:
        raise UserError(
            f"{folder}: its image processor gives pixels that differ from training's by {difference * 255:.1f} grey "
            "levels; the release is not written, please report this"
        )
