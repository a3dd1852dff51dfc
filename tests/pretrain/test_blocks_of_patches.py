"""I-JEPA's questions: blocks of the published sizes, and a context that shows nothing of what is asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import UserError
from pretrain.config.load import load_config
from pretrain.data import first_of, open_sources
from pretrain.objectives.blocks_of_patches import BlockSizes, draw_with_context, usual_context
from pretrain.run.run import build_objective

TARGET, CONTEXT = BlockSizes((0.15, 0.2), (0.75, 1.5)), BlockSizes((0.85, 1.0), (1.0, 1.0))


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 20), st.integers(5, 20), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_targets_are_blocks_and_the_context_has_none_of_their_patches(rows, columns, seed, number):
    grid = (rows, columns)
    kept = usual_context(grid, number, TARGET, CONTEXT)
    asked = draw_with_context(grid, np.random.default_rng(seed), number, TARGET, CONTEXT, kept)
    assert len(set(asked.left.tolist())) == kept
    assert not set(asked.left.tolist()) & set(asked.targets.flatten().tolist())
    assert asked.targets.shape[0] == number
    assert asked.targets.shape[1] <= TARGET.largest(grid)
    for block in asked.targets:
        r, c = np.unique(block // columns), np.unique(block % columns)
        assert len(r) * len(c) == len(block) == len(set(block.tolist()))
        assert r[-1] - r[0] + 1 == len(r) and c[-1] - c[0] + 1 == len(c)
        assert 0.5 < len(block) / (0.175 * rows * columns) < 2  # sides are rounded


def test_on_the_grid_of_the_paper_blocks_have_its_area_and_aspect():
    rng = np.random.default_rng(0)
    sides = [TARGET.draw((14, 14), rng) for _ in range(2000)]
    areas = np.array([math.prod(s) for s in sides]) / 196
    assert 0.16 < areas.mean() < 0.19
    assert max(math.prod(s) for s in sides) == TARGET.largest((14, 14))
    assert {r > c for r, c in sides} == {True, False}


def test_more_context_than_draws_leave_is_refused_with_what_there_is():
    config, _ = load_config("ijepa_digits", ["objective.context_patches=40"])
    with pytest.raises(
        UserError, match=r"objective.context_patches=40: of 49 patches, half of all draws .* 1 to 2\d"
    ):
        build_objective(config, first_of(open_sources(config.data)))
