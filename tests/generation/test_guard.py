"""Who the server answers: the key, the names of this machine, and pages of its own, however a request is written."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from minigpt_cli.errors import UsageError
from minigpt_cli.generation.serving import guard

from .server import Server

openai = pytest.importorskip("openai", reason="the openai client is not installed")

BODY = b'{"model": "first", "prompt": "a", "max_tokens": 2}'
HOSTS = ["localhost", "localhost:1/x", "localhost:1?", "localhost:1#", "127.0.0.1:80/..", "localhost:\\@x", "x?", "", "[::1]evil.com", "é"]
TARGETS = [
    "/v1/models", "/v1/models/", "//v1/models", "/V1/models", "/v1%2fmodels", "/%76%31/models", "/v1/../v1/models", "/./v1/models",
    "/health/../v1/models", "/health/", "//", "/health?/v1/models", "http://x/v1/models", "http://x/health", "http://x/y?/v1/models", "*",
    "/v1/completions", "/nothing", "/v1/models;x", "/%2e/v1/models", "/docs", "/openapi.json",
]  # fmt: skip
METHODS = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "TRACE", "BREW"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    with Server(api_key="sésame", any_host=True) as running:
        yield running


def request(target: str, host: str = "localhost", method: str = "GET", extra: str = "") -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{extra}"
    return f"{head}content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY


@pytest.mark.parametrize("target", TARGETS)
def test_no_way_to_write_a_path_goes_round_the_key(guarded: Server, target: str) -> None:
    open_to_all = {"/health?/v1/models"}  # /health with a query
    for method in METHODS:
        status, body = guarded.say(request(target, method=method))
        assert status == 401 or (target in open_to_all and status in (200, 405)), (method, status)
        assert b"first" not in body


@pytest.mark.parametrize("host", HOSTS)
def test_no_host_header_goes_round_the_key(guarded: Server, host: str) -> None:
    for target, method in (("/v1/models", "GET"), ("/v1/completions", "POST")):
        status, body = guarded.say(request(target, host, method))
        assert status in (400, 401)
        assert b"first" not in body


def called(guarded: Any, kind: str, path: str, headers: list[tuple[bytes, bytes]]) -> list[dict[str, Any]]:
    """What an application sends in answer to one request."""
    sent: list[dict[str, Any]] = []
    scope = {"type": kind, "method": "GET", "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
             "headers": headers, "scheme": "http", "server": ("127.0.0.1", 1), "http_version": "1.1", "app_root_path": ""}  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(guarded(scope, receive, send))
    return sent


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_an_unknown_route_is_closed_too(kind: str) -> None:
    reached = []

    async def anything(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    with_key = guard.Guard(anything, api_key="key", any_host=True)
    for path in ("/mounted/v1/models", "/new", "", "/health/x", "/\0"):
        sent = called(with_key, kind, path, [(b"host", b"h")])
        assert sent[0].get("status", sent[0].get("code")) in (401, 1008)
    assert reached == []
    called(with_key, kind, "/new", [(b"host", b"h"), (b"authorization", b"Bearer key")])
    called(with_key, kind, "/health", [(b"host", b"h")])
    assert reached == ["/new", "/health"]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer sésame", 200), ("bearer sésame", 200), ("Bearer  sésame ", 200), ("sésame", 401), ("Bearer", 401), ("Bearer s", 401),
        ("Bearer sésame2", 401), ("Bearer Sésame", 401), ("Basic sésame", 401), ("Bearer sesame", 401), ("Bearer ключ", 401), ("", 401),
    ],
)  # fmt: skip
def test_only_the_key_opens(guarded: Server, header: str, status: int) -> None:
    assert guarded.say(request("/v1/models", extra=f"authorization: {header}\r\n"))[0] == status
    twice = f"authorization: {header}\r\nauthorization: Bearer other\r\n"
    assert guarded.say(request("/v1/models", extra=twice))[0] == 401


def test_clients_may_write_a_key_in_latin_1(guarded: Server) -> None:
    assert httpx.get(f"{guarded.url}/v1/models", headers={"authorization": "Bearer sésame".encode("latin-1")}).status_code == 200


def test_the_openai_client_is_told_that_its_key_is_wrong(guarded: Server) -> None:
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_digests_of_one_length_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", watched)
    with_key = guard.Guard(None, api_key="ключ" * 100, any_host=True)
    for given in ("", "к", "ключ" * 99, "x" * 5000):
        called(with_key, "http", "/v1/models", [(b"host", b"h"), (b"authorization", b"Bearer " + given.encode())])
    assert compared == [(hashlib.sha256().digest_size,) * 2] * 4


@pytest.mark.parametrize("key", ["", "  ", " key", "key\n", "a\x1bb", "a\tb", "a\x7f"])
def test_a_key_that_no_request_can_carry_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="--api-key"):
        guard.check_key(key)


def test_a_key_of_bytes_that_are_no_text_can_be_sent() -> None:
    async def reached(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "reached"})

    odd = guard.Guard(reached, api_key=b"k\xff".decode("utf-8", "surrogateescape"), any_host=True)
    assert called(odd, "http", "/v1/models", [(b"authorization", b"Bearer k\xff")]) == [{"type": "reached"}]


# ---- names and pages


@pytest.fixture(scope="module")
def local() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "127.1.2.3:8000", "[::1]", "[::1]:80"])
def test_this_machines_names_are_answered(local: Server, host: str) -> None:
    assert local.say(request("/health", host))[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "localhost@evil.example", "evil.example:8000", "[::1]evil.example",
     "localhost:8000.evil.example", "localhost:1?", "localhost:", "localhost.", "192.168.0.1", "0.0.0.0", "[::]", "127.1", "", "é"],
)  # fmt: skip
def test_a_name_that_is_not_this_machines_is_refused(local: Server, host: str) -> None:
    for target in ("/", "/health", "/v1/models"):
        assert local.say(request(target, host))[0] in (400, 403)


def test_a_request_without_a_name_or_with_two_is_refused(local: Server) -> None:
    assert local.say(b"GET /v1/models HTTP/1.0\r\n\r\n")[0] == 403
    assert local.say(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\nconnection: close\r\n\r\n")[0] in (400, 403)


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:8000", 200), ("HTTP://LOCALHOST:8000", 200), ("https://localhost:8000", 200), ("http://evil.example", 403),
     ("null", 403), ("", 403), ("http://localhost:3000", 403), ("http://localhost:8000.evil.example", 403), ("file://", 403)],
)  # fmt: skip
def test_pages_of_others_cannot_drive_the_server(local: Server, origin: str, status: int) -> None:
    for method, target in (("POST", "/v1/completions"), ("GET", "/v1/models")):
        found, _ = local.say(request(target, "localhost:8000", method, f"origin: {origin}\r\n"))
        assert found == status
    found, _ = local.say(request("/v1/completions", "localhost:8000", "POST", f"origin: {origin}\r\norigin: http://localhost:8000\r\n"))
    assert found == 403
