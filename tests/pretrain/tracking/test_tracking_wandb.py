"""Weights & Biases: the same run goes on, nothing secret leaves, and its absence costs training nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.tracking.config import WandbConfig
from pretrain.tracking.wandb import WandbLogger, resolve_mode

FAKE_KEY = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import sys, time
from pathlib import Path
from pretrain.tracking import Tracker, TrackingConfig, WandbConfig
started = time.perf_counter()
settings = TrackingConfig(wandb=WandbConfig(mode="auto"), progress=False)
start = int(sys.argv[2])
tracker = Tracker(Path(sys.argv[1]), settings, {"name": "x", "hub_token": "pl4nted-s3cret"}, 200, "run12345", start)
for step in range(start, start + 100):
    tracker.train(step, {"loss": 1.0 / (step + 1)})
print("loop", time.perf_counter() - started, flush=True)
tracker.close("finished")
"""


def train(run_dir: Path, start: int = 0, **environment: str) -> tuple[float, str]:
    """Run `SCRIPT` as a process; return the seconds that its training loop took, and what it printed as warnings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run_dir), str(start)],
        capture_output=True, text=True, timeout=150, check=True, env={**kept, **environment},
    )  # fmt: skip
    return float(done.stdout.split()[1]), done.stderr


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    """Whatever W&B login the machine has, these tests do not see."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)


@pytest.mark.usefixtures("no_login")
def test_online_only_with_a_key(monkeypatch, tmp_path):
    assert resolve_mode(WandbConfig()) == "offline"
    assert resolve_mode(WandbConfig(mode="online")) == "offline"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {FAKE_KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert resolve_mode(WandbConfig()) == "online"
    assert resolve_mode(WandbConfig(mode="offline")) == "offline"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    assert resolve_mode(WandbConfig()) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode(WandbConfig()) == "disabled"
    assert resolve_mode(WandbConfig(mode="online")) == "online"


def test_disabled_leaves_nothing(tmp_path):
    logger = WandbLogger(tmp_path, WandbConfig(mode="disabled"), "id", "name", {})
    logger.log(1, {"loss": 1.0})
    logger.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_offline_run_goes_on_under_its_id_and_holds_no_secret(tmp_path):
    netrc = str(tmp_path / "netrc")
    for start in (0, 100):  # the second is the restart
        seconds, warnings = train(tmp_path / "run", start, NETRC=netrc)
        assert warnings == ""
        assert seconds < 5
    runs = sorted((tmp_path / "run" / "wandb").glob("offline-run-*-run12345"))
    files = [next(run.glob("run-run12345.wandb")) for run in runs]
    assert len(files) == 2
    assert all(b"train/loss" in file.read_bytes() for file in files)
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or b"pl4nted-s3cret" not in file.read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("server", ["closed", "silent"])
def test_outage_neither_blocks_nor_ends_training_and_the_run_is_kept_offline(tmp_path, server):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if server == "silent":
            listener.listen()  # takes connections, and never says a word
        port = listener.getsockname()[1]
        started = time.perf_counter()
        seconds, warnings = train(
            tmp_path / "run", WANDB_API_KEY=FAKE_KEY, WANDB_BASE_URL=f"http://127.0.0.1:{port}"
        )
    assert seconds < 5
    assert time.perf_counter() - started < 90  # with the bounded waits of our end and of W&B’s own
    assert warnings.count("W&B") == 1, warnings
    assert "kept offline" in warnings
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 101
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*-run12345/run-run12345.wandb")
    assert b"train/loss" in kept.read_bytes()
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or FAKE_KEY.encode() not in file.read_bytes(), file
