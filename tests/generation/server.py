"""A server in a thread over two small runs, for the tests that talk to one."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import httpx
import uvicorn

from minigpt_cli.display.pages.tokens import serve_page
from minigpt_cli.errors import RunNotFound
from minigpt_cli.generation.open_run import LoadedModel
from minigpt_cli.generation.sampling import Sampling
from minigpt_cli.generation.select_decoder import decoder_of
from minigpt_cli.generation.serving.app import create_app
from minigpt_cli.generation.serving.connections import PatientProtocol
from minigpt_cli.generation.serving.models import Listed, Models
from minigpt_cli.tokenization.char import CharTokenizer

from .steps import generate
from .test_decoders import make

LETTERS = "abcdefghij\n"
SLOTS, WAITING = 4, 4


def writer(name: str, arch: str = "modern") -> LoadedModel:
    return LoadedModel(name, 10, None, CharTokenizer([ord(c) for c in LETTERS]), [c.encode() for c in LETTERS], make(arch, 3), "torch")


WRITERS = {"first": writer("first"), "second": writer("second", "classic")}


class Server:
    """A server in a thread."""

    def __init__(self, *, protocol: type[PatientProtocol] = PatientProtocol, **options: Any) -> None:
        def open_run(name: str) -> LoadedModel:
            if name not in WRITERS:
                raise RunNotFound(f"unknown run {name!r}")
            return WRITERS[name]

        listed = [Listed(name, 1, {"arch": "modern", "nats_per_char": 2.0}) for name in WRITERS]
        self.models = Models(
            lambda: listed, open_run, lambda name: 0, slots=SLOTS, max_waiting=WAITING, prompts=lambda _: [("a b", "ab"), ("c", "c")]
        )
        app = create_app(self.models, serve_page(), **options)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(app, http=protocol, ws="none", log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[self.socket])), daemon=True)

    def __enter__(self) -> Server:
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + 10
        while self.models.load:
            assert time.monotonic() < deadline, f"{self.models.load} sequences are still being written"
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        """A connection to write to by hand."""
        return socket.create_connection(("127.0.0.1", self.socket.getsockname()[1]), timeout=10)

    def say(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to `request` as it is written; status 0 where there is none."""
        with self.connect() as connection:
            connection.sendall(request)
            answer = b""
            while piece := connection.recv(1 << 16):
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, body

    def post(self, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=30)


def alone(prompt: str, tokens: int, seed: int, name: str = "first", count: int = 1, **sampling: Any) -> list[str]:
    """What the engine writes by itself."""
    texts = [""] * count
    one = WRITERS[name]
    for step in generate(
        decoder_of(one.model, count, "torch"), one.tokenizer.encode(prompt).tolist(),
        sampling=Sampling(**{"temperature": 1, "top_k": 0} | sampling),
        max_new_tokens=tokens, num_samples=count, seed=seed, token_bytes=one.token_bytes,
    ):  # fmt: skip
        texts[step.sample] += step.text
    return texts
