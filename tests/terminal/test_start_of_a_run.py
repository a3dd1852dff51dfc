"""What a command prints before it works: what is particular to it, and nothing of the libraries below it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from PIL import Image
from tiny_run import SMALL

from data_tools.dataset.open import open_dataset
from pretrain.__main__ import main
from pretrain.config.load import load_config
from pretrain.config.show import describe_config
from tests.processes import QUIET

QUIET = (
    "train.global_batch_size=8",
    *QUIET,
)


def test_a_run_says_what_differs_from_its_recipe(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    overrides = ["train.steps=200", "optimizer={lr: 1e-3}", "train.micro_batch_size=16", "run_dir=runs/short"]
    config, origin = load_config("mae_digits", overrides)
    assert describe_config(config, origin, "mae_digits").splitlines() == [
        "mae_digits: mae with vit on sample:digits → runs/short",
        "  set here: optimizer.lr=0.001, train.steps=200, train.micro_batch_size=16, run_dir=runs/short",
        "  200 steps, 20 of warm-up; 128 samples a step, 64 a rank in 4 micro-batches; ddp on 2 rank(s), fp32",
    ]


def test_a_run_as_its_recipe_says_has_two_lines(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    config, origin = load_config("mae_images", [])
    assert describe_config(config, origin, "mae_images").splitlines() == [
        "mae_images: mae with vit on shards → runs/mae_images",
        "  300 epochs; 1,024 samples a step; ddp on 1 rank(s), bf16, learning rate 0.0006",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import pretrain.encoders"],  # as a data worker does, which unpickles an objective
        ["-m", "finetune", "digits", "--print-config"],
        ["-m", "pretrain", "mae_digits", "--print-config"],
        ["-m", "data_tools", "show", "--help"],
    ],
)
def test_libraries_say_nothing_of_their_own(arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRANSFORMERS")}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "torchao" not in done.stdout


def test_a_resumed_run_says_where_it_goes_on(tmp_path, capfd):
    command = ["mae_digits", *SMALL, *QUIET, f"run_dir={tmp_path}", "checkpoint.every=2", "train.steps=4"]
    assert main(command) == 0
    assert "going on" not in capfd.readouterr().out
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    assert main(command) == 0
    assert f"going on from step 2 of 4 ({tmp_path})\n" in capfd.readouterr().out
    assert main(command) == 0
    assert f"all 4 steps are done ({tmp_path})\n" in capfd.readouterr().out


def write_few(path, images):
    """A tar of pictures (28, 28, 1)."""
    with tarfile.open(path, "w") as file:
        for i, image in enumerate(images):
            png = io.BytesIO()
            Image.fromarray(image[..., 0]).save(png, "png")
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(png.getvalue())
            file.addfile(member, io.BytesIO(png.getvalue()))


def test_a_batch_that_is_larger_than_all_data_is_said(tmp_path, capfd, caplog):
    dataset = open_dataset("sample:digits")
    write_few(tmp_path / "few.tar", [dataset[i]["image"] for i in range(2)])
    overrides = [
        "train={steps: null, epochs: 3}",
        "train.global_batch_size=64",
        f"data.path={tmp_path / 'few.tar'}",
    ]
    assert main(["mae_digits", *SMALL, *QUIET, f"run_dir={tmp_path / 'run'}", *overrides]) == 0
    assert (
        "data.path has 2 sample(s) only, so each is seen 32 times a step; train.epochs=3 come to 1 step(s)"
        in caplog.text
    )
