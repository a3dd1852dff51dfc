"""An HTTP server of a folder as an object store serves it: ranges, ETags, signatures that expire."""

import re
import threading
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class ObjectServer:
    """``signature``: the only one that is let in, and only to read (no HEAD); None lets everybody in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.signature = folder, None
        self.tells_etag = True
        self.reads: list[str] = []  # names, one for each GET


@contextmanager
def object_server(folder: Path):
    """Serve a folder on a free port of this machine; yields (URL, ObjectServer)."""
    state = ObjectServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            state.reads.append(urlsplit(self.path).path.lstrip("/"))
            self.answer(body=True)

        def answer(self, body):
            asked = urlsplit(self.path)
            path = state.folder / unquote(asked.path.lstrip("/"))
            given = parse_qs(asked.query).get("X-Amz-Signature", [None])[0]
            if state.signature is not None and (given != state.signature or not body):
                self.send_error(403)
                return
            if not path.is_file():
                self.send_error(404)
                return
            data = whole = path.read_bytes()
            part = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if part and int(part[1]) >= len(whole):
                self.send_error(416)
                return
            if part:
                data = whole[int(part[1]) : int(part[2]) + 1]
            self.send_response(206 if part else 200)
            if part:
                last = int(part[1]) + len(data) - 1
                self.send_header("Content-Range", f"bytes {part[1]}-{last}/{len(whole)}")
            if state.tells_etag:
                self.send_header("ETag", f'"{zlib.crc32(whole):08x}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", state
    finally:
        server.shutdown()
        server.server_close()
