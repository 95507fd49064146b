"""S3 for tests: moto's server, and a proxy before it that counts and spoils requests.

Each runs in a process of its own: some calls into deltalake hold the GIL while they wait for an answer.
"""

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["error", "slowdown", "lost", "reset", "hang", "slow", "truncate", "short"]
"""error, slowdown: status 500 or 503 instead of doing it. lost: done, then status 500. reset: the connection breaks.
hang: no answer. slow: the answer in small pieces. truncate: half of the answer, then the connection breaks.
short: half of the answer under a header that says so."""


@contextmanager
def moto_server() -> Iterator[str]:
    """The address of an S3 that holds nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError("moto's server ended at once: is moto[server] installed?")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("moto's server does not answer")


@dataclass
class Rule:
    """Which requests are spoiled and how: of those that match, `skip` go through first, then `times` are spoiled."""

    fault: Fault
    methods: tuple[str, ...] = ("GET", "PUT", "HEAD", "POST", "DELETE")
    pattern: str = ""
    times: int | None = None
    skip: int = 0
    every: int = 1
    hits: int = 0

    def takes(self, method: str, path: str) -> bool:
        """Count a request and say whether to spoil it."""
        if method not in self.methods or not re.search(self.pattern, path):
            return False
        self.hits += 1
        count = self.hits - self.skip - 1
        return count >= 0 and count % self.every == 0 and (self.times is None or count // self.every < self.times)


class FaultProxy:
    """Speaks to a proxy before an S3, which runs in another process."""

    def __init__(self, address: str, backend: str) -> None:
        self.address = address
        self.backend = backend

    @classmethod
    @contextmanager
    def serve(cls, backend: str) -> "Iterator[FaultProxy]":
        """Run one before the S3 at that address."""
        command = [sys.executable, "-S", __file__, backend]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield cls(f"http://127.0.0.1:{int(process.stdout.readline())}", backend)
            finally:
                process.kill()

    def reset(self, *rules: Rule) -> None:
        """Forget all requests, let hanging ones go, and follow these rules from now on."""
        self._call("/-/reset", json.dumps([asdict(rule) for rule in rules]).encode())

    @property
    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path and bytes answered of every request that got through."""
        return [(method, path, size) for method, path, size in self._call("/-/state")["requests"]]

    @property
    def spoiled(self) -> int:
        """How many requests were spoiled."""
        return int(self._call("/-/state")["spoiled"])

    def _call(self, path: str, data: bytes | None = None) -> Any:
        with urllib.request.urlopen(self.address + path, data) as answer:  # noqa: S310
            return json.load(answer)


@dataclass
class _State:
    """Of the proxy, in its process."""

    backend: str
    rules: list[Rule] = field(default_factory=list)
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    spoiled: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self, rules: list[Rule]) -> None:
        self.released.set()
        with self.lock:
            self.rules, self.requests, self.spoiled = rules, [], 0
            self.released = threading.Event()

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for rule in self.rules:
                if rule.takes(method, path):
                    self.spoiled += 1
                    return rule.fault
        return None


def main(backend: str) -> None:
    """Run the proxy until the process is killed; prints its port."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": _State(backend)}))
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up as they like."""


class _Handler(BaseHTTPRequestHandler):
    proxy: _State
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def handle_request(self) -> None:
        body = self._body()
        if self.path.startswith("/-/"):
            self._control(body)
            return
        fault = self.proxy.fault_for(self.command, self.path)
        if fault in ("error", "slowdown"):
            self._refuse(fault)
        elif fault == "reset":
            self._break()
        elif fault == "hang":
            self.proxy.released.wait(60)
            self._break()
        else:
            status, headers, data = self._forward(body)
            with self.proxy.lock:
                self.proxy.requests.append((self.command, self.path, len(data)))
            if fault == "lost":
                self._refuse("error")
            else:
                self._answer(status, headers, data, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_request  # noqa: N815

    def _control(self, body: bytes) -> None:
        if self.path == "/-/reset":
            self.proxy.reset([Rule(**rule) for rule in json.loads(body)])
        with self.proxy.lock:
            state = {"requests": self.proxy.requests, "spoiled": self.proxy.spoiled}
            self._answer(200, [], json.dumps(state).encode(), None)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.backend.removeprefix("http://"), timeout=60)
        skipped = ("transfer-encoding", "content-length", "connection", "expect")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body=body, headers=headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, response.getheaders(), data

    def _refuse(self, fault: str) -> None:
        status, code = (500, "InternalError") if fault == "error" else (503, "SlowDown")
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self._answer(status, [("Content-Type", "application/xml")], text, None)

    def _break(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: Fault | None) -> None:
        length = next((int(v) for k, v in headers if k.lower() == "content-length"), len(data))
        if self.command != "HEAD":
            data = data[: len(data) // 2] if fault == "short" else data
            length = len(data)
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault == "truncate":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self._break()
        elif fault == "slow":
            for start in range(0, len(data), max(1, len(data) // 8)):
                self.wfile.write(data[start : start + max(1, len(data) // 8)])
                self.wfile.flush()
                time.sleep(0.02)
        else:
            self.wfile.write(data)


if __name__ == "__main__":
    main(sys.argv[1])
