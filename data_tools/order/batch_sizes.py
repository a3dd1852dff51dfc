"""How large the global batch is: it may grow in stages, and is then the same for good."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizes:
    """Global batch sizes as a function of the position alone, so that a resumed run needs no count of its steps."""

    final: int
    warmup: tuple[tuple[int, int], ...] = ()
    """Stages before the final size: (samples in a global batch, steps)."""

    def at(self, position: int) -> int:
        """Samples of the global batch that starts at `position`."""
        start = 0
        for size, steps in self.warmup:
            start += size * steps
            if position < start:
                return size
        return self.final

    def position(self, steps: int) -> int:
        """Where the global batch starts that comes after so many steps."""
        position = 0
        for size, number in self.warmup:
            position += size * min(steps, number)
            steps = max(0, steps - number)
        return position + self.final * steps

    def steps_for(self, samples: float, position: int = 0) -> int:
        """Steps until at least so many more samples have been seen, from `position` on."""
        done, end = 0, 0
        for size, steps in self.warmup:
            end += size * steps
            inside = ceil_div(max(0, end - position), size)  # steps that are left of this stage
            if samples <= inside * size:
                return done + ceil_div(samples, size)
            samples, done, position = samples - inside * size, done + inside, position + inside * size
        return done + ceil_div(samples, self.final)

    @property
    def all(self) -> list[int]:
        """Every size that occurs, in the order of the stages."""
        return [size for size, _ in self.warmup] + [self.final]


def ceil_div(number: float, by: int) -> int:
    """The smallest whole number of ``by`` that hold ``number``."""
    return int(-(-number // by))
