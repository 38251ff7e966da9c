"""Which requests are answered. This is decided from the request alone, before any other code gets it.

- The key. With a key, every path but / and /health needs `Authorization: Bearer KEY`, with every method. Open paths are listed
  and all others are closed, so that no spelling of a path and no new route avoids the key.
- The name. Without `any_host` only requests to localhost and to loopback addresses are answered (Host), and only from pages of
  this server (Origin): a web page whose DNS name points to this machine still sends its own name.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from typing import Any

from minigpt_cli.errors import UsageError
from minigpt_cli.generation.serving.protocol import problem

OPEN = frozenset({"/", "/health"})
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::\d{1,5})?")


class Guard:
    """An ASGI application that passes on to `app` what may be answered."""

    def __init__(self, app: Any, *, api_key: str | None = None, any_host: bool = False) -> None:
        self._app, self._any_host = app, any_host
        self._keys = None if api_key is None else _digests(api_key)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await refusal(scope, receive, send)
        else:  # closing a websocket before it is accepted refuses it
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Any) -> Any:
        host, origin = _only(scope, b"host"), _only(scope, b"origin")
        if not self._any_host:
            if not is_local(host):
                return problem(403, f"this server answers to localhost and loopback addresses, not to {host[:80]!r}", "forbidden")
            if _has(scope, b"origin") and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
                return problem(403, f"this server answers its own pages only, not pages of {origin[:80]!r}", "forbidden")
        if self._keys is not None and scope["path"] not in OPEN and not self._knows(_only(scope, b"authorization")):
            return problem(401, "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'", "invalid_api_key")
        return None

    def _knows(self, authorization: str) -> bool:
        """Whether the header holds the key. Digests are compared, so the time does not show how much of it is right."""
        scheme, _, given = authorization.partition(" ")
        digest = hashlib.sha256(given.strip().encode("latin-1")).digest()
        matches = [hmac.compare_digest(digest, key) for key in self._keys or ()]
        return scheme.lower() == "bearer" and any(matches)


def check_key(key: str) -> None:
    """Raise UsageError for a key that cannot be sent in a header."""
    if not key.strip():
        raise UsageError("--api-key is empty: give a key, or leave it out")
    if key != key.strip() or any(ord(c) < 0x20 or ord(c) == 0x7F for c in key):
        raise UsageError("--api-key begins or ends with a blank or holds control characters, which no header can carry: give another")


def is_local(host: str) -> bool:
    """Whether a Host header names this machine by localhost or by a loopback address, with or without a port."""
    match = _HOST.fullmatch(host.lower())
    return match is not None and is_loopback(match[1] or match[2])


def is_loopback(name: str) -> bool:
    """Whether `name` is localhost or a loopback address."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def _digests(key: str) -> list[bytes]:
    """Digests of the key's bytes as clients write them: UTF-8, and Latin-1 where that can."""
    written = [key.encode("utf-8", "surrogateescape")]  # a command line may hold bytes that are no UTF-8
    if any(ord(c) > 0x7F for c in key) and all(ord(c) <= 0xFF for c in key):
        written.append(key.encode("latin-1"))
    return [hashlib.sha256(one).digest() for one in written]


def _has(scope: Any, name: bytes) -> bool:
    return any(key == name for key, _ in scope["headers"])


def _only(scope: Any, name: bytes) -> str:
    """The value of a header, one character for each byte; empty if it is missing or occurs twice."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1").strip() if len(values) == 1 else ""
