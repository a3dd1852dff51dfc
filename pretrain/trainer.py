"""The training loop. It walks an objective's phases through an engine and knows neither by name."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from data_tools.errors import OneRankError, UserError, mistakes_of_one_rank
from data_tools.stream.loader import Loader, Step
from pretrain.checkpoint.failures import Failure
from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.sections import Config
from pretrain.data import resume_loader
from pretrain.engine.base import Engine
from pretrain.engine.counts import StepCounts
from pretrain.engine.feed import Feed
from pretrain.guards.garbage import collect_garbage_every
from pretrain.guards.out_of_memory import explain_memory_of_reading, explain_out_of_memory
from pretrain.guards.preemption import StopRequest
from pretrain.guards.stuck import stop_if_stuck
from pretrain.metering.meter import Meter
from pretrain.metering.phase_values import PhaseValues, reduce_values
from pretrain.objectives.base import Objective, Phase
from pretrain.ops.seeds import seed_of
from pretrain.optim.schedules import learning_rate, weight_decay_factor
from pretrain.tracking.tracks import Tracks

log = logging.getLogger(__name__)


@dataclass
class Hook:
    """Something to do beside training (a probe, a picture), on all ranks together, every so many steps."""

    every: int
    run: Callable[[int], None]
    name: str = ""
    stateful: Any = None
    """Whose `state_dict` is kept in checkpoints, under the name."""

    def due(self, step: int, total_steps: int) -> bool:
        return self.every > 0 and (step % self.every == 0 or step == total_steps)


class Trainer:
    """Trains an objective from wherever it stands to the last step."""

    def __init__(
        self,
        config: Config,
        objective: Objective,
        loader: Loader,
        engine: Engine,
        total_steps: int,
        tracker: Tracks | None = None,
        checkpoints: Checkpoints | None = None,
        hooks: tuple[Hook, ...] = (),
        meter: Meter | None = None,
    ) -> None:
        self.config = config
        self.objective = objective
        self.loader = loader
        self.engine = engine
        self.total_steps = total_steps
        self.tracker = tracker
        self.checkpoints = checkpoints
        self.hooks = hooks
        self.hook_states: dict[str, Any] = {}
        """Of the checkpoint that was resumed, by name."""
        self.meter = meter or Meter(engine)
        self.feed = Feed(engine.device, objective.arrive)
        self.step = 0
        self.phases = objective.phases()
        self.optimizers = {phase.name: config.optimizer_for(phase.optimizer) for phase in self.phases}
        """The settings of each phase's optimizer, by the phase's name."""
        prefixes = {p.name: f"{p.name}/" if len(self.phases) > 1 else "" for p in self.phases}
        self.newest = {name: PhaseValues(prefix, engine.device) for name, prefix in prefixes.items()}
        """Of each phase, by its name, what its newest step came to."""
        self.logged_at = 0
        """The step of the last logged line."""
        self.damages_told = self.damages_told_here = 0
        """Events of damaged samples so far: of all ranks, of this one."""
        self.stop_request = StopRequest()
        """Asks nothing, unless whoever starts the trainer lets it listen to signals."""
        self.stopping = False
        self.stop_at: int | None = None
        """The step after which it saves and stops, as if asked to, on a schedule that goes on to `total_steps`."""
        self.heartbeat: Callable[[str], None] = lambda _: None
        """Told what begins, so that a watchdog can tell what does not end."""
        self.end_start: Callable[[], None] = engine.end_start
        """Called when the first step has ended, on all ranks."""

    def resume(self, at_most: int | None = None) -> list[str] | None:
        """Go on from the newest valid checkpoint, of no later step than `at_most` where that is given.

        Returns:
            What is wrong with newer, broken ones; None where there is no checkpoint to go on from.
        """
        progress, broken = self.checkpoints.resume(at_most) if self.checkpoints else (None, [])
        if progress is None:
            return None
        self.step = progress["step"]
        self.hook_states = progress.get("hooks", {})
        resume_loader(self.loader, progress["stream"], self.config.data)
        return broken

    def fit(self) -> bool:
        """Run every remaining step, logging, saving and running hooks when they are due.

        Returns:
            Whether the run has come to its end; not when some rank was asked to stop, or `stop_at` is reached, and
            all have saved.
        """
        self.meter.restart()
        try:
            if self.step == 0 and not self.engine.holds_anywhere(self.stop_request.asked):
                self.objective.begin_step(0, self.total_steps)
                self.run_hooks(initial=True)
            with collect_garbage_every(self.config.train.gc_every) as collect_garbage:
                finished = self.run_steps(collect_garbage)
        except Exception as error:
            of_all = isinstance(error, UserError) and not isinstance(error, OneRankError)
            if of_all or self.engine.world.size == 1:
                self.finish_saving()  # met by all ranks together: what is being written is not lost
            raise
        finally:
            self.loader.close()
        self.finish_saving()
        self.meter.close()
        return finished

    def run_steps(self, collect_garbage: Callable[[int], None]) -> bool:
        if self.step < self.total_steps and self.engine.holds_anywhere(self.stop_request.asked):
            return False  # nothing has been learned since the newest checkpoint
        if self.at_stop:
            return False
        steps, first = iter(self.loader), self.step
        while self.step < self.total_steps:
            batch = self.take_batch(steps)
            self.train_step(batch)
            if self.step == first + 1:
                self.end_start()
            if self.step % self.config.tracking.log_every == 0 or self.step == self.total_steps:
                self.log(batch)
            stop = (self.stopping or self.at_stop) and self.step < self.total_steps
            if not stop:
                self.run_hooks()
            if self.checkpoints and (stop or self.checkpoints.due(self.step, self.total_steps)):
                self.heartbeat(f"saving step {self.step}")
                self.report_failures(self.checkpoints.save(self.step, self.progress(), self.heartbeat))
            collect_garbage(self.step)
            if stop:
                return False
        return True

    @property
    def at_stop(self) -> bool:
        """Whether the step of `stop_at` has been taken."""
        return self.stop_at is not None and self.step >= self.stop_at

    def train_step(self, batch: Step) -> None:
        """Every phase that is due, over one global batch."""
        self.heartbeat(f"step {self.step + 1}")
        samples = self.engine.world.size * sum(map(len, batch.keys))
        phases = [phase for phase in self.phases if self.step % phase.every == 0]
        with (
            mistakes_of_one_rank(),
            self.meter.step(self.step + 1, samples),
            explain_out_of_memory(self.step + 1, self.config.train, len(batch.keys[0])),
        ):
            asked = self.stop_request.asked
            counts = StepCounts(
                self.engine.world, self.objective, phases, batch.micro_batches, samples, asked
            )
            self.objective.begin_step(self.step, self.total_steps)
            for phase in phases:
                self.update(phase, batch, counts)
            # All ranks stop after the same step. By now they have long been at this one, so this waits for nobody.
            self.stopping |= counts.any_asked_to_stop()
            self.meter.waiting["ranks"] += counts.pending.seconds
        self.step += 1

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors; JSON-able, and a copy, for it is written while training goes on."""
        states = {
            hook.name: copy.deepcopy(hook.stateful.state_dict()) for hook in self.hooks if hook.stateful
        }
        return {"stream": self.loader.state_dict(), **({"hooks": states} if states else {})}

    def add_hooks(self, hooks: Iterable[Hook]) -> None:
        """Let hooks run from here on, in the state that they had where a checkpoint was resumed."""
        self.hooks = (*self.hooks, *hooks)
        for hook in self.hooks:
            if hook.stateful and hook.name in self.hook_states:
                hook.stateful.load_state_dict(self.hook_states[hook.name])

    def finish_saving(self) -> None:
        if self.checkpoints:
            self.report_failures(self.checkpoints.finish(self.heartbeat))

    def report_failures(self, failures: list[Failure]) -> None:
        """Checkpoints could not be written or copied, and the run goes on."""
        for failure in failures:
            if self.tracker:
                self.tracker.event("checkpoint_failed", failure.step, {"reason": failure.reason})
                log.warning(failure.reason)

    def take_batch(self, steps: Iterator[Step]) -> Step:
        self.heartbeat(f"reading the batch of step {self.step + 1}")
        memory = explain_memory_of_reading(self.step + 1, self.config.data.workers)
        with mistakes_of_one_rank(), memory, self.meter.wait_for("data"):
            return next(steps)

    def update(self, phase: Phase, step: Step, counts: StepCounts) -> None:
        """One optimizer step of one phase over the whole global batch."""
        # The count over all ranks and micro-batches comes first, so that each backward pass is scaled exactly.
        scale = {name: 1.0 / max(count, 1.0) for name, count in counts.of(phase).items()}
        values = self.newest[phase.name]
        values.begin(self.step + 1)
        torch.manual_seed(seed_of(self.config.seed, self.step, phase.name, self.engine.world.rank))
        last = len(step.micro_batches) - 1
        for i, batch in enumerate(self.feed.copy(step.micro_batches)):
            values.add_loss(self.engine.backward(phase, batch, scale, last=i == last), scale)
        factor = learning_rate(self.step, self.total_steps, self.config.schedule)
        decay = weight_decay_factor(self.step, self.total_steps, self.optimizers[phase.name])
        norm, skipped = self.engine.step(phase, factor, self.config.train.clip_grad_norm, decay)
        # Every rank has the same norm, so its share of the sum over ranks is one in `world.size`.
        values.values["grad_norm"] = norm.double() / self.engine.world.size
        values.note_skipped(skipped)
        self.engine.after_step(phase, self.step, skipped)

    def reduce_values(self, after: int) -> dict[str, float]:
        """The newest values over the global batch of the phases that ran after step `after`. On all ranks together."""
        fresh = [values for values in self.newest.values() if values.step > after]
        return reduce_values(fresh, self.step, self.engine.sum)

    def log(self, batch: Step) -> None:
        """Hand the values since the last line to the tracker, with how fast it went."""
        values = {
            **self.reduce_values(self.logged_at),
            "lr": self.config.optimizer.lr
            * learning_rate(self.step - 1, self.total_steps, self.config.schedule),
            "position": self.loader.state_dict()["position"],
            "epoch": batch.epoch,
            **self.meter.line(),
            "skipped_updates": self.count_skipped(),
            **self.report_damage(),
        }
        if self.tracker:
            self.tracker.train(self.step, values)
        self.logged_at = self.step
        for phase in self.newest.values():
            phase.skipped_since.zero_()
        stop_if_stuck(self.step, self.newest, batch.keys, self.engine, self.tracker, self.config)

    def count_skipped(self) -> int:
        """Updates left out since the last logged line. Waits for the device."""
        return int(sum(values.skipped_since for values in self.newest.values()))

    def report_damage(self) -> dict[str, int]:
        """How many samples of all ranks were damaged and replaced so far, once there is one; each is an event."""
        own = self.loader.ledger.entries
        total = int(self.engine.sum(torch.tensor(float(len(own)), dtype=torch.float64)))
        if total > self.damages_told:
            new = [asdict(entry) for entry in own[self.damages_told_here :]]
            for entry in (entry for entries in self.engine.gather(new) for entry in entries):
                if self.tracker:
                    self.tracker.event("damaged", self.step, entry)
            self.damages_told, self.damages_told_here = total, len(own)
        return {"damaged_samples": total} if total else {}

    def run_hooks(self, initial: bool = False) -> None:
        with self.meter.leave_out():
            for hook in self.hooks:
                if initial or hook.due(self.step, self.total_steps):
                    self.heartbeat(f"pictures, probes and held-out losses of step {self.step}")
                    hook.run(self.step)
