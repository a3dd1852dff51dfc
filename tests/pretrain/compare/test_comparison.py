"""A whole comparison on digits, tiny: its results, what a restart does again, and what happens to those that fail."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from data_tools.errors import UserError
from pretrain.compare.candidates import Candidate
from pretrain.compare.command import main
from pretrain.compare.frozen import probe_frozen
from pretrain.compare.jobs import JobFailedError, Jobs, StoppedError
from pretrain.compare.plan import Pace
from pretrain.compare.tuned import Tuning
from pretrain.guards.preemption import StopRequest
from tests import processes

PACES = {"mae": 0.5, "autoencoder": 0.4, "context_encoder": 0.5}
"""Seconds a step, for a rung of some 13 steps."""
SMALL = ["all:encoder.hidden_size=16", "all:encoder.num_hidden_layers=1", "all:encoder.num_attention_heads=2",
         "all:train.global_batch_size=16", "mae:objective.decoder_hidden_size=16",
         "mae:objective.decoder_num_attention_heads=2", "mae:objective.decoder_num_hidden_layers=1",
         "autoencoder:objective.latent_size=8", "context_encoder:optimizer.lr=1e9",
         "context_encoder:train.max_skipped_steps=3", "finetune:protocol.draws=2"]  # fmt: skip


class Ended:
    """A process that has ended."""

    def __init__(self, status: int) -> None:
        self.status = status

    def poll(self) -> int:
        return self.status

    def send_signal(self, number: int) -> None:
        raise AssertionError("nobody asks to stop")


class Starter:
    """Runs each process to its end when it is started, and keeps their names; is killed before the one after `most`."""

    def __init__(self, most: int = 1000) -> None:
        self.started: list[str] = []
        self.most = most

    def __call__(self, module: str, arguments: list[str], ranks: int, log: IO[str]) -> Ended:
        if len(self.started) == self.most:
            raise SystemExit("killed")
        self.started.append(Path(log.name).stem)
        process = processes.start(module, arguments, ranks)
        output, _ = process.communicate(timeout=300)
        log.write(output)
        return Ended(process.returncode or 0)


def known_pace(_jobs: Jobs, candidate: Candidate, _seed: int) -> Pace:
    """In place of one that is measured, so that no number of steps depends on how fast this machine is."""
    return Pace(step=PACES[candidate.name], start=0.0)


def known_cost(_tuning: Tuning, _encoder: Path) -> Pace:
    return Pace(step=1.0, start=0.0)


def no_cost(*arguments: Any, **how: Any) -> dict[str, Any]:
    """What probing finds, as if it had taken no time."""
    return {**probe_frozen(*arguments, **how), "seconds": 0.0}


def arguments(out: Path) -> list[str]:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    return ["data=sample:digits_test", "--out", str(out), "--objectives", f"{','.join(PACES)},mlm", "--draws", "2",
            "--budget", "60s", *settings]  # fmt: skip


@pytest.mark.slow
def test_a_comparison_killed_in_the_middle_goes_on_and_repeats_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, killed, again, last = tmp_path / "out", Starter(most=4), Starter(), Starter()
    for name, value in (("compare.measure_pace", known_pace), ("compare.probe_frozen", no_cost),
                        ("compare.time", SimpleNamespace(monotonic=lambda: 0.0)),
                        ("tuned.LADDER", (2,)), ("tuned.Tuning.measure_pace", known_cost),
                        ("frozen.POOL", 200), ("frozen.JUDGES", 100)):  # fmt: skip
        monkeypatch.setattr(f"pretrain.compare.{name}", value)

    def start_by(starter: Starter) -> None:
        monkeypatch.setattr("pretrain.compare.jobs.start_process", starter)

    start_by(killed)
    with pytest.raises(SystemExit):
        main(arguments(out))
    plan, run = (out / "plan.json").read_text(), out / "runs" / "mae" / "metrics.jsonl"
    before = run.read_text()
    start_by(again)
    assert main(arguments(out)) == 0
    printed = capsys.readouterr().out

    assert not set(killed.started) & set(again.started), "what is finished is not done again"
    assert (out / "plan.json").read_text() == plan
    assert run.read_text().startswith(before), "the run goes on where it was"
    result = json.loads((out / "compare.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {*PACES, "mlm", "raw input", "untrained encoder", "from scratch"}
    assert "no demo recipe for data of kind image" in rows["mlm"]["notes"][0]
    assert "not finite" in rows["context_encoder"]["notes"][-1], "it diverged, and ended nothing but itself"
    assert result["winner"] in ("mae", "autoencoder")
    planned = json.loads(plan)["rungs"]
    assert [rung["runs"] for rung in planned] == [3, 2]
    for name in ("mae", "autoencoder"):
        assert [point["steps"] for point in rows[name]["points"]] == [r["stop_at"][name] for r in planned]
        assert {way["name"] for way in rows[name]["probes"]} == {"ridge", "linear", "kNN"}
        assert rows[name]["tuned"]["name"] == "fine-tuned, 2 steps"
        assert not any("longer may be better" in note for note in rows[name]["notes"]), (
            "the ladder ends there"
        )
    assert "| from scratch |" in printed
    assert f"python -m pretrain {out / 'full.yaml'}" in printed
    assert (out / "compare.png").stat().st_size > 10_000

    start_by(last)
    assert main(arguments(out)) == 0
    assert not last.started
    with pytest.raises(UserError, match="holds a comparison with shots=10, not 5"):
        main([*arguments(out), "--labels", "5"])


def test_a_request_to_stop_is_passed_on_once(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print('ready', flush=True); "
        "time.sleep(60)"
    )
    (tmp_path / "waits.py").write_text(program)
    stop = StopRequest()
    said: list[str] = []
    jobs = Jobs(tmp_path, 1, stop, said.append)

    def ask_when_ready() -> None:
        log = tmp_path / "logs" / "job.log"
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.02)
        stop.ask(signal.SIGINT)

    threading.Thread(target=ask_when_ready, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(StoppedError):
            jobs.run("job", "waits", [])
    assert said == ["asked to stop; job is asked too (again: at once)"]
    with pytest.raises(StoppedError):
        jobs.run("next", "waits", [])
    assert not (tmp_path / "logs" / "next.log").exists()


def test_a_process_that_fails_is_told_by_its_error(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 1, StopRequest(), print)
    with pytest.raises(JobFailedError, match="No module named"):
        jobs.run("job", "no_such_module_anywhere", [])
    assert json.loads((tmp_path / "spent.jsonl").read_text())["job"] == "job"
