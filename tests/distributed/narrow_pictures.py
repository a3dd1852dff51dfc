"""Under torchrun: FSDP in bf16 with the weights as narrow as on a GPU; a picture and a probe's features at step 0.

Example: torchrun --standalone --nproc-per-node 1 -m tests.distributed.narrow_pictures
"""

from __future__ import annotations

import numpy as np
import torch

from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine.fsdp import FSDPEngine
from pretrain.run.assemble import assemble_trainer
from pretrain.run.run import build_objective
from tests.tiny_run import SMALL

AUTOENCODER = "objective={name: autoencoder, decoder: mlp, decoder_width: 8}"
"""Without the norms that a CPU's autocast leaves to wide activations and narrow weights, which they refuse."""


class NarrowEngine(FSDPEngine):
    """As on a GPU, whose autocast does not need wide weights beside wide activations."""

    def keeps_wide_weights(self) -> bool:
        return False


def main() -> None:
    config, _ = load_config(
        "mae_digits", [*SMALL[:3], AUTOENCODER, "engine=fsdp", "train.precision=bf16", "train.steps=1"]
    )
    sources = open_sources(config.data)
    objective, engine = build_objective(config, first_of(sources)), NarrowEngine(config.train, config.fsdp)
    assemble_trainer(config, objective, sources, engine, 1)
    samples = [first_of(sources)[i] for i in range(4)]
    examples = objective.collate(
        [objective.example(s, np.random.default_rng(i)) for i, s in enumerate(samples)]
    )
    with engine.evaluating(objective):
        rows = objective.picture(examples).rows
        pooled = objective.encode(objective.collate([objective.view(s) for s in samples])).pooled
    assert pooled.dtype == torch.bfloat16, pooled.dtype
    assert all(row.isfinite().all() for row in rows.values())
    engine.close()


if __name__ == "__main__":
    main()
