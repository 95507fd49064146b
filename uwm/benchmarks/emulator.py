"""moto's S3 server in a process of its own, with a count of what it answers: `python -m uwm.benchmarks.emulator`.

Prints its port. `GET /-counts` gives requests and bytes since the last such call.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

COUNTS = "/-counts"


class Counting:
    """A WSGI application that counts what passes through it."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app
        self._counts: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes]:
        """Answer one request."""
        if environ["PATH_INFO"] == COUNTS:
            start("200 OK", [("Content-Type", "application/json")])
            yield json.dumps(self._counts).encode()
            self._counts.clear()
            return
        self._counts["requests"] += 1
        for block in self._app(environ, start):
            self._counts["bytes"] += len(block)
            yield block


def main() -> None:
    """Serve on a free port of this machine until the process is ended."""
    from moto import server as module
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto: Any = module  # which exports nothing by name
    app = Counting(moto.DomainDispatcherApplication(moto.create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
