"""`python -m pretrain lr-find RECIPE`: a learning-rate range test, and nothing of a run written.

The run's first steps are taken with a learning rate that rises exponentially, until the loss diverges (Smith 2015,
arXiv:1506.01186). Suggested is the rate at which the loss falls most steeply over the rate's logarithm, a decade below
where it diverges at most; so does fastai's `lr_find`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data_tools.errors import UserError
from data_tools.storage.atomic import atomic_file, write_atomically
from data_tools.storage.objects import is_remote
from pretrain.config.check import check_world_size
from pretrain.config.sections import Config
from pretrain.data import count_steps, first_of, open_sources
from pretrain.engine import start_engine
from pretrain.engine.base import Engine, World
from pretrain.engine.closing import closing_engine
from pretrain.objectives.base import Phase
from pretrain.run.assemble import assemble_trainer
from pretrain.run.branch import take_over_state
from pretrain.run.run import build_objective, shards_weights
from pretrain.trainer import Trainer
from pretrain.weights.start import load_starting_weights

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
"""Where the rate begins and ends, and in how many steps, unless told otherwise."""
RECENT = 5
"""Losses whose mean decides whether training has diverged; updates left out in a row that do."""
ROWS = 12
"""Of the printed table."""


@dataclass(frozen=True)
class RangeTest:
    """The loss of each step, by the rate at which it was taken, and what follows from them."""

    rates: tuple[float, ...]
    """Of `optimizer.lr`; the other optimizers' rates keep their ratio to it."""
    losses: tuple[float, ...]
    diverged: bool
    """Whether the last rate is one at which training diverged."""
    optimizers: dict[str, float]
    """The rate of each of the objective's optimizers, relative to `optimizer.lr`."""

    @property
    def width(self) -> int:
        """Steps over which losses are smoothed: a tenth of them, an odd number."""
        return max(RECENT, len(self.losses) // 10) | 1

    @property
    def smoothed(self) -> np.ndarray:
        return fit_lines(np.asarray(self.losses), self.width)[0]

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest; None where it falls by little more than it scatters."""
        whole = slice(self.width // 2, len(self.losses) - self.width // 2)  # of whole windows
        losses, rates = np.asarray(self.losses), self.rates[whole]
        if not rates:
            return None
        smoothed, slopes = (line[whole] for line in fit_lines(losses, self.width))
        lowest = max(int(smoothed.argmin()), 1)
        scatter = (losses[whole] - smoothed)[:lowest].std()
        return rates[int(slopes.argmin())] if smoothed[0] - smoothed.min() > 2 * scatter else None

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss is lowest."""
        return self.rates[int(self.smoothed.argmin())]

    @property
    def suggestion(self) -> float | None:
        """The rate to begin with, to two digits; None where no rate lowers the loss."""
        if self.steepest is None:
            return None
        rate = min(self.steepest, self.rates[-1] / 10) if self.diverged else self.steepest
        return float(f"{rate:.1e}")

    def values(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "suggestion": self.suggestion,
            "steepest": self.steepest,
            "lowest": self.lowest,
            "diverged_at": self.rates[-1] if self.diverged else None,
            "optimizers": self.optimizers,
            "rates": self.rates,
            "losses": [loss if math.isfinite(loss) else None for loss in self.losses],
            "smoothed": [loss if math.isfinite(loss) else None for loss in self.smoothed.tolist()],
        }

    def describe(self) -> str:
        """A small table, and the suggestion in words."""
        lines = ["learning rate    loss (smoothed)"]
        rows = np.unique(np.linspace(0, len(self.rates) - 1, ROWS).round().astype(int))
        lines += [f"{self.rates[i]:13.2e}    {self.smoothed[i]:.4g}" for i in rows]
        end = f"{self.rates[-1]:.2g}"
        lines.append(f"diverged at {end}" if self.diverged else f"did not diverge up to {end} (--to)")
        if self.suggestion is None:
            lines.append(
                "no suggestion: the loss did not fall by more than it scatters; try more --steps, or begin elsewhere "
                "(--from), or is there a mistake in the objective or its data?"
            )
            return "\n".join(lines)
        lines.append(
            f"steepest at {self.steepest:.2g}, lowest at {self.lowest:.2g}; suggestion: "
            f"optimizer.lr={self.suggestion:g}; another rule, a decade below the lowest, gives {self.lowest / 10:.2g}"
        )
        if len(self.optimizers) > 1:
            all_rates = ", ".join(
                f"{n} {self.suggestion * ratio:.2g}" for n, ratio in self.optimizers.items()
            )
            lines.append(
                f"the rates of all {len(self.optimizers)} optimizers were scaled together and keep their ratio: "
                f"{all_rates}; the loss is the sum of theirs"
            )
        lines.append("it is a peak to warm up to; a long run may want a little less")
        return "\n".join(lines)


def lr_find(
    config: Config, lowest: float = LOWEST, highest: float = HIGHEST, steps: int = STEPS
) -> RangeTest:
    """Take up to `steps` steps from the run's starting weights, with rates from `lowest` to `highest`.

    Call on every rank; all find the same.

    Raises:
        UserError: rates that do not rise, or whatever would stop the run.
    """
    check_range(config, lowest, highest, steps)
    train = replace(config.train, batch_size_warmup=(), spike_sigma=None, ema_decay=None)
    config = replace(config, train=train)
    check_world_size(config, World.from_environment().size)
    sources = open_sources(config.data)
    objective = build_objective(config, first_of(sources), shards_weights(config))
    total = max(steps, count_steps(config, sources))
    engine = start_engine(config)
    with closing_engine(engine):
        trainer = assemble_trainer(
            config, objective, sources, engine, total, load=lambda: load_starting_weights(config, objective)
        )
        take_over_state(trainer)
        rates = np.geomspace(lowest, highest, steps).tolist()
        losses, diverged = take_steps(trainer, rates)
        names = dict.fromkeys(phase.optimizer for phase in trainer.phases)
        ratios = {name: config.optimizer_for(name).lr / config.optimizer.lr for name in names}
        return RangeTest(tuple(rates[: len(losses)]), tuple(losses), diverged, ratios)


def check_range(config: Config, lowest: float, highest: float, steps: int) -> None:
    if not 0 < lowest < highest < math.inf:
        raise UserError(f"--from {lowest:g} --to {highest:g}: rates must rise, and be greater than 0")
    if steps < 4 * RECENT:
        raise UserError(f"--steps {steps}: too few to smooth a loss; give it {4 * RECENT} or more")
    if is_remote(config.init_from or ""):
        raise UserError(
            f"init_from={config.init_from}: would be downloaded into the run's folder, and lr-find writes nothing; "
            "name a copy on this machine"
        )


def take_steps(trainer: Trainer, rates: list[float]) -> tuple[list[float], bool]:
    """The loss of each step, taken at its rate, over all ranks; and whether it diverged, which ends them."""
    losses: list[float] = []
    batches = iter(trainer.loader)
    with closing(trainer.loader):
        for rate in rates:
            with at_rate(trainer.engine, rate / trainer.config.optimizer.lr):
                trainer.train_step(trainer.take_batch(batches))
            losses.append(loss_of(trainer))
            if trainer.engine.holds_anywhere(has_diverged(losses) or is_stuck(trainer)):
                return losses, True
    return losses, False


@contextmanager
def at_rate(engine: Engine, factor: float) -> Iterator[None]:
    """Within it, optimizers step at `factor` times their own rate, whatever the schedule says."""
    step = engine.step

    def step_at_rate(
        phase: Phase,
        lr_factor: float,  # noqa: ARG001 - the schedule's
        max_norm: float | None,
        decay_factor: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        return step(phase, factor, max_norm, decay_factor)

    engine.step = step_at_rate  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine.step = step  # type: ignore[method-assign]


def loss_of(trainer: Trainer) -> float:
    """The newest step's loss over the global batch: the sum of those of the phases that run in every step."""
    values = trainer.reduce_values(after=trainer.step - 1)
    several = len(trainer.phases) > 1
    names = [f"{phase.name}/loss" if several else "loss" for phase in trainer.phases if phase.every == 1]
    return sum(values[name] for name in names)


def has_diverged(losses: list[float]) -> bool:
    """Whether the newest loss is no number, or the newest few lie above the first by more than any lay below.

    That is, by a quarter of it at least: a loss that has not fallen yet scatters, too.
    """
    if not math.isfinite(losses[-1]):
        return True
    if len(losses) < 2 * RECENT:
        return False
    means = np.convolve(losses, np.ones(RECENT) / RECENT, mode="valid")
    return bool(means[-1] > means[0] + max(means[0] - means.min(), abs(means[0]) / 4))


def is_stuck(trainer: Trainer) -> bool:
    """Whether gradients have not been finite for some updates in a row, so that weights stay as they are."""
    return any(float(phase.skipped_in_a_row) >= RECENT for phase in trainer.newest.values())


def fit_lines(losses: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Value and slope, at each loss, of the line that fits it and its neighbours best.

    They are `width` losses, fewer at the ends. Steps are the unit of slopes, which are equally long on the logarithm of
    the rate. A loss that is no number counts as the largest that is one.
    """
    known = np.isfinite(losses)
    finite = np.where(known, losses, losses[known].max() if known.any() else 0.0)
    lines = []
    for i in range(len(finite)):
        low, high = max(0, i - width // 2), min(len(finite), i + width // 2 + 1)
        slope, value = (
            np.polyfit(np.arange(low, high) - i, finite[low:high], 1) if high - low > 1 else (0, finite[i])
        )
        lines.append((value, slope))
    values, slopes = np.array(lines).T
    return values, slopes


def write_range_test(found: RangeTest, folder: Path) -> None:
    """`lr_find.json` and `lr_find.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "lr_find.json", json.dumps(found.values(), indent=1))
    from pretrain.report.lr_find_chart import range_test_chart  # matplotlib takes a second

    with atomic_file(folder / "lr_find.png") as partial:
        partial.write_bytes(range_test_chart(found.rates, found.losses, found.smoothed, found.suggestion))
