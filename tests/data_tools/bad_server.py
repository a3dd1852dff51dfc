"""An HTTP server of a folder that misbehaves on demand."""

import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class BadServer:
    """``faults[name]`` is a list of faults for the next requests of a file, or one fault for all of them.

    Faults: an HTTP status (int), "drop" (no answer), "stall" (no bytes), "short" (half of what was promised),
    "html" (a page instead of the file), "flip" (one bit of the answer inverted), "truncate" (the object ends early).
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.ranges, self.faults = folder, True, {}
        self.requests: list[tuple[str, str | None]] = []  # (name, range)

    def next_fault(self, name):
        fault = self.faults.get(name)
        if isinstance(fault, list):
            return fault.pop(0) if fault else None
        return fault


@contextmanager
def bad_server(folder: Path):
    """Serve a folder on a free port of this machine; yields (URL, BadServer)."""
    state = BadServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            name = self.path.lstrip("/")
            state.requests.append((name, self.headers.get("Range")))
            fault = state.next_fault(name) if body else None
            path = state.folder / name
            if isinstance(fault, int) or not path.is_file():
                self.send_error(fault if isinstance(fault, int) else 404)
                return
            if fault == "drop":
                self.connection.close()
                return
            if fault == "stall":
                time.sleep(1.5)
                return
            data = path.read_bytes()
            if fault == "html":
                data = b"<!DOCTYPE html><html>maintenance</html>"
            if fault == "truncate":
                data = data[: len(data) // 2]
            asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if state.ranges else None
            if asked:
                start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
                if start >= len(data):
                    self.send_error(416)
                    return
                data = data[start:stop]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if fault == "flip":
                data = data[:600] + bytes([data[600] ^ 1]) + data[601:]
            if body:
                self.wfile.write(data[: len(data) // 2] if fault == "short" else data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", state
    finally:
        server.shutdown()
        server.server_close()
