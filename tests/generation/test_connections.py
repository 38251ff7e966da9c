"""Peers that begin and do not go on: they are waited for a while, a few at a time, and cost nobody else anything."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from minigpt_cli.generation.serving.connections import PatientProtocol

from .server import Server

BODY = json.dumps({"model": "first", "prompt": "a", "max_tokens": 2}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
STARTS = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"POST /v1/comple", id="half a line"),
    pytest.param(HEAD, id="half a head"),
    pytest.param(HEAD + b"content-length: 1000\r\n\r\n", id="no body"),
    pytest.param(HEAD + b"content-length: 1000\r\n\r\n" + BODY, id="half a body"),
    pytest.param(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nab", id="half a chunk"),
    pytest.param(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /hea", id="half of a second request"),
]


class Impatient(PatientProtocol):
    patience_s = 0.3
    max_waiting = 3


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """A server that waits a third of a second, and for three peers at once."""
    with Server(protocol=Impatient) as running:
        yield running


def is_closed(connection: socket.socket, timeout_s: float) -> bool:
    """Whether the other side closes the connection in time."""
    deadline = time.monotonic() + timeout_s
    try:
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(1 << 16):
                return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("start", STARTS)
def test_who_does_not_go_on_is_let_go_in_time(impatient: Server, start: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with impatient.connect() as connection:
        connection.sendall(start)
        assert is_closed(connection, 5)
    assert impatient.models.load == 0
    assert caplog.text == ""


def test_who_sends_drop_by_drop_is_let_go_too(impatient: Server) -> None:
    with impatient.connect() as connection:
        sent = 0
        with suppress(ConnectionError):
            for sent in range(100):  # five seconds  # noqa: B007
                connection.sendall(b"G")
                time.sleep(0.05)
        assert sent < 60


def test_the_one_waited_for_longest_makes_room(impatient: Server) -> None:
    half_open = [impatient.connect() for _ in range(12)]
    try:
        assert httpx.get(f"{impatient.url}/health").status_code == 200
        assert is_closed(half_open[0], 0.2)
        assert httpx.post(f"{impatient.url}/v1/completions", content=BODY, headers={"content-type": "application/json"}).status_code == 200
    finally:
        for connection in half_open:
            connection.close()


def test_who_waits_for_a_body_holds_no_slot(impatient: Server) -> None:
    with impatient.connect() as connection:
        connection.sendall(HEAD + b"content-length: 1000\r\n\r\n" + BODY)
        time.sleep(0.05)
        assert impatient.models.load == 0


@pytest.mark.parametrize("start", STARTS)
def test_leaving_in_the_middle_leaves_no_traceback(impatient: Server, start: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with impatient.connect() as connection:
        connection.sendall(start)
        time.sleep(0.02)
    assert httpx.get(f"{impatient.url}/health").status_code == 200
    assert "Traceback" not in caplog.text
    assert impatient.models.load == 0


def test_an_answer_that_takes_longer_than_the_patience_is_waited_for(impatient: Server) -> None:
    body = {"model": "first", "prompt": "a", "max_tokens": 3000, "stream": True, "n": 4, "seed": 1}
    began = time.monotonic()
    with httpx.stream("POST", f"{impatient.url}/v1/completions", json=body, timeout=30) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert time.monotonic() - began > 0.3


def test_who_does_not_read_is_let_go_too(impatient: Server) -> None:
    impatient.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of connections to come: the answer has to wait for its reader
    body = json.dumps({"model": "first", "prompt": "a", "max_tokens": 200, "n": 4, "logprobs": 11, "stream": True}).encode()
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        reader.connect(("127.0.0.1", impatient.socket.getsockname()[1]))
        reader.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        deadline = time.monotonic() + 8  # seen from the server: to a peer that reads nothing the end does not come through
        while not any(one._unread for one in impatient.server.server_state.connections):
            assert time.monotonic() < deadline, "the answer never had to wait"
            time.sleep(0.01)
        while impatient.server.server_state.connections:
            assert time.monotonic() < deadline, "the connection is still held"
            time.sleep(0.01)
    impatient.wait_until_idle()
