"""The main job, shortened: from embedded data to a released encoder and a report, through the commands a user types."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main as launch
from tests.processes import QUIET, environment, run

READ_RELEASE = """
import sys
sys.modules.update(dict.fromkeys(("pretrain", "finetune", "data_tools", "launch")))  # cannot be imported
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
print(sum(p.numel() for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "processes"), [("text", 2), ("image", 1)])
def test_the_demo_tells_its_whole_story(tmp_path, monkeypatch, capfd, modality, processes):
    """Each of its steps is a real process, only of those that have imported everything."""
    monkeypatch.setattr("launch.demo.run_processes", lambda *step: run(*step).returncode)
    monkeypatch.setattr("launch.demo.run_one", lambda *step: run(*step).returncode)
    out = tmp_path / "demo"
    demo = ["local", "--processes", str(processes), "demo", "--quick", "--modality", modality, f"--out={out}"]
    assert launch(demo) == 0
    assert "[4/4] Write the report" in capfd.readouterr().out
    assert_told(out)


def assert_told(out):
    """The table of fine-tuning, a report that refers to nothing outside, and a release that opens without us."""
    results = json.loads((out / "finetune" / "finetune.json").read_text())
    methods = {row["method"] for row in results["rows"]}
    assert {"full", "scratch", "linear", "linear_untrained", "knn", "knn_untrained"} <= methods
    report = (out / "report.html").read_text()
    assert "From scratch" in report
    assert "http://" not in report.replace("http://www.w3.org", "")  # self-contained
    opened = subprocess.run(
        [sys.executable, "-I", "-c", READ_RELEASE, str(out / "release")],
        capture_output=True, text=True, check=False, cwd=out, env=environment(),
    )  # fmt: skip
    assert opened.returncode == 0, opened.stderr
    assert int(opened.stdout) > 100_000


@pytest.mark.slow
def test_ones_own_folder_of_images_becomes_an_encoder(tmp_path):
    from PIL import Image

    photos = tmp_path / "photos"
    for i in range(40):
        folder = photos / ("dark" if i % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 50), color=(5 * i, 40, 200)).save(folder / f"{i}.jpg")
    (photos / "dark" / "broken.jpg").write_bytes(b"not a picture")
    shards, out = tmp_path / "shards", tmp_path / "run"
    packed = run("data_tools", ["pack", "images", str(photos), str(shards)])
    assert "broken.jpg" in packed.stdout + packed.stderr
    small = [
        "encoder={image_size: 32, patch_size: 8, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}",
        "objective={decoder_hidden_size: 32, decoder_num_hidden_layers: 1, decoder_num_attention_heads: 2}",
        "train={steps: 4, epochs: null, global_batch_size: 8}", "data.workers=1",
    ]  # fmt: skip
    run("pretrain", ["mae_images", f"data.path={shards}", f"run_dir={out}", *small])
    run("pretrain", ["release", str(out)])
    assert (out / "release" / "model.safetensors").stat().st_size > 10_000


def mistake(package, arguments):
    """The one line that a user reads about a mistake."""
    result = run(package, arguments, expect=2)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert "Traceback" not in result.stderr
    assert lines[-1].startswith("error: "), result.stderr
    return lines[-1]


@pytest.mark.slow
def test_mistakes_are_told_in_one_line(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "did you mean 'mask_ratio'" in mistake("pretrain", ["mae_digits", "objective.mask_rato=0.5"])
    assert "did you mean 'mae_digits'" in mistake("pretrain", ["mae_digit"])
    assert "missing" in mistake("pretrain", ["mae_digits", f"data.path={tmp_path / 'missing'}"])
    assert str(empty) in mistake("data_tools", ["pack", "images", str(empty), str(tmp_path / "out")])
    assert "not a run folder" in mistake("pretrain", ["release", str(empty)])
    assert "not a run folder" in mistake("pretrain", ["report", str(empty)])
    assert str(empty) in mistake("finetune", ["digits", f"encoder={empty}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


@pytest.mark.slow
def test_mistakes_of_a_group_of_processes_end_all_of_them(tmp_path):
    result = run(
        "pretrain", ["mae_digits", "train.global_batch_size=63", f"run_dir={tmp_path}"], 2, expect=None
    )
    assert (
        result.stderr.count("error: train.global_batch_size=63: 2 ranks cannot share it equally; 64 would do")
        == 1
    )
    told = run(
        "launch",
        ["local", "--processes", "2", "pretrain", "mae_digits", "train.global_batch_size=63"],
        expect=2,
    )
    assert "Traceback" not in told.stderr
    assert told.stderr.count("error: ") == 1


@pytest.mark.slow
def test_a_folder_in_use_is_refused(tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = mistake("pretrain", ["mae_digits", f"run_dir={tmp_path / 'run'}", "train.steps=1"])
    assert "another job is running in this folder" in message


@pytest.mark.slow
def test_a_folder_that_holds_another_run_is_refused(tmp_path):
    settings = [
        "mae_digits",
        f"run_dir={tmp_path}",
        "train.steps=1",
        *QUIET,
    ]
    run("pretrain", settings)
    message = mistake("pretrain", [*settings, "objective.mask_ratio=0.5"])
    assert "holds a run with objective.mask_ratio=0.6, not 0.5" in message


@pytest.mark.slow
def test_every_command_has_help_with_an_example():
    for package, arguments in [
        ("pretrain", []), ("pretrain", ["release"]), ("pretrain", ["report"]), ("finetune", []), ("launch", []),
        ("launch", ["local"]), ("launch.cli", []), ("data_tools", []),
        *(("data_tools", [command]) for command in
          ("tokenizer", "tokenize", "index", "verify", "stats", "show", "split")),
    ]:  # fmt: skip
        text = run(package, [*arguments, "--help"]).stdout
        assert "example" in text.lower(), (package, arguments)


def test_one_name_dispatches_to_the_packages():
    assert run("launch.cli", ["pretrain", "mae_digits", "--print-config"]).stdout.startswith(
        "name: mae_digits"
    )
    assert run("launch.cli", ["finetune", "digits", "--print-config", "encoder=x"]).returncode == 0
    assert "no such command" in run("launch.cli", ["pretain"], expect=2).stderr
    assert Path(sys.executable).exists()
