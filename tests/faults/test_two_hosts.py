"""Two hosts: one run over both of them, and what is left of it when the link between them is cut.

The hosts are network namespaces joined by a pair of virtual devices; where this machine does not permit them, both are
the loopback, with a static rendezvous all the same, and the link is not cut but one host killed.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.slow_steps import SECONDS, SLOW_STEPS
from tests.processes import QUIET, environment, kill, losses, run

TIMEOUT = 20
"""Seconds that a rank waits for the others."""
SETTINGS = [
    "mae_digits", "train.global_batch_size=16", "checkpoint.every=5", "tracking.log_every=1",
    *QUIET, SLOW_STEPS, "encoder.hidden_size=16",
    "encoder.num_hidden_layers=2", "encoder.num_attention_heads=2", f"distributed.timeout={TIMEOUT}",
    "optimizer.lr=3e-4",  # steps at the recipe's rate amplify what one step on two hosts rounds otherwise
]  # fmt: skip
pytestmark = pytest.mark.slow


@dataclass
class Hosts:
    """Two places to start processes in: namespaces, or nothing but this machine."""

    names: list[str]
    devices: list[str]
    address: str

    @property
    def real(self) -> bool:
        return bool(self.names)

    def start(self, number: int, port: int, arguments: list[str]) -> subprocess.Popen[str]:
        """`torchrun --nnodes 2` with one rank on host `number`."""
        inside = ["ip", "netns", "exec", self.names[number]] if self.real else []
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number),
                    "--nproc-per-node", "1", "--master-addr", self.address, "--master-port", str(port)]  # fmt: skip
        # Slowly, so that it is still under way when the link is cut.
        env = {**environment(), "GLOO_SOCKET_IFNAME": self.devices[number], SECONDS: "0.2"}
        return subprocess.Popen(
            [*inside, *torchrun, "-m", "pretrain", *SETTINGS, *arguments],
            env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def cut(self, second: subprocess.Popen[str]) -> None:
        """Part the hosts from each other."""
        if self.real:
            ip("-n", self.names[1], "link", "set", self.devices[1], "down")
        else:
            kill(second)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)


@pytest.fixture
def hosts():
    mark = uuid.uuid4().hex[:6]
    names, devices = [f"host{i}-{mark}" for i in (0, 1)], [f"v{i}{mark}" for i in (0, 1)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", devices[0], "netns", names[0], "type", "veth", "peer", "name", devices[1],
               "netns", names[1])  # fmt: skip
            for i in (0, 1):
                ip("-n", names[i], "link", "set", "lo", "up")
                ip("-n", names[i], "addr", "add", f"10.77.0.{i + 1}/24", "dev", devices[i])
                ip("-n", names[i], "link", "set", devices[i], "up")
            found = Hosts(names, devices, "10.77.0.1")
        except (OSError, subprocess.CalledProcessError) as error:
            warnings.warn(
                f"network namespaces are not permitted here ({error}); hosts share the loopback", stacklevel=1
            )
            found = Hosts([], ["lo", "lo"], "127.0.0.1")
        yield found
    finally:
        for name in names:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                ip("netns", "delete", name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_both(hosts: Hosts, folder: Path, steps: int) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [hosts.start(i, port, [f"run_dir={folder}", f"train.steps={steps}"]) for i in (0, 1)]


def wait_for_step(folder: Path, step: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 180
    while not (folder / "metrics.jsonl").exists() or max(losses(folder), default=0) < step:
        assert time.monotonic() < deadline, "the run did not get going"
        assert all(p.poll() is None for p in processes), [p.communicate()[0][-3000:] for p in processes]
        time.sleep(0.05)


def assert_same_losses(found, expected):
    assert found.keys() == expected.keys()
    for step, row in expected.items():
        assert found[step]["loss"] == pytest.approx(row["loss"], rel=1e-5), step
        assert found[step]["position"] == row["position"]


def test_two_hosts_train_as_one_and_part_without_loss(hosts, tmp_path):
    both, alone = tmp_path / "both", tmp_path / "alone"
    steps = 40
    processes = start_both(hosts, both, steps)
    try:
        wait_for_step(both, 12, processes)
        hosts.cut(processes[1])
        started = time.monotonic()
        for process in processes:
            # Each by itself: nobody tells it but its own timeout, and torchrun's stop of its ranks (30 s at most).
            process.wait(timeout=TIMEOUT + 60)
            assert process.returncode != 0
        assert time.monotonic() - started < TIMEOUT + 60
    finally:
        for process in processes:
            kill(process)

    reached = max(losses(both))
    saved = sorted((both / "checkpoints").glob("step_*"))
    assert saved
    assert reached < steps
    # On one host the same batches follow: every loss and position is that of a run that never knew two hosts.
    run("pretrain", [*SETTINGS, f"run_dir={alone}", f"train.steps={steps}"])
    run("pretrain", [*SETTINGS, f"run_dir={both}", f"train.steps={steps}"])
    text = (both / "metrics.jsonl").read_text()
    assert f'"kind": "resume", "step": {int(saved[-1].name.removeprefix("step_"))}' in text
    assert_same_losses(losses(both), losses(alone))
