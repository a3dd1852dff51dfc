"""The plan of a comparison and what its table says: pure functions."""

from __future__ import annotations

import io
from itertools import pairwise
from math import isclose
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_tools.errors import UserError
from pretrain.compare.chart import draw_chart
from pretrain.compare.jobs import find_reason
from pretrain.compare.options import parse_duration
from pretrain.compare.plan import (
    LEAST_STEPS,
    Pace,
    count_survivors,
    finalist_share,
    keep_better,
    least_seconds,
    needed_seconds,
    plan_rungs,
    share_seconds,
)
from pretrain.compare.table import (
    Point,
    Row,
    Way,
    describe_table,
    describe_verdict,
    find_winner,
    margin,
)
from pretrain.compare.tuned import Tuning


@given(st.integers(1, 40))
def test_rungs_halve_until_two_are_left_to_compare(candidates: int) -> None:
    counts = count_survivors(candidates)
    assert counts[0] == candidates
    assert counts[-1] == min(2, candidates)
    assert all(after == -(-before // 2) for before, after in pairwise(counts))


@given(st.integers(1, 12), st.floats(1, 20), st.floats(0.001, 0.5), st.floats(0, 20), st.floats(0, 20))
def test_rungs_use_the_budget_and_never_more(
    candidates: int, times: float, step: float, start: float, probing: float
) -> None:
    paces = {str(i): Pace(step * (1 + i), start) for i in range(candidates)}
    seconds = times * least_seconds(paces, probing)
    rungs = plan_rungs(paces, seconds, probing)
    assert isclose(sum(rung.runs * rung.seconds for rung in rungs), seconds)
    assert isclose(sum(rung.seconds for rung in rungs), seconds * finalist_share(candidates))
    before = dict.fromkeys(paces, 0)
    for rung in rungs:
        for name, pace in paces.items():
            trained = (rung.stop_at[name] - before[name]) * pace.step
            spare = rung.seconds - probing - pace.start - trained
            assert -1e-5 * pace.step <= spare < pace.step, "equal seconds, to a step"
        before = rung.stop_at


@given(st.integers(1, 12), st.floats(0.001, 0.5), st.floats(0, 20), st.floats(0, 20))
def test_the_least_budget_is_the_least_that_lets_all_take_some_steps(
    candidates: int, step: float, start: float, probing: float
) -> None:
    paces = {str(i): Pace(step * (1 + i), start) for i in range(candidates)}
    least = least_seconds(paces, probing)
    assert min(plan_rungs(paces, least, probing)[0].stop_at.values()) == LEAST_STEPS
    less = least - candidates * len(count_survivors(candidates)) * step / 10
    assert min(plan_rungs(paces, less, probing)[0].stop_at.values()) < LEAST_STEPS


@given(st.floats(1, 1000), st.floats(1, 1000), st.floats(1, 10))
def test_the_least_budget_gives_pretraining_and_fine_tuning_what_they_need(
    pretraining: float, tuning: float, times: float
) -> None:
    needed = needed_seconds(pretraining, tuning)
    for seconds in (needed, needed * times):
        shares = share_seconds(seconds, tuning)
        assert isclose(sum(shares), seconds)
        assert shares[0] >= 0.999 * pretraining
        assert shares[1] >= tuning
    assert share_seconds(0.99 * needed, tuning)[0] < pretraining


class Climbing(Tuning):
    """Takes ten seconds for fifty steps, and is better the longer it trains, up to some number of steps."""

    def __init__(self, best: int) -> None:
        self.steps, self.best = [], best

    def measure(
        self, name: str, encoder: Path, method: str, steps: int, side: str, *how: Any
    ) -> dict[str, Any]:
        return {"draws": [0.9 - abs(steps - self.best) / 10_000], "seconds": steps / 5, "inside": steps / 5}


@pytest.mark.parametrize(
    ("seconds", "best", "tried", "longer"),
    [(60, 3200, [50], True), (120, 3200, [50, 200], True), (1e6, 3200, [50, 200, 800, 3200], False),
     (1e6, 200, [50, 200, 800, 3200], False)],
)  # fmt: skip
def test_fine_tuning_climbs_as_far_as_its_time_reaches_and_says_where_that_ended_it(
    seconds: float, best: int, tried: list[int], longer: bool, tmp_path: Path
) -> None:
    found = Climbing(best).tune("mae", tmp_path, "full", seconds)
    assert (found["tried"], found["longer"]) == (tried, longer)
    assert found["way"]["name"] == f"fine-tuned, {min(best, tried[-1])} steps"


def test_the_better_half_goes_on_best_first() -> None:
    assert keep_better({"a": 0.5, "b": 0.7, "c": 0.7, "d": 0.1}, 2) == ["b", "c"]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    for wrong in ("20", "0s", "min", "-3s"):
        with pytest.raises(UserError, match="--budget"):
            parse_duration(wrong)


def test_reasons_are_the_line_that_tells_an_error() -> None:
    assert find_reason("step 1\nerror: lower optimizer.lr\nbye\n", 2) == "lower optimizer.lr"
    assert find_reason("Traceback …\n  x\nRuntimeError: shapes\n", 1) == "RuntimeError: shapes"
    assert "SIGKILL" in find_reason("", -9)
    assert find_reason("", 3) == "ended with exit status 3"


def way(name: str, *test: float, select: float = 0.5) -> Way:
    return Way(name, [select] * len(test), list(test))


def test_draws_are_compared_one_by_one_where_they_are_the_same() -> None:
    difference, spread = margin(way("ridge", 0.5, 0.7), way("kNN", 0.4, 0.6))
    assert isclose(difference, 0.1)
    assert spread < 1e-9, "each draw differs by as much"
    _, spread = margin(way("ridge", 0.5, 0.7), way("fine-tuned, 50 steps", 0.4, 0.6))
    assert spread > 0.1


def test_a_row_is_judged_by_the_way_that_was_chosen_elsewhere() -> None:
    row = Row("mae", [way("ridge", 0.9, 0.9, select=0.3), way("kNN", 0.6, 0.6, select=0.4)])
    assert row.best is not None
    assert row.best.name == "kNN", "the test samples choose nothing"


def trained(name: str, probe: Way, steps: int, contends: bool = True) -> Row:
    return Row(name, [probe], points=[Point(steps, 8.0, probe)], contends=contends)


def rows(lead: float) -> list[Row]:
    return [
        Row("raw input", [way("kNN", 0.2, 0.3)]),
        Row("from scratch", tuned=way("fine-tuned, 200 steps", 0.5, 0.52)),
        trained("mae", way("ridge", 0.6, 0.7), 90),
        trained("simmim", way("ridge", 0.65 + lead, 0.65 + lead), 70),
        trained("gan", way("ridge", 0.9, 0.9), 20, contends=False),
        Row("mlm", notes=["left out: has no demo | recipe"]),
    ]


def test_a_winner_is_clear_only_beyond_the_spread() -> None:
    clear, pays = describe_verdict(rows(lead=0.2))
    assert clear.startswith("winner: simmim: simmim (ridge) against mae (ridge): +20.0 points")
    assert pays.startswith("pretraining pays: simmim (ridge) against from scratch")
    unclear, _ = describe_verdict(rows(lead=0.02))
    assert unclear.startswith("no clear winner: simmim")
    worse, fails = describe_verdict([*rows(0.2), Row("encoder", [way("ridge", 0.95, 0.95)])])
    assert fails.startswith("pretraining does not clearly pay: simmim (ridge) against encoder")
    assert worse == clear
    assert describe_verdict(rows(0.2)[:2]) == ["no winner: no pretrained encoder came to the end"]


def test_the_table_has_every_row_best_first_and_says_why_one_has_nothing() -> None:
    lines = describe_table(rows(0.2), shots=10).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "gan", "simmim", "mae", "from scratch", "raw input", "mlm"]  # fmt: skip
    assert "left out: has no demo \\| recipe" in lines[-1]
    assert "**85.0 ± 0.0**" in lines[3]
    assert find_winner(rows(0.2)).name == "simmim", "who was stopped on the way does not contend"  # type: ignore[union-attr]


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    draw_chart(rows(0.2), 10, path)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.width > 1000
        assert len(image.convert("RGB").resize((200, 90)).getcolors(100_000) or []) > 50
