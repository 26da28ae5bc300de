"""Who may use the console, and the headers that every answer has."""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from doctor.console.answers import answer

HOSTS = ("127.0.0.1", "localhost")
ASSETS = "/assets/"
"""Where the built page keeps files with a hash in their name."""
CLOSED = "the token of this console is missing or wrong"
OPEN = "open the URL that the console printed when it started"
FOREIGN = "asked by the page of another server"
JSON = "application/json"
SAFE = ("GET", "HEAD")


class Access:
    """The token of one console. It is new at every start."""

    def __init__(self, port: int) -> None:
        self.token = secrets.token_urlsafe(32)
        self.port = port
        self._once: set[str] = set()

    @property
    def cookie(self) -> str:
        """The cookie's name: cookies do not tell ports apart, and two consoles may run."""
        return f"console-{self.port}"

    @property
    def url(self) -> str:
        """What a person opens."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def url_for_once(self) -> str:
        """The same with a token that opens once, for a browser's command line, which the whole machine can read."""
        once = secrets.token_urlsafe(32)
        self._once.add(once)
        return f"http://127.0.0.1:{self.port}/?token={once}"

    def opens(self, token: str) -> bool:
        """Whether it is the token, or one for once, which then is used up."""
        used = next((once for once in self._once if _equal(once, token)), None)
        self._once.discard(used or "")
        return used is not None or _equal(self.token, token)

    def knows(self, cookie: str | None) -> bool:
        """Whether it is what the cookie holds after the token was shown."""
        return cookie is not None and _equal(self.token, cookie)


def content_security_policy(gateway: str) -> str:
    """The page runs its own script and speaks with two servers: the console, and the gateway at that URL."""
    parts = urlsplit(gateway)
    socket = "wss" if parts.scheme == "https" else "ws"
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        f"connect-src 'self' {parts.scheme}://{parts.netloc} {socket}://{parts.netloc}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Guard:
    """Lets nobody through to the console who has not got its token, nor a foreign page that makes a browser ask."""

    def __init__(self, app: ASGIApp, access: Access, gateway: str) -> None:
        self.app = app
        self.access = access
        self.headers = {
            "Content-Security-Policy": content_security_policy(gateway),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the server speaks no websockets and has no lifespan"
        request = Request(scope)
        path = request.url.path

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = path.startswith(ASSETS) and message["status"] in (200, 304)
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                headers["Cache-Control"] = "public, max-age=31536000, immutable" if kept else "no-store"
            await send(message)

        respond = self._refusal(request) or self._entry(request) or self.app
        await respond(scope, receive, with_headers)

    def _entry(self, request: Request) -> Response | None:
        """What the printed URL answers: the cookie, and the way to the page."""
        if request.method not in SAFE or request.url.path != "/" or "token" not in request.query_params:
            return None
        entry = RedirectResponse("/", 303)
        entry.set_cookie(self.access.cookie, self.access.token, httponly=True, samesite="strict", path="/")
        return entry

    def _refusal(self, request: Request) -> Response | None:
        api = request.url.path.startswith("/api/")
        host = request.headers.get("host", "")
        if host.partition(":")[0] not in HOSTS:
            # A name that somebody's DNS leads to 127.0.0.1 would make a foreign page one of this server.
            return _refused(400, "the console has another address", f"open http://127.0.0.1:{self.access.port}")
        if request.url.path == "/" and "token" in request.query_params:
            return None if self.access.opens(request.query_params["token"]) else _refused(403, CLOSED, OPEN)
        if not self.access.knows(request.cookies.get(self.access.cookie)):
            return answer({"error": CLOSED, "cure": OPEN}, 403) if api else _refused(403, CLOSED, OPEN)
        # Every port of 127.0.0.1 is the same site to a browser, which sends the cookie along.
        foreign = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if api and (foreign or request.headers.get("origin", f"http://{host}") != f"http://{host}"):
            return answer({"error": FOREIGN, "cure": None}, 403)
        if request.method not in SAFE and request.headers.get("content-type", "").partition(";")[0] != JSON:
            return answer({"error": "the body is not JSON", "cure": f"send it with Content-Type: {JSON}"}, 415)
        return None


def _refused(status: int, error: str, cure: str) -> Response:
    """One line, for a person who opened an address."""
    return PlainTextResponse(f"{status}: {error}; {cure}\n", status)


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "surrogatepass"))
