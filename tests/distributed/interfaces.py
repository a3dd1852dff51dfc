"""Under torchrun: train each of `interface_objectives` for a few steps on one engine, and write what it came to.

One start of the ranks serves all of them, as `curves` does it.
Example: torchrun --standalone --nproc-per-node 2 -m tests.distributed.interfaces out.json engine=fsdp
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.engine import start_engine
from pretrain.engine.base import World
from pretrain.engine.shards import whole_tensor
from pretrain.run.assemble import assemble_trainer
from pretrain.run.run import build_objective
from tests.tiny_run import SMALL

STEPS, BATCH = 6, 8
COMMON = ["mae_digits", *SMALL[:3], f"train.steps={STEPS}", f"train.global_batch_size={BATCH}", "tracking.log_every=2",
          "schedule.warmup_ratio=0", "optimizer.lr=0.01", "train.precision=fp32"]  # fmt: skip
CASES: dict[str, list[str]] = {
    "Named": [], "Contrastive": [], "Taught": [], "Sometimes": ["ddp.find_unused_parameters=true"],
    "Spoilt": ["train.max_skipped_steps=4"],
    "Clips": ["objective={name: mae, decoder_hidden_size: 12, decoder_num_hidden_layers: 1, "
              "decoder_num_attention_heads: 2}",
              "encoder={name: 'tests.distributed.interface_objectives:ClipEncoder'}"],
}  # fmt: skip
CUT = ("Named", "Taught")
"""Also in two micro-batches; what a contrastive loss sees is its micro-batch of all ranks, so it is not."""


class Recorder:
    """A tracker that keeps everything."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.events: list[str] = []

    def train(self, step, values):
        clocked = (
            "samples_per_second",
            "peak_memory_gib",
            "data_wait",
            "data_reading",
            "data_decoding",
            "data_transforming",
            "read_mib_per_second",
            "straggler_wait",
            "slowest_rank",
            "communication",
        )
        self.rows.append({"at": step, **{k: v for k, v in values.items() if k not in clocked}})

    def event(self, kind, step, values):
        self.events.append(kind)


def train_case(case: str, overrides: list[str]) -> dict:
    objective = f"objective={{name: 'tests.distributed.interface_objectives:{case}'}}"
    config, _ = load_config(COMMON[0], [*COMMON[1:], objective, *CASES[case], *overrides])
    sources = open_sources(config.data)
    built = build_objective(config, first_of(sources))
    engine = start_engine(config)
    trainer = assemble_trainer(config, built, sources, engine, STEPS, tracker=Recorder())
    found = {"rows": trainer.tracker.rows, "error": None}
    try:
        trainer.fit()
    except UserError as error:
        found["error"] = str(error)
    if case in ("Taught", "Spoilt"):
        role = {"Taught": "teacher", "Spoilt": "mean"}[case]
        found["average"] = [float(p.double().sum()) for p in whole_parameters(built.roles[role])]
    if case == "Taught":
        views = [built.view(first_of(sources)[i]) for i in range(4)]
        with engine.evaluating(built):
            batch = built.collate(views)
            found["encoded"] = float(built.encode(batch).pooled.double().sum())
            found["of_product"] = float(built.product_encoder(batch)[:, 1:].mean(1).double().sum())
    return found


def whole_parameters(role):
    """Keys' biases aside: attention does not depend on them, so Adam moves them by rounding errors."""
    keys = ("key.bias", "k_proj.bias")
    return [whole_tensor(p.detach()) for name, p in role.named_parameters() if not name.endswith(keys)]


def main(out: str, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    world = World.from_environment()
    found = {}
    for case in CASES:
        found[case] = train_case(case, overrides)
        if case in CUT:
            micro = f"train.micro_batch_size={BATCH // world.size // 2}"
            found[f"{case}/2"] = train_case(case, [*overrides, micro])
    if world.size > 1 and "engine=ddp" in overrides:  # last, for it leaves DDP waiting
        found["Unsaid"] = train_case("Sometimes", [*overrides, "ddp.find_unused_parameters=false"])
    if world.rank == 0:
        Path(out).write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        time.sleep(0.2)  # as `Engine.close` does
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
