"""The pages served on this machine, with every episode made when it is asked for."""

import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flows.browse.episodes import Browsed
from flows.browse.site import page, script
from flows.browse.videos import write_video
from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_KEPT = 64
"""Videos that are kept: those of the episodes that were looked at last."""


def application(browsed: Browsed, cache: Path, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> "Starlette":
    """The web application of a dataset version.

    Args:
        browsed: what it shows.
        cache: folder for videos.
        hosts: names under which it is asked: another name is some other site's that points here.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    pages = _Pages(browsed, cache)
    return Starlette(
        routes=[
            Route("/", pages.home),
            Route("/{identity}/", pages.show),
            Route("/{identity}/overview.js", pages.overview),
            Route("/{identity}/episodes/{row:int}.js", pages.episode),
            Route("/{identity}/episodes/{row:int}-{view:int}.mp4", pages.video),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


class _Pages:
    """What each address answers."""

    def __init__(self, browsed: Browsed, cache: Path) -> None:
        self._browsed = browsed
        self._cache = cache
        self._address = f"/{browsed.identity}/"
        self._lock = threading.Lock()
        """A dataset is read, and a video written, by one thread at a time."""

    def home(self, _: "Request") -> "Response":
        from starlette.responses import RedirectResponse

        return RedirectResponse(self._address)

    def show(self, request: "Request") -> "Response":
        from starlette.responses import HTMLResponse

        if request.url.path != self._address:
            dataset = self._browsed.dataset
            return _absent(f"This server shows {dataset.uri} version {dataset.version}: {self._address}")
        return HTMLResponse(page())

    def overview(self, _: "Request") -> "Response":
        whole = list(range(len(self._browsed.dataset)))
        return _script("showOverview", self._browsed.overview() | {"whole": whole})

    def episode(self, request: "Request") -> "Response":
        row = request.path_params["row"]
        if row >= len(self._browsed.dataset):
            return _absent("no such episode")
        try:
            with self._lock:
                return _script("showEpisode", self._browsed.episode(row))
        except UserError as error:
            return _script("showError", str(error))

    def video(self, request: "Request") -> "Response":
        from starlette.responses import FileResponse

        row, view = request.path_params["row"], request.path_params["view"]
        dataset, path = self._browsed.dataset, self._cache / f"{row}-{view}.mp4"
        if row >= len(dataset) or view >= len(dataset.spec.cameras):
            return _absent("no such video")
        with self._lock:
            try:
                if not path.exists():
                    write_video(dataset, row, dataset.spec.cameras[view], path)
            except (UserError, KeyError) as error:
                return _absent(str(error))
            _forget(self._cache, path)
        return FileResponse(path, media_type="video/mp4")


def _script(function: str, value: object) -> "Response":
    from starlette.responses import Response

    return Response(script(function, value), media_type="application/javascript")


def _absent(text: str) -> "Response":
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(text + "\n", status_code=404)


def _forget(cache: Path, used: Path) -> None:
    used.touch()
    for path in sorted(cache.glob("*.mp4"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        with suppress(OSError):
            path.unlink()


def serve(browsed: Browsed, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the pages until SIGINT or SIGTERM.

    Args:
        browsed: what they show.
        host: address to listen on.
        port: to listen on.
        ready: is told the address of the pages.

    Raises:
        UserError: when the port is taken.
    """
    import socket

    import uvicorn

    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # so that who is told the address need not wait
    except OSError as error:
        raise UserError(f"can't listen on {host}:{port}: {error.strerror}; choose another --port") from error
    taken = listening.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="uwm-browse-") as cache:
        served = application(browsed, Path(cache), ("127.0.0.1", "localhost", host))
        ready(f"http://{host}:{taken}/")
        uvicorn.Server(uvicorn.Config(served, log_level="warning")).run(sockets=[listening])
