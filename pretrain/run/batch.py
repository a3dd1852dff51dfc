"""`python -m pretrain batch RUN --step N`: what every rank saw in one step of a run, without weights and checkpoints.

A batch is a function of the run's settings and the step alone, so one process makes those of all ranks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from data_tools.stream.loader import Loader, Step
from pretrain.checkpoint.folder import complete
from pretrain.config.check import check_world_size
from pretrain.config.load import build_config
from pretrain.data import build_loader, count_steps, first_of, open_sources
from pretrain.engine.base import World
from pretrain.objectives.base import Objective
from pretrain.ops.world import whole_nodes
from pretrain.report.run_summary import read_mapping
from pretrain.run.changes import position_of, settings_at, total_steps_at
from pretrain.run.folder import load_run_config
from pretrain.run.replay import make_replay_folder
from pretrain.run.run import build_objective
from pretrain.tracking.metrics import to_json
from pretrain.tracking.pictures import ImageGrid, png

SHOWN = 8
"""Pictures of each rank's micro-batch at most."""


def show_batch(run: Path, step: int, ranks: int | None = None) -> dict[str, Any]:
    """Make the batch of step `step` (as `metrics.jsonl` counts: 1 is the first) as all ranks got it. One process.

    Args:
        ranks: how many shared it; default: as many as the run had when it was last started.

    Returns:
        What is also written to `RUN/replay/step_N_batch.json`: by rank and micro-batch the samples' keys, the shards
        that they are in, and the arrays' shapes. The arrays go to `.npz` beside it, and what a person can look at to
        `.png` or `.txt`.
    Raises:
        UserError: not a run folder, no such step, or a number of ranks that cannot share the batch.
    """
    config = build_config(settings_at(run, step, load_run_config(run)))
    environment = read_mapping(run / "environment.json")
    if ranks is None:
        ranks = int(environment.get("processes", 1))
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: must be at least 1")
    check_world_size(config, ranks)
    sources = open_sources(config.data)
    total = total_steps_at(run, step) or count_steps(config, sources)
    if step > total:
        raise UserError(f"--step {step}: the run {run} has steps 1 to {total}")
    objective = build_objective(config, first_of(sources))
    position = position_of(run, step, config)
    node_size = whole_nodes(ranks, int(environment.get("processes_per_node", 1)))
    loaders = [
        build_loader(config, objective, sources, World(rank, ranks), node_size) for rank in range(ranks)
    ]
    steps = [arrived(take(loader, position, run), objective) for loader in loaders]
    path = make_replay_folder(run) / f"step_{step}_batch"
    arrays = {
        f"rank_{rank}.{i}.{name}": tensor.numpy()
        for rank, share in enumerate(steps)
        for i, micro_batch in enumerate(share.micro_batches)
        for name, tensor in micro_batch.items()
    }
    np.savez(path.with_suffix(".npz"), **arrays)
    look = save_look(path, objective, steps)
    found = {
        "step": step,
        "position": position,
        "epoch": steps[0].epoch,
        "files": [str(f) for f in (path.with_suffix(".json"), path.with_suffix(".npz"), look) if f],
        "ranks": [describe_share(share, loader) for share, loader in zip(steps, loaders, strict=True)],
    }
    write_atomically(path.with_suffix(".json"), json.dumps(to_json(found), indent=1))
    return found


def take_over_history(loader: Loader, run: Path) -> None:
    """What a checkpoint remembers: a mixture's weights at each position, by what random numbers are drawn."""
    saved = complete(run / "checkpoints")
    if saved:
        loader.stream.adopt(read_mapping(saved[-1] / "progress.json").get("stream", {}))


def take(loader: Loader, position: int, run: Path) -> Step:
    """One rank's share of the run's global batch at `position`."""
    take_over_history(loader, run)
    loader.position = position
    steps = iter(loader)
    try:
        return next(steps)
    finally:
        loader.close()


def arrived(share: Step, objective: Objective) -> Step:
    """A rank's share as its loss takes it."""
    return replace(share, micro_batches=[objective.arrive(batch) for batch in share.micro_batches])


def describe_share(share: Step, loader: Loader) -> dict[str, Any]:
    """Keys, shards and shapes of each micro-batch of a rank, and what was damaged and replaced."""
    micro_batches = [
        {
            "keys": keys,
            "shards": loader.stream.shards(positions),
            "arrays": {
                name: [str(tensor.dtype).removeprefix("torch."), *tensor.shape]
                for name, tensor in arrays.items()
            },
        }
        for keys, arrays, positions in zip(
            share.keys, share.micro_batches, loader.micro_positions(share.position), strict=True
        )
    ]
    return {"micro_batches": micro_batches, "damaged": [asdict(damage) for damage in share.damages]}


def save_look(path: Path, objective: Objective, steps: list[Step]) -> Path | None:
    """The first pictures of each micro-batch as one PNG, or all texts; None where neither is in the batch."""
    if "image" in steps[0].micro_batches[0]:
        encoder: Any = objective.encoder
        rows = {
            f"rank {rank}, {i}": encoder.displayable(encoder.pixels(micro_batch["image"][:SHOWN]))
            for rank, share in enumerate(steps)
            for i, micro_batch in enumerate(share.micro_batches)
        }
        write_atomically(path.with_suffix(".png"), png(ImageGrid(rows)))
        return path.with_suffix(".png")
    tokenizer = getattr(objective.encoder, "tokenizer", None)
    if tokenizer is None or "tokens" not in steps[0].micro_batches[0]:
        return None
    lines = []
    for rank, share in enumerate(steps):
        for i, (keys, batch) in enumerate(zip(share.keys, share.micro_batches, strict=True)):
            rows_of_text = zip(keys, batch["tokens"], batch["document_ids"] > 0, strict=True)
            lines += [
                f"[rank {rank}, {i}, {key}] {tokenizer.decode(ids[used])}" for key, ids, used in rows_of_text
            ]
    write_atomically(path.with_suffix(".txt"), "\n\n".join(lines) + "\n")
    return path.with_suffix(".txt")


def describe(found: dict[str, Any], rows: int = 8) -> str:
    """The findings for a terminal."""
    lines = [f"step {found['step']}: position {found['position']}, epoch {found['epoch']}"]
    for rank, share in enumerate(found["ranks"]):
        for i, micro_batch in enumerate(share["micro_batches"]):
            shapes = ", ".join(
                f"{name} {kind} {size}" for name, (kind, *size) in micro_batch["arrays"].items()
            )
            lines.append(f"rank {rank}, micro-batch {i}: {len(micro_batch['keys'])} samples; {shapes}")
            pairs = list(zip(micro_batch["keys"], micro_batch["shards"], strict=True))
            lines += [f"  {key}  ({', '.join(shards)})" for key, shards in pairs[:rows]]
            lines += [f"  … {len(pairs) - rows} more"] if len(pairs) > rows else []
        for damage in share["damaged"]:
            lines.append(f"  damaged and replaced: {damage['shard']}: {damage['name']}: {damage['reason']}")
    return "\n".join([*lines, f"all of it: {', '.join(found['files'])}"])
