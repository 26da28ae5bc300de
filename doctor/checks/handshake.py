"""The upgrade to a websocket, and what answers it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import httpx
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

from doctor.failures import told

SECONDS = 5.0


@dataclass(frozen=True)
class Answer:
    """The answer to an upgrade. ``status`` is None when there was none; ``words`` is it, in short."""

    status: int | None
    words: str
    message: str = ""
    from_gateway: bool = False

    @property
    def accepted(self) -> bool:
        return self.status == httpx.codes.SWITCHING_PROTOCOLS


def handshake(url: str, *, key: str | None, host: str | None = None) -> Answer:
    """Opens a websocket at a http(s) URL and closes it, joining nothing.

    ``host`` is sent as Host header instead of the URL's, which says the tenant when Realtime is asked directly.
    """
    parts = urlsplit(url)
    scheme = "wss" if parts.scheme == "https" else "ws"
    query = urlencode({"vsn": "1.0.0", **({"apikey": key} if key is not None else {})})
    # websockets takes the Host header from the URI: the address to connect to is given apart.
    address = (parts.hostname or "", parts.port or (443 if scheme == "wss" else 80))
    netloc = host or parts.netloc
    try:
        with connect(
            f"{scheme}://{netloc}{parts.path}?{query}",
            sock=socket.create_connection(address, timeout=SECONDS),
            open_timeout=SECONDS,
            close_timeout=1,
            compression=None,
            proxy=None,
        ):
            return Answer(httpx.codes.SWITCHING_PROTOCOLS, "101")
    except InvalidStatus as answer:
        response = answer.response
        message = told((response.body or b"").decode(errors="replace"))
        words = f"{response.status_code}, {message}" if message else f"{response.status_code} with an empty body"
        # Kong says X-Kong-Response-Latency when the answer is its own, X-Kong-Upstream-Latency when it is upstream's.
        own = "X-Kong-Response-Latency" in response.headers
        return Answer(response.status_code, words, message, own)
    except TimeoutError:
        return Answer(None, f"no answer within {SECONDS:.0f} s")
    except (OSError, EOFError, WebSocketException) as failed:
        return Answer(None, " ".join(str(failed).split())[:200] or type(failed).__name__)
