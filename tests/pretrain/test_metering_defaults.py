"""What costs time, or prints lines of its own, is not measured unless somebody asks for it."""

from __future__ import annotations

import pytest

from pretrain.config.load import RECIPES, load_config
from pretrain.metering.communication import CommunicationSampler
from pretrain.metering.profiling import Profiling


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_no_step_of_any_recipe_is_profiled_by_default(recipe, tmp_path):
    tracking = load_config(recipe, [])[0].tracking
    sampler = CommunicationSampler(tracking.communication_every, ranks=2)
    profiling = Profiling(tracking, tmp_path, rank=0)
    assert not any(sampler.due(step) or profiling.covers(step) for step in range(1, 301))
