"""An HTTP/1.1 server of a folder as an object store serves it: it keeps connections, asks for passwords or signatures,
tells ETags, and answers as it is told."""

import re
import ssl
import threading
import time
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class StoreServer:
    """``answers`` are for the next GETs, each None (as it should be) or a dictionary: ``status``, ``headers``,
    ``wait`` (seconds before it). ``always`` is the answer to all that have none of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.answers, self.always = folder, [], None
        self.login = self.signature = None  # asked for: the Authorization header; the query, of a GET only
        self.tells_etag = False
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # (method, path as it came, headers)
        self.connections = 0

    @property
    def reads(self) -> list[str]:
        """The path of each GET."""
        return [path for method, path, _ in self.requests if method == "GET"]


@contextmanager
def store_server(folder: Path, certificate: tuple[Path, Path] | None = None):
    """Serve a folder on a free port of this machine; yields (URL, StoreServer)."""
    state = StoreServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def setup(self):
            state.connections += 1
            super().setup()

        def do_HEAD(self):
            self.answer(state.always or {})

        def do_GET(self):
            self.answer((state.answers.pop(0) if state.answers else state.always) or {})

        def answer(self, told):
            state.requests.append((self.command, self.path, dict(self.headers)))
            place = urlsplit(self.path)
            path = state.folder / unquote(place.path).lstrip("/")
            time.sleep(told.get("wait", 0))
            status, data = told.get("status"), b""
            if state.login not in (None, self.headers.get("Authorization")):
                status = 401
            elif state.signature is not None and (place.query != state.signature or self.command == "HEAD"):
                status = 403  # a signature is for one method
            elif status is None and not path.is_file():
                status = 404
            headers = dict(told.get("headers", {}))
            if status is None:
                data, status = path.read_bytes(), 200
                if state.tells_etag:
                    headers["ETag"] = f'"{zlib.crc32(data):08x}"'
                if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                    start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
                    headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}", **headers}
                    data, status = data[start:stop], 206
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}", state
    finally:
        server.shutdown()
        server.server_close()
