"""What a command prints before it works: what is particular to it, and nothing of the libraries below it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pretrain.config.load import load_config
from pretrain.config.show import describe_config


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
        "  300 epochs; 1,024 samples a step; ddp on 1 rank(s), bf16",
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
