"""Run folders with one checkpoint of a tiny encoder, made in a second without training."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.load import load_config
from pretrain.config.sections import Config, TrainConfig
from pretrain.config.show import to_dict
from pretrain.data import first_of, open_sources
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.objectives.base import Objective
from pretrain.optim.build import build_optimizer
from pretrain.run.run import build_objective

SMALL = (
    "encoder.hidden_size=16",
    "encoder.num_hidden_layers=2",
    "encoder.num_attention_heads=2",
    "objective.decoder_hidden_size=8",
    "objective.decoder_num_hidden_layers=1",
    "objective.decoder_num_attention_heads=2",
)


def make_text_run(folder: Path, family: str, objective: str) -> tuple[Config, Objective]:
    """A text encoder on the embedded addresses."""
    names = ("n_embd", "n_layer", "n_head") if family == "gpt2" else (
        "hidden_size", "num_hidden_layers", "num_attention_heads")  # fmt: skip
    sizes = ", ".join(f"{name}: {value}" for name, value in zip(names, (16, 2, 2), strict=True))
    encoder = f"encoder={{name: {family}, max_length: 64, {sizes}}}"
    config, _ = load_config("mlm_sotu", [f"objective={{name: {objective}}}", encoder])
    return write_run(folder, config)


def make_run(folder: Path, *overrides: str) -> tuple[Config, Objective]:
    """A masked autoencoder on the embedded digits."""
    config, _ = load_config("mae_digits", [*SMALL, f"run_dir={folder}", *overrides])
    return write_run(folder, config)


def write_run(folder: Path, config: Config) -> tuple[Config, Objective]:
    """Write `folder` as the trainer would after 5 steps; every weight is moved away from its initial value."""
    objective = build_objective(config, first_of(open_sources(config.data)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in objective.encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    engine = DDPEngine(TrainConfig(), World())
    engine.prepare(objective, lambda name, roles: build_optimizer(roles, config.optimizer_for(name)))
    folder.mkdir(parents=True, exist_ok=True)
    Checkpoints(folder / "checkpoints", engine, CheckpointConfig(asynchronous=False)).save(5, {"stream": {}})
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    return config, objective
