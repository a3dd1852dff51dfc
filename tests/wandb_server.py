"""A stand-in of the W&B service on this machine: it keeps what the client sends of each run, as far as we depend on it.

It answers the queries by which a client asks what the service knows of a run, and takes the file stream that history
goes by: lines at an offset of their own. `ends` follows the service's documentation of `mark_preempting`.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Run:
    """What the service knows of a run."""

    name: str
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By offset, the lines that were sent."""
    ends: list[str] = field(default_factory=list)
    """How the service would say that each start ended."""
    preempting: bool = False

    def take(self, sent: dict[str, Any]) -> None:
        """One message of the file stream."""
        chunk = (sent.get("files") or {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        for i, line in enumerate(chunk["content"]):
            self.history[chunk["offset"] + i] = json.loads(line)
        self.preempting |= bool(sent.get("preempting"))
        if sent.get("complete"):
            stopped = "preempted" if self.preempting else "failed"
            self.ends.append("finished" if sent.get("exitcode") == 0 else stopped)
            self.preempting = False

    def described(self) -> dict[str, Any]:
        last = self.history[max(self.history)] if self.history else {}
        tail = json.dumps([json.dumps(last)] if last else [])
        return {
            "id": self.name, "name": self.name, "displayName": self.name, "projectName": "p", "config": "{}",
            "sweepName": None, "summaryMetrics": json.dumps(last), "logLineCount": 0, "eventsLineCount": 0,
            "historyLineCount": len(self.history), "historyTail": tail, "eventsTail": "[]", "tags": [], "notes": None,
            "wandbConfig": json.dumps({"t": 1}), "project": {"name": "p", "entity": {"name": "e"}},
        }  # fmt: skip


class Service:
    """All runs by name, and the address."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.url = ""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """One GraphQL query."""
        name = variables.get("name") or ""
        if "upsertBucket" in query:
            is_new = name not in self.runs
            run = self.runs.setdefault(name, Run(name))
            return {"upsertBucket": {"bucket": run.described(), "inserted": is_new}}
        if "RunResumeStatus" in query:
            bucket = self.runs[name].described() if name in self.runs else None
            return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": bucket}}
        if "createRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {
                "viewer": {"id": "v", "entity": "e", "username": "e", "flags": "{}", "teams": {"edges": []}}
            }
        return {"serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "99.0.0"}}}


@contextmanager
def wandb_server() -> Iterator[Service]:
    """The service, for as long as it is wanted."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer: dict[str, Any] = {}
            if self.path.endswith("/graphql"):
                asked = json.loads(body)
                answer = {"data": service.answer(asked["query"], asked.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                service.runs[self.path.split("/")[-2]].take(json.loads(body))
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_PUT(self) -> None:
            self.do_POST()

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *values: Any) -> None:
            """Nothing: a test's output is its own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that ended without a word
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
