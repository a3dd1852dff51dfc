"""`python -m pretrain replay RUN --step N`: one step of a run again, the same batch from the same weights, looked at.

Nothing of the run is changed. The weights are those of the newest checkpoint before the step, trained on up to it.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_tools.errors import UserError
from data_tools.schema import parse_override
from data_tools.storage.atomic import atomic_file, write_atomically
from data_tools.stream.loader import Step
from pretrain.checkpoint.folder import complete, step_of
from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.check import check_world_size
from pretrain.config.load import build_config, override
from pretrain.config.sections import Config
from pretrain.data import count_steps, first_of, open_sources
from pretrain.engine import start_engine
from pretrain.engine.base import Engine, World
from pretrain.engine.closing import closing_engine
from pretrain.engine.initial_weights import expect_checkpoint
from pretrain.engine.shards import whole_tensor
from pretrain.objectives.base import Phase, by_name
from pretrain.run.assemble import assemble_trainer
from pretrain.run.branch import take_over_state
from pretrain.run.changes import settings_at, total_steps_at
from pretrain.run.folder import is_free, load_run_config
from pretrain.run.run import build_objective, shards_weights
from pretrain.tracking.metrics import read_metrics, to_json
from pretrain.trainer import Trainer
from pretrain.weights.start import load_starting_weights


def replay(run: Path, step: int, overrides: list[str]) -> dict[str, Any]:
    """Run step `step` (as `metrics.jsonl` counts: 1 is the first) again. Call on every rank.

    On the engine and number of ranks that the run had, its values are the logged ones to the last bit.

    Returns:
        What is also written to `RUN/replay/step_N.json`: the step's values, those that were logged then, each sample
        with its own loss, and the norm of each parameter's gradient. Each rank writes its micro-batches beside it, as
        safetensors.
    Raises:
        UserError: no such step, or a setting that would make it another run.
    """
    config = replay_config(run, step, overrides)
    check_world_size(config, World.from_environment().size)
    sources = open_sources(config.data)
    total = total_steps_at(run, step) or count_steps(config, sources)
    if step > total:
        raise UserError(f"--step {step}: the run {run} has steps 1 to {total}")
    objective = build_objective(config, first_of(sources), shards_weights(config))
    is_new = not any(step_of(path) < step for path in complete(run / "checkpoints"))
    if not is_new:
        expect_checkpoint(objective)
    engine = start_engine(config)
    with closing_engine(engine):
        checkpoints = Checkpoints(run / "checkpoints", engine, config.checkpoint)
        trainer = assemble_trainer(
            config,
            objective,
            sources,
            engine,
            total,
            checkpoints=checkpoints,
            load=lambda: is_new and load_starting_weights(config, objective),
        )
        if trainer.resume(at_most=step - 1) is None:
            take_over_state(trainer)
        if engine.world.rank == 0:
            print(f"from step {trainer.step}; steps {trainer.step + 1} to {step} are run", flush=True)
        with closing(trainer.loader):
            found = examine(trainer, step)
        logged = next((v for v in read_metrics(run) if v["kind"] == "train" and v["step"] == step), {})
        found = {"step": step, "logged": {k: logged[k] for k in found["values"] if k in logged}, **found}
        engine.on_main_process(
            lambda: write_atomically(
                make_replay_folder(run) / f"step_{step}.json", json.dumps(to_json(found), indent=1)
            )
        )
        return found


def replay_config(run: Path, step: int, overrides: list[str]) -> Config:
    """The run's configuration as of that step, with settings replaced that do not make it another run."""
    values = settings_at(run, step, load_run_config(run))
    for text in overrides:
        key = text.partition("=")[0]
        if not is_free(key):
            raise UserError(
                f"{text}: would make it another run; only how it is run may differ, e.g. engine=ddp"
            )
        values = override(values, *parse_override(text))
    return replace(build_config(values), run_dir=str(run))


def examine(trainer: Trainer, step: int) -> dict[str, Any]:
    """Train up to the step, and watch it: its values, its samples' losses, its gradients."""
    engine = trainer.engine
    steps = iter(trainer.loader)
    while trainer.step < step - 1:
        trainer.train_step(trainer.take_batch(steps))
    batch = trainer.take_batch(steps)
    save_batch(
        batch, make_replay_folder(trainer.config.folder) / f"step_{step}_rank_{engine.world.rank}.safetensors"
    )
    samples = {
        phase.name: [pair for rank in engine.gather(sample_losses(trainer, phase, batch)) for pair in rank]
        for phase in trainer.phases
        if trainer.step % phase.every == 0 and not phase.fp32
    }
    gradients = watch_gradients(engine)
    trainer.train_step(batch)
    return {
        "position": batch.position,
        "epoch": batch.epoch,
        "skipped_updates": trainer.count_skipped(),
        "values": trainer.reduce_values(after=step - 1),
        "samples": {name: sorted(pairs, key=worst_first) for name, pairs in samples.items()},
        "gradients": {name: dict(sorted(g.items(), key=worst_first)) for name, g in gradients.items()},
    }


def worst_first(item: tuple[Any, float]) -> tuple[bool, float]:
    """Sorts what is not finite before what is large."""
    value = torch.tensor(item[1])
    return (bool(value.isfinite()), -float(value.nan_to_num()))


def sample_losses(trainer: Trainer, phase: Phase, batch: Step) -> list[tuple[str, float]]:
    """(Key, loss) of each of this rank's samples, seen alone by the weights before the step, dropout off."""
    objective, found = trainer.objective, []
    objective.begin_step(trainer.step, trainer.total_steps)
    with trainer.engine.evaluating(objective, averaged=False):
        for keys, micro in zip(batch.keys, batch.micro_batches, strict=True):
            for i, key in enumerate(keys):
                (one,) = trainer.feed.copy([{name: value[i : i + 1] for name, value in micro.items()}])
                sums, counts = by_name(objective.loss(phase, one).sum), by_name(objective.count(phase, one))
                found.append((key, float(sum(sums[name] / max(counts[name], 1.0) for name in sums))))
    return found


def watch_gradients(engine: Engine) -> dict[str, dict[str, float]]:
    """Fills with {phase: {parameter: norm of its gradient}} as phases step. DeepSpeed keeps gradients to itself: {}."""
    found: dict[str, dict[str, float]] = {}
    step = engine.step
    trained: dict[str, Any] = getattr(engine, "trainees", {})

    def watched(
        phase: Phase, lr_factor: float, max_norm: float | None, decay_factor: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        parameters = trained[phase.optimizer].roles.named_parameters()
        found[phase.name] = {
            name: float(whole_tensor(p.grad.norm())) for name, p in parameters if p.grad is not None
        }
        return step(phase, lr_factor, max_norm, decay_factor)

    engine.step = watched  # type: ignore[method-assign]
    return found


def save_batch(batch: Step, path: Path) -> None:
    """This rank's micro-batches as one safetensors file; tensors are called `<micro-batch>.<name>`."""
    tensors = {f"{i}.{n}": t.contiguous() for i, m in enumerate(batch.micro_batches) for n, t in m.items()}
    with atomic_file(path) as partial:
        save_file(tensors, partial)


def make_replay_folder(run: Path) -> Path:
    """`RUN/replay`, where everything about replayed steps goes."""
    folder = run / "replay"
    folder.mkdir(exist_ok=True)
    return folder


def describe(found: dict[str, Any], rows: int = 8) -> str:
    """The findings for a terminal."""
    lines = [f"step {found['step']}: position {found['position']}, epoch {found['epoch']}"]
    for name, value in found["values"].items():
        then = found["logged"].get(name)
        same = (
            "not logged then" if then is None else "as logged" if then == value else f"logged then: {then!r}"
        )
        lines.append(f"  {name} = {value!r} ({same})")
    if found["skipped_updates"]:
        lines.append(f"  {found['skipped_updates']} update(s) were left out")
    for phase, samples in found["samples"].items():
        lines.append(f"{phase}: largest losses of {len(samples)} samples")
        lines += [f"  {loss:.6g}  {key}" for key, loss in samples[:rows]]
    for phase, gradients in found["gradients"].items():
        lines.append(f"{phase}: largest gradients of {len(gradients)} parameters")
        lines += [f"  {norm:.6g}  {name}" for name, norm in list(gradients.items())[:rows]]
    return "\n".join(lines)
