"""I-JEPA's blocks (Assran et al. 2023, arXiv:2301.08243, section 3): which patches are targets and which are context.

Pure functions of a grid and a random generator. The reference draws the sizes of blocks once a batch, and cuts every
context to the length of the batch's shortest. Here nothing depends on what else is in the batch: each sample has sizes
of its own, its targets are padded, and a fixed number of its context's patches is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Grid = tuple[int, int]
MOST_TRIES = 1000


@dataclass(frozen=True)
class BlockSizes:
    """How large blocks are, as shares of the grid, and their height over their width."""

    scale: tuple[float, float]
    aspect: tuple[float, float]

    def draw(self, grid: Grid, rng: np.random.Generator) -> tuple[int, int]:
        """(rows, columns) of a block."""
        return self.sides(grid, rng.uniform(*self.scale), rng.uniform(*self.aspect))

    def sides(self, grid: Grid, scale: float, aspect: float) -> tuple[int, int]:
        """As the reference rounds them (src/masks/multiblock.py)."""
        area = math.floor(grid[0] * grid[1] * scale)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        return min(max(rows, 1), grid[0]), min(max(columns, 1), grid[1])

    def largest(self, grid: Grid) -> int:
        """No block has more patches than this."""
        aspects = np.linspace(*self.aspect, num=1000)
        return max(math.prod(self.sides(grid, self.scale[1], aspect)) for aspect in aspects)


@dataclass(frozen=True)
class Asked:
    """What one draw asks: from the context, what is in the targets?"""

    left: Int64Array
    """The patches of the context block that are in no target, in order."""
    targets: Int64Array
    """(T, m) patches of each target block, row by row."""


def draw_blocks(
    grid: Grid, rng: np.random.Generator, number: int, target: BlockSizes, context: BlockSizes
) -> Asked:
    """`number` target blocks of one size, and what they leave of a context block."""
    rows, columns = target.draw(grid, rng)
    targets = np.stack([place(grid, rows, columns, rng) for _ in range(number)])  # (T, m)
    seen = np.zeros(grid[0] * grid[1], dtype=bool)
    seen[place(grid, *context.draw(grid, rng), rng)] = True
    seen[targets] = False
    return Asked(np.flatnonzero(seen), targets)


def place(grid: Grid, rows: int, columns: int, rng: np.random.Generator) -> Int64Array:
    """The patches of a block of that size anywhere on the grid, (rows · columns,), row by row."""
    top, left = rng.integers(grid[0] - rows + 1), rng.integers(grid[1] - columns + 1)
    return np.add.outer((top + np.arange(rows)) * grid[1], left + np.arange(columns)).reshape(-1)


def draw_with_context(
    grid: Grid, rng: np.random.Generator, number: int, target: BlockSizes, context: BlockSizes, kept: int
) -> Asked:
    """`draw_blocks`, again until there is a context of `kept` patches; those that are kept, in random order."""
    for _ in range(MOST_TRIES):
        asked = draw_blocks(grid, rng, number, target, context)
        if len(asked.left) >= kept:
            return Asked(rng.permutation(asked.left)[:kept], asked.targets)
    raise AssertionError(f"{kept} patches of {grid}: `usual_context` tells beforehand what there is")


def usual_context(grid: Grid, number: int, target: BlockSizes, context: BlockSizes) -> int:
    """How many patches are left of the context in half of all draws."""
    rng = np.random.default_rng(0)
    return int(np.median([len(draw_blocks(grid, rng, number, target, context).left) for _ in range(200)]))
