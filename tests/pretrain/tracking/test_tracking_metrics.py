"""The record of a run: whole lines only, whatever happens, and the last word counts."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.tracking.metrics import FILE_NAME, MetricsFile, from_json, read_metrics, to_json


def write(run_dir, *lines):
    file = MetricsFile(run_dir)
    for line in lines:
        file.write(line)
    file.close()


def test_half_written_last_line_is_cut_off_when_the_run_goes_on(tmp_path):
    write(tmp_path, {"kind": "train", "step": 1, "loss": 1.0})
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"kind": "train", "step": 2, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]  # while it is still there
    write(tmp_path, {"kind": "train", "step": 2, "loss": 0.5})
    text = (tmp_path / FILE_NAME).read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 2]


def test_of_a_step_told_twice_the_last_counts_and_kinds_are_apart(tmp_path):
    write(
        tmp_path,
        {"kind": "train", "step": 10, "loss": 1.0},
        {"kind": "train", "step": 20, "loss": 0.9},
        {"kind": "probe", "step": 10, "knn": 0.5},
        {"kind": "resume", "step": 5},
        {"kind": "train", "step": 10, "loss": 0.7},
    )
    lines = read_metrics(tmp_path)
    assert {(x["kind"], x["step"]): x.get("loss") for x in lines} == {
        ("resume", 5): None, ("probe", 10): None, ("train", 10): 0.7, ("train", 20): 0.9
    }  # fmt: skip
    assert [line["step"] for line in lines] == [5, 10, 10, 20]


def test_every_line_is_strict_json_and_non_finite_numbers_come_back(tmp_path):
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.5), "e": torch.tensor(2)}
    write(tmp_path, {"kind": "train", "step": 1, **values})

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / FILE_NAME).read_text(), parse_constant=refuse)
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["a"])
    assert (line["b"], line["c"], line["d"], line["e"]) == (math.inf, -math.inf, 0.5, 2)


@given(st.floats(allow_nan=False))
def test_floats_are_exact_in_the_record(value):
    assert from_json(json.loads(json.dumps(to_json(value)))) == value


def test_damaged_lines_in_the_middle_cost_no_others(tmp_path):
    write(tmp_path, {"kind": "train", "step": 1})
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"kind": "tr{"kind"\n\xff\xfe\n[1]\n{"kind": "train"}\n')
    write(tmp_path, {"kind": "train", "step": 2})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_run_without_metrics_has_no_lines(tmp_path):
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("written", [1, 500])
def test_every_line_written_before_sigkill_is_there(tmp_path, written):
    code = (
        "import sys; from pathlib import Path; from pretrain.tracking.metrics import MetricsFile\n"
        f"file = MetricsFile(Path(sys.argv[1]))\nfor i in range({written}): file.write("
        "{'kind': 'train', 'step': i})\nprint('written', flush=True); import time; time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(written))
