"""Every recipe's first losses on every engine are those that `tests/golden/recipes.py` wrote down."""

from __future__ import annotations

import json

import pytest

from pretrain.config.load import RECIPES
from tests.golden.recipes import LOSSES, SMALLER, STEPS, WHOLE_PARAMETERS, tokenize, train, train_all
from tests.processes import run

GOLDEN = json.loads(LOSSES.read_text())
TOLERANCE = 1e-3
"""Relative: processors differ in the last bits, and eight steps amplify that."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    tokenize(folder)
    return folder


def assert_golden(found, left_out=()):
    assert found.keys() == GOLDEN.keys() - set(left_out)
    for recipe, rows in GOLDEN.items():
        if recipe in left_out:
            continue
        assert len(found[recipe]) == len(rows) == STEPS
        for step, (row, other) in enumerate(zip(rows, found[recipe], strict=True), 1):
            assert other == pytest.approx(row, rel=TOLERANCE), (recipe, step)


def test_one_process_learns_what_it_learnt(tokens):
    assert_golden(train_all("ddp", tokens))


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_another_engine_learns_it_too(engine, tokens, tmp_path):
    run("tests.golden.recipes", [engine, str(tmp_path / "losses.json"), str(tokens)])
    left_out = WHOLE_PARAMETERS if engine == "deepspeed" else ()
    assert_golden(json.loads((tmp_path / "losses.json").read_text()), left_out)


def test_every_recipe_has_golden_losses():
    assert sorted(SMALLER) == sorted(path.stem for path in RECIPES.glob("*.yaml"))


def test_a_change_of_what_is_learnt_shows(tokens):
    found = {**GOLDEN, "mlm_sotu": train("mlm_sotu", tokens, "objective.mask_ratio=0.29")}
    with pytest.raises(AssertionError, match="mlm_sotu"):
        assert_golden(found)
