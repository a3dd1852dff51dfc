"""Under torchrun: held-out losses and probes of tiny objectives, untrained, on one engine.

Example: torchrun --standalone --nproc-per-node 3 -m tests.pretrain.evaluation.measured out.json DATA engine=fsdp
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine import start_engine
from pretrain.optim.build import build_optimizer
from pretrain.run.run import build_hooks, build_objective
from tests.tiny_run import SMALL

TINY = SMALL[:3]
COMMON = [
    "train.steps=1",
    "train.global_batch_size=12",
    "train.micro_batch_size=4",
    "tracking.picture_every=0",
    "representation.every=0",
]
"""Batches of four samples, so that shares of 47 are cut unevenly: 12, 6 or 4 batches on 1, 2 or 3 ranks."""
PROBES = ["probe.every=1", "probe.train_samples=101", "probe.test_samples=50", "probe.grid=true",
          "representation.samples=47", "representation.every=1", "representation.lidar_views=3",
          "representation.metrics=[rankme,cosine,dead,alpha_req,lidar,intrinsic_dimension]"]  # fmt: skip
CASES = {
    "mae": ["mae_digits", *SMALL, *PROBES, "data.validation=sample:digits_test", "validation.samples=47"],
    "mlm": ["mlm_sotu", *TINY, "encoder.max_length=64", "probe.every=0", "data.path={folder}/train",
            "data.validation={folder}/test", "validation.samples=47", "validation.mask_ratio=0.15"],
    "clm": ["clm_sotu", "encoder.n_embd=16", "encoder.n_head=2", "encoder.max_length=64", "probe.every=0",
            "data.path={folder}/train", "data.validation={folder}/test", "validation.samples=47"],
    "packed": ["clm_sotu", "encoder.n_embd=16", "encoder.n_head=2", "encoder.vocab_size=64", "probe.every=0",
               "data.path={folder}/tokens", "data.validation={folder}/tokens_held_out", "data.sequence_length=32"],
    "attribute": ["attribute_sotu", *TINY, "encoder.max_length=64", "data.path={folder}/train",
                  "data.validation={folder}/test", "validation.samples=47"],
    "simclr": ["simclr_digits", *TINY, "train.micro_batch_size=null", "objective.projection_sizes=[8, 4]",
               "objective.projection_norm=none", "data.validation=sample:digits_test", "validation.samples=47",
               "probe.every=0"],
    "gan": ["gan_digits", "encoder.hidden_sizes=[8]", "encoder.depths=[1]", "objective.generator_width=8",
            "data.validation=sample:digits_test", "validation.samples=20", "probe.every=0"],
}  # fmt: skip


class Recorder:
    """A tracker that keeps what evaluations tell."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, float]] = {}

    def validation(self, _step, values):
        self.values["validation"] = values

    def probe(self, _step, values):
        self.values["probe"] = {k: v for k, v in values.items() if k != "grid_cells"} | values.get(
            "grid_cells", {}
        )

    def representation(self, _step, values):
        self.values["representation"] = values

    def picture(self, _step, _picture, name=""):
        """For people, who look at them elsewhere."""


def measure(case: str, folder: Path, overrides: list[str]) -> dict[str, dict[str, float]]:
    recipe, *own = CASES[case]
    settings = [setting.replace("{folder}", str(folder)) for setting in own]
    config, _ = load_config(recipe, [*COMMON, *settings, *overrides])
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources))
    engine = start_engine(config)
    engine.prepare(objective, lambda _name, roles: build_optimizer(roles, config.optimizer))
    tracker = Recorder()
    for hook in build_hooks(config, objective, sources, engine, tracker):  # type: ignore[arg-type]
        hook.run(0)
    every_rank = engine.gather(tracker.values)
    assert all(values == tracker.values for values in every_rank), "ranks differ in what they found"
    return tracker.values


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, folder, *more = sys.argv[1:]
    found = {case: measure(case, Path(folder), more) for case in CASES}
    Path(out).write_text(json.dumps(found))
