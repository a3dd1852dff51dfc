"""A run that begins where another one stood: with its optimizer states too, and at its step if it is to be a branch."""

from __future__ import annotations

import json
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

from data_tools.errors import UserError
from pretrain.checkpoint.failures import root_cause
from pretrain.checkpoint.pickles import refuse_code
from pretrain.data import resume_loader
from pretrain.trainer import Trainer
from pretrain.weights.start import starting_checkpoint

DEEPSPEED = "deepspeed"


def take_over_state(trainer: Trainer) -> Path | None:
    """Load what `init_with` asks for beyond weights. Called on all ranks together, for a run without checkpoints.

    Returns:
        The checkpoint; None where nothing but weights was asked for.
    Raises:
        UserError: DeepSpeed keeps the states, or they do not fit this run.
    """
    config = trainer.config
    if not config.init_from or config.init_with == "weights":
        return None
    checkpoint = starting_checkpoint(config)
    place = f"init_with={config.init_with} ({checkpoint})"
    if config.engine == DEEPSPEED or (checkpoint / DEEPSPEED).exists():
        raise UserError(
            f"{place}: DeepSpeed keeps optimizer states in a form of its own, which belongs to one run on one number "
            "of ranks; use init_with=weights, or engine=ddp or fsdp in both runs"
        )
    refuse_code(checkpoint, str(checkpoint))
    try:
        trainer.engine.load(checkpoint)
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{place}: does not fit ({root_cause(error)[:300]}); optimizer states need the same encoder, objective, "
            "optimizer.name and train.ema_decay; init_with=weights needs less"
        ) from None
    if config.init_with == "progress":
        progress = json.loads((checkpoint / "progress.json").read_text())
        trainer.step = progress["step"]
        resume_loader(trainer.loader, progress["stream"], config.data)
    return checkpoint
