"""Starts the product's commands from a process that has already imported what they import.

A rank spends five seconds on imports and one on the steps of a test; there are hundreds of ranks in the tests. Here a
server imports once and forks a process for each start: a real process with its own memory, environment and signals,
that runs the very `python -m package …` of a user. For several ranks it does what `torchrun --standalone` does: tells
each rank its place through the environment, and ends the others when one has failed. `MASQUERADE_COLD_TESTS=1` starts
everything by the real launchers instead, and so do tests that are about them.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL for the ranks that are left, as torchrun has it."""
LARGEST_REQUEST = 1 << 20


class Process:
    """What `subprocess.Popen` shows of a process, of one that the server forked. Its output is in files."""

    def __init__(
        self, module: str, arguments: list[str], ranks: int, env: dict[str, str], together: bool
    ) -> None:
        """`together`: both outputs in `stdout`, in the order in which they were written."""
        self.stdout: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - kept open as long as the process
        self.stderr = self.stdout if together else tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.args = [module, *arguments]
        request = json.dumps({"module": module, "arguments": arguments, "ranks": ranks, "env": env,
                              "directory": str(Path.cwd())}).encode()  # fmt: skip
        self.status, theirs = socket.socketpair()
        outputs = [self.stdout.fileno(), self.stderr.fileno()]
        socket.send_fds(connection(), [request], [theirs.fileno(), *outputs])
        theirs.close()
        self.pid = int(self.status.recv(32))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.await_status(0)

    def wait(self, timeout: float | None = None) -> int:
        if self.await_status(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def await_status(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self.status, selectors.EVENT_READ)
                if selector.select(timeout):
                    self.returncode = int(self.status.recv(32) or b"-9")
                    self.status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return read_all(self.stdout), read_all(self.stderr)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def read_all(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


SHARED = "WARM_START"
"""The environment variable with the path of the socket at which all workers of pytest-xdist meet one server."""
_connection: socket.socket | None = None


def connection() -> socket.socket:
    """To the server, which is started when it is first needed and ends when nobody is connected any more."""
    global _connection  # noqa: PLW0603 - one server for all tests
    if _connection is None:
        path = os.environ.get(SHARED)
        if path:
            with Path(path + ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _connection = connect(path) or start_server(path)
        else:
            with tempfile.TemporaryDirectory() as folder:
                _connection = start_server(str(Path(folder, "socket")))
    return _connection


def connect(path: str) -> socket.socket | None:
    """To the server that listens at `path`; None where there is none."""
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.connect(path)
    except OSError:
        ours.close()
        return None
    return ours


def start_server(path: str) -> socket.socket:
    """Start one that listens at `path`, and connect to it."""
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        subprocess.Popen(
            [sys.executable, "-m", "tests.warm_start", str(listener.fileno())], pass_fds=[listener.fileno()],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        found = connect(path)
    assert found, "it listens"
    return found


class Job:
    """One start, in the process that the server has forked for it."""

    def __init__(self, request: dict[str, Any], outputs: list[int]) -> None:
        self.module, self.arguments, self.ranks = request["module"], request["arguments"], request["ranks"]
        os.setsid()
        os.chdir(request["directory"])
        os.environ.clear()
        os.environ.update(request["env"])
        sys.path[1:1] = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
        for number, output in enumerate(outputs, 1):
            os.dup2(output, number)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def run(self) -> None:
        """The module, as `python -m` runs it; on several ranks, in processes of their own."""
        if self.ranks > 1 and not self.fork_ranks():
            return
        sys.argv = [self.module, *self.arguments]
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)

    def fork_ranks(self) -> bool:
        """Whether this is a rank; in the process that forked them it does not return before they have ended."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(self.ranks),
                  "LOCAL_WORLD_SIZE": str(self.ranks)}  # fmt: skip
        children = {}
        for rank in range(self.ranks):
            pid = os.fork()
            if pid == 0:
                os.setsid()
                os.environ.update({**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                return True
            children[pid] = rank
        signal.signal(signal.SIGTERM, lambda *_: stop(children))
        status = watch(children)
        sys.stderr.flush()
        os._exit(status)


def watch(children: dict[int, int]) -> int:
    """Wait for all ranks; after the first failure the others are ended. 0, or 1 where one has failed."""
    failed, deadline = False, float("inf")
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            rank = children.pop(pid)
            if status and not failed:
                failed, deadline = True, time.monotonic() + GRACE
                print(f"rank {rank} ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
                stop(children)
        elif time.monotonic() > deadline:
            stop(children, signal.SIGKILL)
        else:
            time.sleep(0.005)
    return int(failed)


def stop(children: dict[int, int], number: int = signal.SIGTERM) -> None:
    for pid in list(children):
        os.kill(pid, number)


def preload() -> None:
    """Import what the commands import, as they do; nothing that starts a thread."""
    gc.disable()
    from pretrain.commands import quiet_libraries

    quiet_libraries()
    import pretrain.engine.ddp
    import pretrain.engine.deepspeed
    import pretrain.engine.fsdp
    import pretrain.release.release
    import pretrain.run.dry_run
    import pretrain.run.replay
    from data_tools.errors import UserError
    from pretrain.config.load import load_config
    from pretrain.encoders import ENCODERS
    from pretrain.objectives import OBJECTIVES
    from pretrain.tracking.environment import installed_versions

    assert ENCODERS and OBJECTIVES
    # Builds the validators of settings, and reads packages' versions, once for all.
    assert load_config("mae_digits", []) and installed_versions()
    with contextlib.suppress(UserError):  # an extra that not every machine has
        pretrain.engine.deepspeed.import_deepspeed()
    gc.enable()
    gc.freeze()  # or the first collection in every process would touch, and so copy, all that it shares with this one


def serve(listener: socket.socket) -> Job | None:
    """Fork a process for every request until there is nobody to make one. The job in a forked process, else None."""
    preload()
    clients: dict[int, socket.socket] = {}
    running: dict[
        int, tuple[int, socket.socket]
    ] = {}  # process descriptor → (pid, where its status is awaited)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == listener.fileno():
                    client, _ = listener.accept()
                    clients[client.fileno()] = client
                    selector.register(client, selectors.EVENT_READ)
                elif key.fd in running:
                    selector.unregister(key.fd)
                    tell_status(key.fd, *running.pop(key.fd))
                else:
                    message, descriptors, _, _ = socket.recv_fds(clients[key.fd], LARGEST_REQUEST, 3)
                    if not message:
                        selector.unregister(key.fd)
                        clients.pop(key.fd).close()
                        if not clients:
                            return None
                        continue
                    pid = os.fork()
                    if pid == 0:
                        for other in (listener, *clients.values()):
                            other.close()
                        os.close(descriptors[0])
                        return Job(json.loads(message), descriptors[1:])
                    status = socket.socket(fileno=descriptors[0])
                    status.sendall(str(pid).encode())
                    for output in descriptors[1:]:
                        os.close(output)
                    descriptor = os.pidfd_open(pid)
                    running[descriptor] = (pid, status)
                    selector.register(descriptor, selectors.EVENT_READ)


def tell_status(descriptor: int, pid: int, status: socket.socket) -> None:
    """Of a process that has ended, to whoever waits for it, who may have ended, too."""
    os.close(descriptor)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with status, contextlib.suppress(BrokenPipeError):
        status.sendall(str(code).encode())


if __name__ == "__main__":
    found = serve(socket.socket(fileno=int(sys.argv[1])))
    if found:
        found.run()
