"""Each part of the objectives' interface, proven by a small objective that needs it, on every engine."""

from __future__ import annotations

import json
import math

import pytest

from tests.distributed.interfaces import CASES, CUT
from tests.processes import run

ENGINES = {
    "ddp": ["engine=ddp"],
    "fsdp": ["engine=fsdp"],
    "zero1": ["engine=deepspeed", "deepspeed.stage=1"],
    "zero2": ["engine=deepspeed", "deepspeed.stage=2"],
}
pytestmark = pytest.mark.slow


def train(folder, ranks, *overrides):
    out = folder / "found.json"
    run("tests.distributed.interfaces", [str(out), *overrides], ranks)
    return json.loads(out.read_text())


def keep_finite(row):
    """DeepSpeed calls every norm that is not finite infinite."""
    return {name: value for name, value in row.items() if math.isfinite(value)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="module", params=ENGINES)
def found(request, tmp_path_factory):
    return train(tmp_path_factory.mktemp(request.param), 2, *ENGINES[request.param])


def test_two_ranks_learn_what_one_learns(alone, found):
    for case in (*CASES, *(f"{case}/2" for case in CUT)):
        for row, other in zip(alone[case]["rows"], found[case]["rows"], strict=True):
            assert keep_finite(other) == pytest.approx(keep_finite(row), rel=1e-5, abs=1e-7), case
        assert found[case].get("average", []) == pytest.approx(alone[case].get("average", []), abs=1e-5)


def test_each_of_several_sums_is_divided_by_its_own_count_however_the_batch_is_cut(alone):
    for row, other in zip(alone["Named"]["rows"], alone["Named/2"]["rows"], strict=True):
        assert other == pytest.approx(row, rel=1e-5, abs=1e-7)
        assert row["loss"] == pytest.approx(row["token_loss"] + row["row_loss"])


def test_what_is_encoded_is_the_product(alone, found):
    for it in (alone["Taught"], found["Taught"]):
        assert it["encoded"] == pytest.approx(it["of_product"], abs=1e-6)
        assert it["encoded"] == pytest.approx(alone["Taught"]["encoded"], abs=1e-4)


def test_one_phase_that_is_spoilt_ends_the_run_though_the_other_is_well_and_moves_no_average(alone, found):
    for it in (alone["Spoilt"], found["Spoilt"]):
        assert "in the last 5 updates of the phase 'one'" in it["error"]
        assert all(math.isfinite(value) for value in it["average"])


def test_a_phase_that_runs_rarely_is_logged_with_its_step(alone):
    assert [row.get("other/step") for row in alone["Spoilt"]["rows"]] == [1, None, None]
    assert all("other/loss" in row for row in alone["Spoilt"]["rows"][:2])


def test_parameters_that_come_and_go_are_a_setting_of_ddp_and_the_error_names_it(found):
    assert found["Sometimes"]["error"] is None
    if "Unsaid" in found:
        assert "set ddp.find_unused_parameters=true" in found["Unsaid"]["error"]


def test_pictures_and_probes_compute_in_the_precision_of_training_where_weights_are_narrow():
    run("tests.distributed.narrow_pictures", [], 1)
