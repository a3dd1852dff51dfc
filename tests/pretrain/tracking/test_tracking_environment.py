"""What is written of the environment: enough to understand a run, and no secret."""

from __future__ import annotations

import json
import platform
import subprocess

import pytest
import torch

from pretrain.tracking.environment import (
    HIDDEN,
    describe_environment,
    git_state,
    is_secret_name,
    redact,
    redact_command,
    redact_text,
)

PLANTED = "pl4nted-s3cret-value"


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db.password", "hubToken", "api-key", "apikey", "PASSWORD"],
)  # fmt: skip
def test_secret_names_lose_their_values(name):
    assert redact({"outer": [{name: PLANTED}]}) == {"outer": [{name: HIDDEN}]}


@pytest.mark.parametrize(
    ("name", "value"),
    [("mask_token", "[MASK]"), ("num_key_value_heads", 4), ("tokenizer", "bpe"), ("max_tokens", 128),
     ("pad_token_id", 0), ("monkey", "yes"), ("keys_per_head", 2), ("lr", 1e-3)],
)  # fmt: skip
def test_ordinary_settings_stay(name, value):
    assert redact({name: value}) == {name: value}


def test_numeric_passwords_and_urls_with_passwords_are_hidden():
    assert redact({"password": 123456}) == {"password": HIDDEN}
    assert redact({"url": f"s3://user:{PLANTED}@host/x"}) == {"url": "s3://host/x"}
    assert redact({"note": "hf_abcdefghijklmnopqrstuvwx"}) == {"note": HIDDEN}


@pytest.mark.parametrize(
    "arguments",
    [["--api-key", PLANTED], [f"--token={PLANTED}"], [f"hub.token={PLANTED}"], ["path", f"ftp://me:{PLANTED}@h/x"]],
)  # fmt: skip
def test_command_lines_lose_their_secrets(arguments):
    assert PLANTED not in " ".join(redact_command(arguments))
    assert redact_command(["train.steps=10", "--out", "x"]) == ["train.steps=10", "--out", "x"]


def test_values_of_secret_environment_variables_are_hidden_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_KEY", PLANTED)
    assert redact_text(f"failed with {PLANTED}!") == f"failed with {HIDDEN}!"


def test_environment_is_json_with_versions_and_without_secrets_or_host_name(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", PLANTED)
    monkeypatch.setattr("sys.argv", ["pretrain", f"x={PLANTED}", "--password", "hunter2hunter2"])
    environment = describe_environment()
    text = json.dumps(environment)
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["cpu"]["cores"] >= 1
    assert PLANTED not in text
    assert "hunter2" not in text
    if len(platform.node()) > 4:
        assert platform.node() not in text


def test_git_state_is_that_of_the_checkout_itself(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    state = git_state(tmp_path.resolve())
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["changed"] is False
    (tmp_path / "a").write_text("2")
    changed = git_state(tmp_path.resolve())
    assert changed is not None
    assert changed["changed"] is True
    (tmp_path / "inside").mkdir()
    assert git_state((tmp_path / "inside").resolve()) is None


def test_is_secret_name_reads_words_not_substrings():
    assert not is_secret_name("keyboard")
    assert not is_secret_name("tokenized")
    assert is_secret_name("my_private_key")
