"""Every engine, on every number of ranks, learns what one process learns: the curves are one curve.

This one comparison tests data order, masks, gradient averaging, accumulation and loss normalisation together. It also
holds for an objective made of everything in which engines differ (`hard_objective`). fp32, the same seed and global
batch; losses agree within 1e-5 relative at each of 8 steps.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cases import CASES, COUPLED, LEARNERS, WITHOUT_PENALTY
from tests.distributed.curves import STEPS
from tests.processes import run

TOLERANCE = 1e-5
ENGINES = {
    "ddp-2": (2, ["engine=ddp"]),
    "ddp-4": (4, ["engine=ddp"]),
    "fsdp-1": (1, ["engine=fsdp"]),
    "fsdp-2": (2, ["engine=fsdp"]),
    "fsdp-4": (4, ["engine=fsdp", "fsdp.reshard_after_forward=false"]),
    "hsdp-2x2": (4, ["engine=fsdp", "fsdp.hsdp=2"]),
    "fsdp-2-offload": (2, ["engine=fsdp", "fsdp.cpu_offload=true"]),
    "zero0-2": (2, ["engine=deepspeed", "deepspeed.stage=0"]),
    "zero1-2": (2, ["engine=deepspeed", "deepspeed.stage=1"]),
    "zero2-2": (2, ["engine=deepspeed", "deepspeed.stage=2"]),
    "zero3-2": (2, ["engine=deepspeed", "deepspeed.stage=3"]),
}
VARIANTS = ("fsdp-1", "fsdp-2-offload", "ddp-4", "fsdp-4", "hsdp-2x2")
"""Beside the table; with two micro-batches only, and without the GAN, whose several phases `hard` has, too."""
EVERYTHING = ("ddp-2", "fsdp-2", "zero2-2")
"""Where every other case runs too, with two micro-batches."""
TABLE = ("mae", "mlm", "gan", "hard")
"""With four micro-batches a step, of which two are neither the first nor the last; the first case with one, too."""
OTHERS = (*(case for case in LEARNERS if case not in TABLE), "dino_sinkhorn", "growing", "mae_on_device")
CUT_OFTEN = (*TABLE, *WITHOUT_PENALTY.values())
ALL_RANKS = (*COUPLED, "dino", "ijepa")
"""Those with something that goes over all ranks run on four, too."""
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("deepspeed_extension")]


def curves(
    folder: Path, processes: int, cases: tuple[str, ...], overrides: list[str]
) -> dict[str, list[dict[str, float]]]:
    """Run `tests.distributed.curves`: {case/micro-batches: [losses and gradient norms of a step]}."""
    out = folder / "curves.json"
    run("tests.distributed.curves", [str(out), ",".join(cases), *overrides], processes)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """The control: one process, in fp32."""
    wanted = [f"{case}/{cuts}" for case in CASES for cuts in ((1, 2, 4) if case in CUT_OFTEN else (1, 2))]
    return curves(tmp_path_factory.mktemp("alone"), 1, tuple(wanted), [])


def assert_same(
    found: dict[str, list[dict[str, float]]], expected: dict[str, list[dict[str, float]]]
) -> None:
    assert found.keys() == expected.keys()
    for case, rows in expected.items():
        assert len(rows) == len(found[case]) == STEPS
        for step, (row, other) in enumerate(zip(rows, found[case], strict=True), 1):
            assert other["position"] == row["position"]
            for name, value in row.items():
                assert other[name] == pytest.approx(value, rel=TOLERANCE, abs=1e-7), (case, step, name)


def without_penalty() -> tuple[str, ...]:
    return tuple(WITHOUT_PENALTY.get(case, case) for case in TABLE)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_learns_what_one_process_learns(name, alone, tmp_path):
    processes, overrides = ENGINES[name]
    cases = without_penalty() if name.startswith("zero3") else TABLE
    wanted = (
        [f"{case}/2" for case in cases if case != "gan"]
        if name in VARIANTS
        else [f"{cases[0]}/1", *(f"{case}/4" for case in cases)]
    )
    wanted += [f"{case}/{1 if case in COUPLED else 2}" for case in OTHERS if name in EVERYTHING]
    wanted += [f"{case}/2" for case in ALL_RANKS if name == "ddp-4"]
    found = curves(tmp_path, processes, tuple(wanted), overrides)
    assert_same(found, {curve: alone[curve] for curve in wanted})


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "deepspeed"])
def test_bf16_follows_fp32(engine, alone, tmp_path):
    cases = (*without_penalty(), "clm")
    whole = tuple(f"{case}/1" for case in cases)  # micro-batches
    found = curves(tmp_path, 2, whole, [f"engine={engine}", "train.precision=bf16"])
    for case in cases:
        for row, other in zip(alone[f"{case}/1"], found[f"{case}/1"], strict=True):
            for name in (name for name in row if name.endswith("loss")):
                assert other[name] == pytest.approx(row[name], rel=0.05), (case, name)


def test_one_process_learns_the_same_however_the_batch_is_cut(alone):
    for case in CASES.keys() - set(COUPLED):
        for cuts in (2, 4) if case in CUT_OFTEN else (2,):
            assert_same({"cut": alone[f"{case}/{cuts}"]}, {"cut": alone[f"{case}/1"]})


def test_the_control_learns_and_its_batch_grows_as_it_was_told_to(alone):
    assert alone["mae/1"][-1]["loss"] < 0.8 * alone["mae/1"][0]["loss"]
    assert [row["position"] for row in alone["mae/1"]] == [16 * step for step in range(1, STEPS + 1)]
    assert [row["position"] for row in alone["growing/2"]] == [4, 8, 16, 24, 32, 48, 64, 80]
