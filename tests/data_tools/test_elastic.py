"""Real processes, killed with SIGKILL in mid-epoch, resumed on other world sizes: nothing lost, nothing repeated."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_data import write_images

from data_tools.dataset.open import open_dataset
from data_tools.order.shuffle import Layout
from data_tools.stream.samples import Stream

SCRIPT = Path(__file__).parent / "elastic_rank.py"
BATCH = 12


def run_until_killed(folder: Path, out: Path, world_size: int, steps: int) -> dict:
    """Start the ranks, kill them all with SIGKILL once each has taken ``steps`` more; the state of the slowest."""
    for path in out.glob("done-*.json"):
        path.unlink()
    words = [str(world_size), "2", "thread"]
    ranks = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(folder), str(out), str(rank), *words])
        for rank in range(world_size)
    ]
    try:
        start = (
            json.loads((out / "state.json").read_text())["position"] if (out / "state.json").exists() else 0
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            states = [read_state(out / f"done-{rank}.json") for rank in range(world_size)]
            if all(state and state["position"] >= start + steps * BATCH for state in states):
                break
            assert all(process.poll() is None for process in ranks), "a rank died by itself"
            time.sleep(0.01)
    finally:
        for process in ranks:
            process.send_signal(signal.SIGKILL)
        for process in ranks:
            process.wait()
    states = [read_state(out / f"done-{rank}.json") for rank in range(world_size)]
    return min((state for state in states if state), key=lambda state: state["position"])


def read_state(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())[1]
    except (FileNotFoundError, ValueError):
        return None


@pytest.mark.slow
def test_sigkill_then_4_3_1_2_ranks_sees_the_reference_sequence(tmp_path):
    folder, out = write_images(tmp_path / "data", 200, 30), tmp_path / "run"
    out.mkdir()
    taken: dict[int, str] = {}  # position → key, of the steps before each checkpoint
    begin = 0
    for world_size, steps in ((4, 5), (3, 4), (1, 7), (2, 6)):
        state = run_until_killed(folder, out, world_size, steps)
        for path in out.glob(f"taken-*-of-{world_size}-*.jsonl"):
            rank = int(path.name.split("-")[1])
            for line in path.read_text().splitlines():
                position, keys = json.loads(line)
                if position < state["position"]:  # steps after the checkpoint are done again by the next ones
                    for number, key in enumerate(keys):
                        assert taken.setdefault(position + rank + number * world_size, key) == key
        assert sorted(taken) == list(range(state["position"])), f"lost positions with {world_size} ranks"
        assert state["position"] > begin
        begin = state["position"]
        (out / "state.json").write_text(json.dumps(state))
    assert begin > 200  # more than one epoch was seen
    stream = Stream(open_dataset(folder), seed=11, layout=Layout(lanes=12, chunk=7, group=2))
    assert [taken[p] for p in range(begin)] == [stream.sample(p)["__key__"] for p in range(begin)]
    assert sorted(taken[p] for p in range(200)) == [f"{i:06d}" for i in range(200)]


@pytest.mark.slow
def test_worker_processes_end_when_their_rank_is_killed(tmp_path):
    folder, out = write_images(tmp_path / "data", 40, 20), tmp_path / "run"
    out.mkdir()
    words = [sys.executable, str(SCRIPT), str(folder), str(out), "0", "1", "2", "process"]
    rank = subprocess.Popen(words)
    deadline = time.monotonic() + 60
    while read_state(out / "done-0.json") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = Path(f"/proc/{rank.pid}/task/{rank.pid}/children").read_text().split()
    assert len(children) >= 2
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if alive(child)]


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
