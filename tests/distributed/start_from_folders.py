"""Under torchrun: begin runs from `transformers` folders under FSDP, and write what a rank holds and what it learns.

torchrun --standalone --nproc-per-node 2 -m tests.distributed.start_from_folders OUT RECIPE,RECIPE,…
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.start_memory import fingerprint, measure_rank, named_parameters
from pretrain.config.load import load_config
from pretrain.config.sections import Config
from pretrain.data import first_of, open_sources
from pretrain.engine import start_engine
from pretrain.engine.base import World
from pretrain.engine.shards import local
from pretrain.run.assemble import assemble_trainer
from pretrain.run.run import build_objective, shards_weights
from pretrain.weights.start import load_starting_weights
from tests.distributed.curves import Recorder

STEPS = 2


def begin(config: Config) -> dict[str, Any]:
    """Start as a run does, and train: the report, this rank's weights before the first step, and the losses."""
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources), shards_weights(config))
    reports: list[Any] = []
    trainer = assemble_trainer(
        config, objective, sources, start_engine(config), STEPS, Recorder(),
        load=lambda: reports.extend(load_starting_weights(config, objective)),
    )  # fmt: skip
    parameters = named_parameters(objective)
    shards = {
        name: fingerprint(shard) for name, shard in zip(parameters, local(parameters.values()), strict=True)
    }
    trainer.fit()
    return {
        "reports": [report.values() for report in reports],
        "shards": shards,
        "losses": [row["loss"] for row in trainer.tracker.rows],  # type: ignore[union-attr]
    }


def main(out: str, recipes: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # one group for all runs
    large, *others = recipes.split(",")
    found = {"memory": measure_rank(load_config(large, ["engine=fsdp"])[0])}
    for recipe in others:
        found[Path(recipe).stem] = begin(load_config(recipe, ["engine=fsdp"])[0])
    Path(out, f"rank_{World.from_environment().rank}.json").write_text(json.dumps(found))
    time.sleep(0.2)  # as `Engine.close` does
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
