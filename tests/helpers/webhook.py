"""A receiver of webhooks that answers as receivers do."""

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

SECRET = "a secret"


class Receiver(HTTPServer):
    """Keeps what it took, and answers as it is told."""

    def __init__(self) -> None:
        self.taken: list[tuple[dict[str, Any], Any]] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def events(self) -> list[str]:
        return [message["event"] for message, _ in self.taken]


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status == 200:
            sent = self.headers["X-NBS-Signature-256"]
            self.server.taken.append((json.loads(body), sent))
            if sent:
                assert sent == "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def receiving(patched: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver whose address the settings name, and no pauses between two tries."""
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        patched.setenv("NBS_NOTIFY_URL", f"http://127.0.0.1:{server.server_port}/hook")
        patched.setattr("nbs_lib.registry.notify._PAUSE_S", 0.0)
        yield server
        server.shutdown()
