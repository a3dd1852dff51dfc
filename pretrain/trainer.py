"""The training loop. It walks an objective's phases through an engine and knows neither by name."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from data_tools.errors import OneRankError, UserError
from data_tools.loader import Loader, Step
from pretrain.checkpoint.failures import Failure
from pretrain.checkpoint.saving import Checkpoints
from pretrain.config.sections import Config
from pretrain.data import resume_loader
from pretrain.engine.base import Engine
from pretrain.engine.feed import Feed
from pretrain.guards.out_of_memory import explain_out_of_memory
from pretrain.guards.preemption import StopRequest
from pretrain.metering.meter import Meter
from pretrain.objectives.base import Metric, Objective, Phase
from pretrain.optim.schedules import learning_rate
from pretrain.tracking.pictures import Picture

log = logging.getLogger(__name__)


class Tracks(Protocol):
    """What the trainer tells of itself; `pretrain.tracking.Tracker` in a real run."""

    def train(self, step: int, values: dict[str, Any]) -> None: ...
    def probe(self, step: int, values: dict[str, Any]) -> None: ...
    def validation(self, step: int, values: dict[str, Any]) -> None: ...
    def picture(self, step: int, picture: Picture) -> None: ...
    def event(self, kind: str, step: int, values: dict[str, Any]) -> None: ...
    def close(self, status: str) -> None: ...


@dataclass
class Hook:
    """Something to do beside training (a probe, a picture), on all ranks together, every so many steps."""

    every: int
    run: Callable[[int], None]

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
        self.meter = meter or Meter(engine)
        self.feed = Feed(engine.device)
        self.step = 0
        self.phases = objective.phases()
        self.values: dict[str, Tensor] = {}
        """Of the newest step, by label: this rank's share of the mean over the global batch."""
        self.counts: dict[str, Tensor] = {}
        """Of those metrics that have a count of their own."""
        self.skipped_in_a_row = torch.zeros((), device=engine.device)
        self.skipped_since = torch.zeros((), device=engine.device)
        """Updates left out since the last logged line."""
        self.damages_told = 0
        self.stop_request = StopRequest()
        """Asks nothing, unless whoever starts the trainer lets it listen to signals."""
        self.stopping = False
        self.heartbeat: Callable[[str], None] = lambda _: None
        """Told what begins, so that a watchdog can tell what does not end."""

    def resume(self, at_most: int | None = None) -> list[str] | None:
        """Go on from the newest valid checkpoint, of no later step than `at_most` where that is given.

        Returns:
            What is wrong with newer, broken ones; None where there is no checkpoint to go on from.
        """
        progress, broken = self.checkpoints.resume(at_most) if self.checkpoints else (None, [])
        if progress is None:
            return None
        self.step = progress["step"]
        resume_loader(self.loader, progress["stream"], self.config.data)
        return broken

    def fit(self) -> bool:
        """Run every remaining step, logging, saving and running hooks when they are due.

        Returns:
            Whether the run has come to its end; not when some rank was asked to stop, and all have saved.
        """
        self.meter.restart()
        try:
            if self.step == 0:
                self.run_hooks(initial=True)
            finished = self.run_steps()
        except OneRankError:
            raise
        except UserError:
            self.finish_saving()  # met by all ranks together: what is being written is not lost
            raise
        self.finish_saving()
        self.meter.close()
        return finished

    def run_steps(self) -> bool:
        steps = iter(self.loader)
        while self.step < self.total_steps:
            batch = self.take(steps)
            self.train_step(batch)
            if self.due(self.config.tracking.log_every):
                self.log(batch)
            stop = self.stopping and self.step < self.total_steps
            if not stop:
                self.run_hooks()
            if self.checkpoints and (stop or self.due(self.config.checkpoint.every)):
                self.heartbeat(f"saving step {self.step}")
                self.tell(self.checkpoints.save(self.step, {"stream": self.loader.state_dict()}))
            if stop:
                return False
        return True

    def train_step(self, batch: Step) -> None:
        """Every phase that is due, over one global batch."""
        self.heartbeat(f"step {self.step + 1}")
        self.values.clear()
        self.counts.clear()
        samples = self.engine.world.size * sum(map(len, batch.keys))
        with (
            self.meter.step(self.step + 1, samples),
            explain_out_of_memory(self.step + 1, self.config.train, len(batch.keys[0])),
        ):
            for phase in self.phases:
                if self.step % phase.every == 0:
                    self.update(phase, batch)
        self.step += 1

    def finish_saving(self) -> None:
        if self.checkpoints:
            self.tell(self.checkpoints.finish(self.heartbeat))

    def tell(self, failures: list[Failure]) -> None:
        """Checkpoints could not be written or copied, and the run goes on."""
        for failure in failures:
            if self.tracker:
                self.tracker.event("checkpoint_failed", failure.step, {"reason": failure.reason})
                log.warning(failure.reason)

    def due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.total_steps

    def take(self, steps: Iterator[Step]) -> Step:
        self.heartbeat(f"reading the batch of step {self.step + 1}")
        try:
            with self.meter.wait_for("data"):
                return next(steps)
        except UserError as error:
            raise OneRankError(str(error)) from None

    def update(self, phase: Phase, step: Step) -> None:
        """One optimizer step of one phase over the whole global batch."""
        micro_batches = step.micro_batches
        # The count over all ranks and micro-batches comes first, so that each backward pass is scaled exactly; with it
        # goes whether any rank was asked to stop, so that all of them stop after the same step.
        own_count = sum(self.objective.count(phase, b) for b in micro_batches)
        with self.meter.wait_for("ranks"):
            count, asked = self.engine.sum(torch.tensor([own_count, int(self.stop_request.asked)])).tolist()
        self.stopping |= asked > 0
        scale = 1.0 / max(count, 1.0)
        torch.manual_seed(seed_of(self.config.seed, self.step, phase.name, self.engine.world.rank))
        for i, batch in enumerate(self.feed.copy(micro_batches)):
            loss = self.engine.backward(phase, batch, scale, last=i == len(micro_batches) - 1)
            for name, value in {"loss": loss.sum, **loss.metrics}.items():
                self.add(self.label(phase, name), value, scale)
        factor = learning_rate(self.step, self.total_steps, self.config.schedule)
        norm, skipped = self.engine.step(phase, factor, self.config.train.clip_grad_norm)
        # Every rank has the same norm, so its share of the sum over ranks is one in `world.size`.
        self.values[self.label(phase, "grad_norm")] = norm.double() / self.engine.world.size
        self.skipped_in_a_row = (self.skipped_in_a_row + skipped) * skipped
        self.skipped_since = self.skipped_since + skipped
        self.engine.after_step(phase, self.step)

    def add(self, label: str, value: Metric, scale: float) -> None:
        if isinstance(value, tuple):  # with a count of its own
            value, count = value
            self.counts[label] = self.counts.get(label, 0) + count.double()
            scale = 1.0
        self.values[label] = self.values.get(label, 0) + value.detach().double() * scale

    def label(self, phase: Phase, name: str) -> str:
        return name if len(self.phases) == 1 else f"{phase.name}/{name}"

    def reduced(self) -> dict[str, float]:
        """The newest step's values over the global batch: reduced over ranks, once."""
        sums = self.engine.sum(torch.stack([*self.values.values(), *self.counts.values()])).tolist()
        counts = dict(zip(self.counts, sums[len(self.values) :], strict=True))
        return {n: s / max(counts.get(n, 1.0), 1.0) for n, s in zip(self.values, sums, strict=False)}

    def log(self, batch: Step) -> None:
        """Hand the newest step's values to the tracker, with how fast it went."""
        reduced = self.reduced()
        values = {
            **reduced,
            "lr": self.config.optimizer.lr
            * learning_rate(self.step - 1, self.total_steps, self.config.schedule),
            "position": self.loader.state_dict()["position"],
            "epoch": batch.epoch,
            **self.meter.line(),
            "skipped_updates": int(self.skipped_since.item()),
            **self.damaged(),
        }
        if self.tracker:
            self.tracker.train(self.step, values)
        self.skipped_since.zero_()
        self.stop_if_stuck(batch)

    def damaged(self) -> dict[str, int]:
        """How many samples of rank 0's share were damaged and replaced so far, once there is one; each is an event."""
        entries = self.loader.ledger.entries
        if self.tracker:
            for entry in entries[self.damages_told :]:
                self.tracker.event("damaged", self.step, asdict(entry))
        self.damages_told = len(entries)
        return {"damaged_samples": len(entries)} if entries else {}

    def stop_if_stuck(self, batch: Step) -> None:
        """Give up after too many updates left out in a row. All ranks agree, for they all know the same norms."""
        in_a_row = int(self.skipped_in_a_row.item())
        if in_a_row < self.config.train.max_skipped_steps:
            return
        keys = [key for rank in self.engine.gather(batch.keys) for micro in rank for key in micro]
        if self.tracker:
            self.tracker.event("aborted", self.step, {"skipped_in_a_row": in_a_row, "keys": keys})
        raise UserError(
            f"step {self.step}: the gradient was not finite, or a spike, in the last {in_a_row} updates "
            f"(train.max_skipped_steps); the batch's samples: {', '.join(keys[:4])} … (all in metrics.jsonl); lower "
            f"optimizer.lr, or look at the step: python -m pretrain replay {self.config.folder} --step {self.step}"
        )

    def run_hooks(self, initial: bool = False) -> None:
        with self.meter.leave_out():
            for hook in self.hooks:
                if initial or hook.due(self.step, self.total_steps):
                    self.heartbeat(f"pictures, probes and held-out losses of step {self.step}")
                    hook.run(self.step)


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from whatever identifies the moment."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
