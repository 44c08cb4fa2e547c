"""Dagster's UI behind a guard, with the pages of the home: `python -m finjepa_pipeline.ui` is `dagster dev`, with `webserver` it
is `dagster-webserver`.

Dagster's own server asks nobody who they are: any page that a browser shows could launch runs in it.
"""

import os
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from finjepa_pipeline.report.page import link, render
from finjepa_pipeline.settings import DEFAULT_UI_URL, Settings

Message = MutableMapping[str, Any]
_PAGES = {"reports": "reports/**/*.html", "live_record": "live_record/*/*.html", "contract": "contract/docs/index.html"}
_HERE = ("localhost", "127.0.0.1", "::1")


class OriginGuard:
    """ASGI: lets through what the UI's own pages ask, and what is no browser.

    Refused are a foreign Host (DNS rebinding), a foreign Origin (forms, scripts and websockets of other pages), bodies that are
    not JSON, and queries in a GraphQL URL (images).
    """

    def __init__(self, app: Callable[..., Awaitable[None]], url: str):
        self.app, self.origin = app, url.rstrip("/").lower()
        self.hosts = {*_HERE, urlsplit(url).hostname}

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        refused = self.refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refused})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": f"refused: {refused}\n".encode()})

    def refusal(self, scope: Message) -> str | None:
        """Why a request is refused; None where it is not."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").lower())
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        if len(hosts) != 1 or _hostname(hosts[0]) not in self.hosts:
            return "a foreign Host; open the UI at FINJEPA_UI_URL"
        own = {f"http://{hosts[0]}", f"https://{hosts[0]}", self.origin}
        if len(origins) > 1 or not own.issuperset(origins):
            return "a foreign Origin"
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")
        if not reads and {"cross-site", "same-site"}.intersection(headers.get("sec-fetch-site", [])):
            return "a request of another site"
        if reads and scope["path"].rstrip("/").endswith("/graphql") and scope.get("query_string"):
            return "a query in the address; POST it"
        body = [value.partition(";")[0].strip() for value in headers.get("content-type", [""])]
        if scope["type"] == "http" and not reads and body != ["application/json"]:
            return "a body that is not JSON"
        return None


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


class _Files(StaticFiles):
    """Files that can be read, and can do nothing: the browser gives a page an origin of its own, which the guard refuses."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Content-Security-Policy"] = "sandbox allow-scripts allow-popups"
        return response


def pages(settings: Settings) -> list[BaseRoute]:
    """Routes to what a home has to show, and to a list of it; nothing else of the home is served."""

    def listed(_: object) -> HTMLResponse:
        found = [path for pages in _PAGES.values() for path in settings.home.glob(pages) if path.name[0] != "."]
        dated = sorted(((time.gmtime(path.stat().st_mtime), path) for path in found), reverse=True)
        rows = [
            (
                time.strftime("%Y-%m-%d %H:%M", when),
                link(path.relative_to(settings.home).as_posix(), settings.address_of(path)),
            )
            for when, path in dated
        ]
        return HTMLResponse(render("pages.html", title="Pages", rows=rows, drawing={}))

    folders = [
        Mount(f"/pages/{name}", _Files(directory=settings.home / name, check_dir=False))
        for name in (*_PAGES, "checkpoints")  # their lineages
    ]
    return [*folders, Route("/pages", listed), Route("/pages/", listed)]


def webserver() -> None:
    """`dagster-webserver` behind the guard."""
    from dagster_webserver.cli import main
    from dagster_webserver.webserver import DagsterWebserver

    settings = Settings.from_env()
    middleware, routes = DagsterWebserver.build_middleware, DagsterWebserver.build_routes

    def guarded(self: DagsterWebserver) -> list[Middleware]:
        return [Middleware(OriginGuard, url=settings.ui_url or DEFAULT_UI_URL), *middleware(self)]

    def with_pages(self: DagsterWebserver) -> list[BaseRoute]:
        return [*pages(settings), *routes(self)]

    DagsterWebserver.build_middleware, DagsterWebserver.build_routes = guarded, with_pages
    for secret in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):  # it publishes nothing
        os.environ.pop(secret, None)
    main()


def dev() -> None:
    """`dagster dev`, whose webserver is the one above."""
    from dagster._cli import dev as dagster_dev

    start = dagster_dev.open_ipc_subprocess  # type: ignore[reportPrivateImportUsage]

    def guarded(command: list[str], **options: Any) -> Any:
        if command[1:3] == ["-m", "dagster_webserver"]:
            command = [*command[:2], "finjepa_pipeline.ui", "webserver", *command[3:]]
        return start(command, **options)

    dagster_dev.open_ipc_subprocess = guarded  # type: ignore[reportPrivateImportUsage]
    dagster_dev.dev_command()


if __name__ == "__main__":
    if sys.argv[1:2] == ["webserver"]:
        del sys.argv[1]
        webserver()
    else:
        dev()
