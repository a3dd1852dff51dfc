"""A run, from its configuration to its report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_tools.dataset.dataset import Dataset
from data_tools.dataset.overlap import count_shared
from data_tools.errors import UserError, mistakes_of_one_rank, tell_error
from data_tools.storage.atomic import write_atomically
from data_tools.stream.loader import make_micro_batch
from pretrain.checkpoint.best import HOOK, Best
from pretrain.checkpoint.saving import Checkpoints
from pretrain.checkpoint.targets import Copies, identity_of, on_main_process_for_long, open_run
from pretrain.config.check import check_world_size
from pretrain.config.sections import Config, RepresentationConfig
from pretrain.config.show import to_public_dict
from pretrain.data import (
    Sources,
    build_stream,
    count_steps,
    first_of,
    open_sources,
)
from pretrain.encoders import encoder_class
from pretrain.engine import start_engine
from pretrain.engine.base import Engine, World
from pretrain.engine.closing import closing_engine
from pretrain.engine.initial_weights import build_deferred, build_whole, expect_checkpoint
from pretrain.evaluation.feature_pictures import draw_features
from pretrain.evaluation.look import Looks
from pretrain.evaluation.probes import OnlineProbe, check_probe_data
from pretrain.evaluation.validation import Validation
from pretrain.guards.preemption import REQUEUE, REQUEUE_WISH, StopRequest
from pretrain.guards.watchdog import SHARE_OF_TIMEOUT, Watchdog
from pretrain.metering.communication import CommunicationSampler
from pretrain.metering.flops import step_flops
from pretrain.metering.meter import Meter
from pretrain.metering.peak import device_peak
from pretrain.metering.profiling import Profiling, check_profiling
from pretrain.objectives import objective_class
from pretrain.objectives.base import Batch, Objective
from pretrain.ops.seeds import seed_of
from pretrain.optim.groups import check_rules
from pretrain.run.assemble import assemble_trainer
from pretrain.run.best_metric import check_keep_best
from pretrain.run.branch import take_over_state
from pretrain.run.changes import changes_since
from pretrain.run.folder import RunFolder
from pretrain.run.own_hooks import build_own_hooks
from pretrain.run.start import fit_steps_to_progress, tell_start
from pretrain.tracking import Tracker
from pretrain.tracking.pictures import Picture
from pretrain.tracking.tracks import Tracks
from pretrain.trainer import Hook, Trainer
from pretrain.weights.gaps import LoadingReport
from pretrain.weights.start import fetch_starting_weights, load_starting_weights

log = logging.getLogger(__name__)
PICTURE_SAMPLES = 8
Note = Callable[[str, int, dict[str, Any]], None]
"""Told what was measured: its kind, the step, the values."""


@dataclass(frozen=True)
class Result:
    """What a finished run left."""

    folder: Path
    steps: int
    status: int
    """The exit status: 0 where the run came to its end, or to `stop_at`; else it was asked to stop, and has saved."""
    finished: bool
    """Whether all steps are done."""


def run(config: Config, allowed: tuple[str, ...] = (), stop_at: int | None = None) -> Result:
    """Pretrain as `config` says, from the newest checkpoint of its folder if there is one. Call on every rank.

    Args:
        allowed: settings and sections that may be others than those of the run so far.
        stop_at: the step after which the run saves and stops for now.
    Raises:
        UserError: settings or data are wrong; nothing has been started then.
    """
    check_world_size(config, World.from_environment().size)
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources), shards_weights(config))
    check_keep_best(config, objective)
    copies = Copies(config.checkpoint)
    check_profiling(config.tracking)
    total_steps = count_steps(config, sources)
    engine = start_engine(config)
    with closing_engine(engine):
        trainer = train(config, objective, sources, engine, total_steps, copies, allowed, stop_at)
    finished = trainer.step == trainer.total_steps
    status = 0 if finished or trainer.at_stop else trainer.stop_request.status
    return Result(config.folder, trainer.step, status, finished)


def build_objective(config: Config, dataset: Dataset, deferred: bool = False) -> Objective:
    """Encoder and objective with the weights that the seed gives, the same on every rank.

    Args:
        deferred: leave the weights without memory until an engine that shards them fills its shards.
    """

    def build() -> Objective:
        encoder = encoder_class(config.encoder.name)(config.encoder, dataset)
        return objective_class(config.objective.name)(config.objective, encoder, dataset)

    seed = seed_of(config.seed, "weights")
    objective = build_deferred(build, seed) if deferred else build_whole(build, seed)
    check_rules(config, objective)
    if config.augment.on == "device" and objective.augmentation is None:
        raise UserError(
            f"augment.on=device: objective {config.objective.name!r} with encoder {config.encoder.name!r} draws no "
            "views of images; leave it out"
        )
    objective.augment_config = config.augment
    return objective


def shards_weights(config: Config) -> bool:
    """Whether no rank needs to hold the whole model when it starts."""
    return config.engine == "fsdp"


def train(
    config: Config,
    objective: Objective,
    sources: Sources,
    engine: Engine,
    total_steps: int,
    copies: Copies,
    allowed: tuple[str, ...],
    stop_at: int | None = None,
) -> Trainer:
    """Everything between a started engine and a written report; the trainer, which knows how far it came."""
    is_main_process = engine.world.rank == 0
    with closing(RunFolder(config.folder)) as folder, StopRequest() as stop_request:
        run_id, found = open_run(engine, folder, config, copies, allowed)
        is_new = found.path is None and not found.broken
        if is_new:
            on_main_process_for_long(engine, lambda: fetch_starting_weights(config))
        else:
            expect_checkpoint(objective)
        counts = is_main_process and config.tracking.count_flops
        flops = flops_per_sample(config, objective, sources) if counts else None
        identity, best = identity_of(run_id, config), Best(config.checkpoint.keep_best)
        checkpoints = Checkpoints(
            folder.path / "checkpoints", engine, config.checkpoint, copies, found, identity, best
        )
        meter = build_meter(config, engine, flops)
        loaded: list[LoadingReport] = []
        trainer = assemble_trainer(
            config,
            objective,
            sources,
            engine,
            total_steps,
            checkpoints=checkpoints,
            meter=meter,
            load=lambda: loaded.extend(load_starting_weights(config, objective) if is_new else ()),
        )
        resumed = trainer.resume()
        branched = take_over_state(trainer) if resumed is None else None
        fit_steps_to_progress(trainer)
        if is_main_process:
            trainer.tracker = Tracker(
                folder.path,
                config.tracking,
                to_public_dict(config),
                trainer.total_steps,
                run_id,
                trainer.step,
            )
            for report in loaded:
                print(report, flush=True)
                trainer.tracker.event("loaded", trainer.step, report.values())
            changes = folder.changes | (changes_since(found.path, config) if found.path else {})
            tell_start(trainer, resumed, changes, branched)
        trainer.stop_request, trainer.stop_at = stop_request, stop_at
        trainer.add_hooks(build_hooks(config, objective, sources, engine, trainer.tracker, best))
        fit(trainer)
        if is_main_process and config.tracking.report:
            write_report_if_possible(folder.path)
        return trainer


def write_report_if_possible(folder: Path) -> None:
    """A full disk must not make a finished run a failed one."""
    from pretrain.report.report import write_report  # matplotlib takes a second, and one rank needs it

    try:
        write_report(folder)
    except OSError as error:
        log.warning("%s: the report could not be written (%s)", folder, error.strerror)


def fit(trainer: Trainer) -> None:
    """Train to the end, and tell the tracker how it ended."""
    started, status = time.perf_counter(), "failed"
    wish = trainer.config.folder / REQUEUE_WISH
    if trainer.engine.world.rank == 0:
        wish.unlink(missing_ok=True)
    try:
        with guard_against_hangs(trainer):
            finished = trainer.fit()
        status = "finished" if finished else "preempted"
        asked = not finished and not trainer.at_stop
        if asked and trainer.engine.world.rank == 0 and trainer.stop_request.status == REQUEUE:
            write_atomically(wish, f"{trainer.step}\n")
        if trainer.tracker:
            kind = "end" if finished else "preempted"
            trainer.tracker.event(kind, trainer.step, {"seconds": time.perf_counter() - started})
    except BaseException as error:
        if trainer.engine.world.size > 1:
            tell_error(error)  # first of all: the tracker may take its time
        raise
    finally:
        if trainer.tracker:
            trainer.tracker.close(status)


@contextmanager
def guard_against_hangs(trainer: Trainer) -> Iterator[None]:
    """Within it, a rank that makes no progress writes its stacks and ends; the first step may take longer."""
    engine, own = trainer.engine, trainer.config.train.hang_timeout
    at_start, then = (
        SHARE_OF_TIMEOUT * seconds if own is None else own
        for seconds in (engine.distributed.start_timeout, engine.distributed.timeout)
    )
    with Watchdog(trainer.config.folder / "stacks", engine.world.rank, at_start) as watchdog:
        trainer.heartbeat = watchdog.heartbeat

        def end_start() -> None:
            engine.end_start()
            watchdog.seconds = then

        trainer.end_start = end_start
        yield


def build_hooks(
    config: Config,
    objective: Objective,
    sources: Sources,
    engine: Engine,
    tracker: Tracks | None,
    best: Best | None = None,
) -> tuple[Hook, ...]:
    """Pictures, probes, held-out losses, looks at features, and hooks of the user's own, as often as asked for.

    Args:
        best: is told of what is measured.
    """
    hooks = []
    best = best or Best()

    def note(kind: str, step: int, values: dict[str, Any]) -> None:
        if best.note(kind, step, values) and tracker:
            tracker.event("best", step, {"metric": best.name, "value": best.value})

    if every := config.tracking.picture_every:
        hooks.append(Hook(every, picture_hook(config, objective, sources, engine, tracker)))
    if config.probe.every:
        hooks.append(Hook(config.probe.every, probe_hook(config, objective, engine, tracker, note)))
    if config.data.validation and config.validation.every:
        hook = validation_hook(config, objective, sources, engine, tracker, note)
        hooks.append(Hook(config.validation.every, hook))
    if config.representation.every != 0 and (looks := build_looks(config, objective, sources, engine)):
        hook = representation_hook(looks, engine, tracker, note)
        hooks.append(Hook(looks.every, hook, "representation", looks))
    if best.name:
        hooks.append(Hook(0, lambda _step: None, HOOK, best))  # has nothing to run, but a state to keep
    return (*hooks, *build_own_hooks(config, objective, engine, tracker))


def flops_per_sample(config: Config, objective: Objective, sources: Sources) -> float | None:
    """Model FLOPs of a step, for each sample of the batch. The objective is as built, on the CPU."""
    share = config.train.global_batch_size // World.from_environment().size
    size = min(config.train.micro_batch_size or share, share)
    flops = step_flops(objective, make_first_batch(config, objective, sources, size))
    return None if flops is None else flops / size


def make_first_batch(config: Config, objective: Objective, sources: Sources, size: int) -> Batch:
    """The first `size` samples of the run's stream, as `loss` takes them, on the CPU; the same on every rank."""
    stream, positions = build_stream(config, sources), np.arange(size, dtype=np.int64)
    batch, _, _ = make_micro_batch(stream, objective.make_example, config.seed, positions, objective.collate)
    return objective.arrive(batch)


def build_meter(config: Config, engine: Engine, flops: float | None) -> Meter:
    """What tells of speed on the logged lines, and records the profile where that is asked for."""
    tracking, world = config.tracking, engine.world
    return Meter(
        engine,
        sampler=CommunicationSampler(tracking.communication_every, world.size),
        profiling=Profiling(tracking, config.folder / "profile", world.rank),
        tokens_per_sample=config.data.sequence_length or getattr(config.encoder, "max_length", None),
        flops_per_sample=flops,
        peak_flops=device_peak(engine.device, config.train.precision, tracking.peak_tflops),
    )


def picture_hook(
    config: Config, objective: Objective, sources: Sources, engine: Engine, tracker: Tracks | None
) -> Any:
    """Always the same samples with the same things hidden, so that pictures of different steps can be compared."""
    batch = make_first_batch(config, objective, sources, PICTURE_SAMPLES)
    on_device = {
        name: value.to(engine.device) for name, value in batch.items() if isinstance(value, torch.Tensor)
    }

    def hook(step: int) -> None:
        with mistakes_of_one_rank(), engine.evaluating(objective):
            picture = objective.picture(on_device)
        if tracker and picture is not None:
            tracker.picture(step, picture)

    return hook


def probe_hook(
    config: Config, objective: Objective, engine: Engine, tracker: Tracks | None, note: Note
) -> Any:
    probe = OnlineProbe(config.probe, config.data.storage.fetching)
    check_probe_data(probe, objective.product_encoder)
    if shared := count_shared(probe.train, probe.test):
        log.warning(
            "probe.test: %d of its samples stand in probe.train too, so probes flatter the encoder", shared
        )

    def hook(step: int) -> None:
        with engine.evaluating(objective):
            values = probe.measure(objective, engine)
        if tracker:
            tracker.probe(step, values)
        note("probe", step, values)

    return hook


def validation_hook(
    config: Config,
    objective: Objective,
    sources: Sources,
    engine: Engine,
    tracker: Tracks | None,
    note: Note,
) -> Any:
    validation = Validation(config, objective, sources)

    def hook(step: int) -> None:
        with engine.evaluating(objective):
            values = validation.measure(engine)
        if tracker:
            tracker.validation(step, values)
        note("validation", step, values)

    return hook


def build_looks(config: Config, objective: Objective, sources: Sources, engine: Engine) -> Looks | None:
    """None on all ranks, with a line that says why, where nobody asked for looks and there is nothing to look at."""
    looks, fault = None, None
    try:
        if objective.product not in objective.roles:
            raise UserError(f"the objective's product, {objective.product!r}, is none of its roles")
        looks = Looks(config, objective, sources)
    except (UserError, TypeError) as error:
        if config.representation != RepresentationConfig():
            raise
        fault = str(error)
    fault = next((fault for fault in engine.gather(fault) if fault), None)
    if fault and engine.world.rank == 0:
        log.warning("the features are not looked at (representation.every): %s", fault)
    return None if fault else looks


def representation_hook(looks: Looks, engine: Engine, tracker: Tracks | None, note: Note) -> Any:
    def hook(step: int) -> None:
        drawn: dict[str, Picture] = {}
        values, collapse = looks.look(
            engine, step, lambda *seen: drawn.update(draw_features(looks.objective, engine, *seen))
        )
        if tracker:
            for name, picture in drawn.items():
                tracker.picture(step, picture, name)
        if tracker:
            tracker.representation(step, values)
        if collapse and engine.world.rank == 0:
            log.warning("step %d: %s", step, collapse)
            if tracker:
                tracker.event("collapse", step, {"reason": collapse})
        note("representation", step, values)

    return hook
