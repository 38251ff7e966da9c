"""The server before its real partners: OpenAI's client, sockets that break off, and a browser."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from minigpt_cli.display.generation import page
from minigpt_cli.errors import RunNotFound
from minigpt_cli.generation.choosing import decoder_for
from minigpt_cli.generation.engine import generate
from minigpt_cli.generation.loading import Writer
from minigpt_cli.generation.sampling import Sampling
from minigpt_cli.generation.serving.app import LOCAL_NAMES, create_app
from minigpt_cli.generation.serving.models import Listed, Models
from minigpt_cli.tokenization.bpe import ByteTokenizer
from minigpt_cli.tokenization.char import CharTokenizer

from . import browser
from .test_decoders import make, plan_of

openai = pytest.importorskip("openai", reason="the openai client is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")

LETTERS = "abcdefghij\n"
SLOTS, WAITING = 4, 4


def writer(name: str, arch: str = "modern") -> Writer:
    return Writer(name, 10, None, CharTokenizer([ord(c) for c in LETTERS]), [c.encode() for c in LETTERS], plan_of(make(arch, 3)))


WRITERS = {"first": writer("first"), "second": writer("second", "classic")}


class Server:
    """A server in a thread."""

    def __init__(self, **options: Any) -> None:
        def open_run(name: str) -> Writer:
            if name not in WRITERS:
                raise RunNotFound(f"unknown run {name!r}")
            return WRITERS[name]

        listed = [Listed(name, 1, {"arch": "modern", "nats_per_char": 2.0}) for name in WRITERS]
        self.models = Models(lambda: listed, open_run, lambda name: 0, slots=SLOTS, max_waiting=WAITING, engine="numpy")
        app = create_app(self.models, page("serve.html"), **{"hosts": LOCAL_NAMES, **options})
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
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

    def post(self, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=30)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def alone(prompt: str, tokens: int, seed: int, name: str = "first", count: int = 1, **sampling: Any) -> list[str]:
    """What the engine writes by itself."""
    texts = [""] * count
    one = WRITERS[name]
    for step in generate(
        decoder_for(one.plan, count, "numpy"), one.tokenizer.encode(prompt).tolist(),
        sampling=Sampling(**{"temperature": 1, "top_k": 0} | sampling),
        max_new_tokens=tokens, num_samples=count, seed=seed, token_bytes=one.token_bytes,
    ):  # fmt: skip
        texts[step.sample] += step.text
    return texts


def test_a_completion(client: Any) -> None:
    answer = client.completions.create(model="first", prompt="abc", max_tokens=12, seed=7)
    assert (answer.object, answer.model) == ("text_completion", "first")
    assert answer.choices[0].text == alone("abc", 12, 7)[0]
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 12, 15)


def test_a_stream_is_the_same_text_in_pieces(client: Any) -> None:
    options = {"include_usage": True}
    events = list(client.completions.create(model="first", prompt="abc", max_tokens=40, seed=7, stream=True, stream_options=options))
    assert "".join(event.choices[0].text for event in events if event.choices) == alone("abc", 40, 7)[0]
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "length"
    assert events[-1].usage.completion_tokens == 40


def test_several_samples_of_several_prompts(client: Any) -> None:
    answer = client.completions.create(model="first", prompt=["abc", "d"], n=2, max_tokens=9, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [*alone("abc", 9, 1, count=2), *alone("d", 9, 1, count=2)]
    streamed = [""] * 4
    for event in client.completions.create(model="first", prompt=["abc", "d"], n=2, max_tokens=9, seed=1, stream=True):
        streamed[event.choices[0].index] += event.choices[0].text
    assert streamed == [choice.text for choice in answer.choices]


def test_token_ids_as_prompt(client: Any) -> None:
    assert client.completions.create(model="first", prompt=[0, 1, 2], max_tokens=5, seed=1).choices[0].text == alone("abc", 5, 1)[0]
    assert client.completions.create(model="first", prompt=[[0, 1, 2]], max_tokens=5, seed=1).choices[0].text == alone("abc", 5, 1)[0]


def test_settings_reach_the_engine(client: Any) -> None:
    settings = {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2}
    answer = client.completions.create(model="second", prompt="abc", max_tokens=20, seed=2, temperature=0.7, top_p=0.9, extra_body=settings)
    assert answer.choices[0].text == alone("abc", 20, 2, "second", temperature=0.7, top_p=0.9, **settings)[0]


def test_stop_and_echo(client: Any) -> None:
    free = alone("abc", 40, 3)[0]
    stop = free[10:13]
    answer = client.completions.create(model="first", prompt="abc", max_tokens=40, seed=3, stop=[stop, "zz"], echo=True)
    assert answer.choices[0].text == "abc" + free[: free.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert client.completions.create(model="first", prompt="abc", max_tokens=40, seed=3, stop=stop).choices[0].finish_reason == "stop"


def test_log_probabilities(client: Any) -> None:
    answer = client.completions.create(model="first", prompt="abc", max_tokens=4, seed=3, logprobs=2, echo=True)
    found = answer.choices[0].logprobs
    assert "".join(found.tokens) == answer.choices[0].text
    assert found.text_offset == list(range(7))
    assert found.token_logprobs[0] is None
    assert all(value < 0 for value in found.token_logprobs[1:])
    assert all(2 <= len(top) <= 3 for top in found.top_logprobs[1:])
    for token, value, top in list(zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True))[1:]:
        assert top[token] == pytest.approx(value)
    without = client.completions.create(model="first", prompt="abc", max_tokens=4, seed=3, logprobs=0)
    assert without.choices[0].logprobs.token_logprobs == pytest.approx(found.token_logprobs[3:])


def test_models_and_health(client: Any, server: Server) -> None:
    assert [model.id for model in client.models.list()] == ["first", "second"]
    assert client.models.retrieve("second").owned_by == "minigpt"
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("third")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "third"}, 404, "unknown run"),
        ({}, 400, "model"),
        ({"model": "first", "temperature": -1}, 400, "temperature"),
        ({"model": "first", "temperature": "hot"}, 400, "temperature"),
        ({"model": "first", "max_tokens": 10**9}, 400, "max_tokens"),
        ({"model": "first", "n": 65}, 400, "n:"),
        ({"model": "first", "n": 64, "max_tokens": 8192}, 400, "too much for one request"),
        ({"model": "first", "prompt": "xyz"}, 400, "does not know"),
        ({"model": "first", "prompt": [99]}, 400, "token 99"),
        ({"model": "first", "prompt": ["a"] * 65}, 400, "prompt"),
        ({"model": "first", "prompt": "a" * 200_000}, 400, "prompt"),
        ({"model": "first", "prompt": [-1]}, 400, "prompt"),
        ({"model": "first", "best_of": 5}, 400, "best_of"),
        ({"model": "first", "presence_penalty": 1}, 400, "presence_penalty"),
        ({"model": "first", "stop": [""] * 100}, 400, "stop"),
        ({"model": "first", "stream": "perhaps"}, 400, "stream: "),
        ({"model": "../../etc", "prompt": "a"}, 404, "unknown run"),
    ],
)
def test_bad_requests_are_told_so(server: Server, body: dict[str, Any], status: int, message: str) -> None:
    answer = server.post(**body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_null_stands_for_a_default(server: Server) -> None:
    asked = {"model": "first", "prompt": "ab", "seed": 3}
    nulls = dict.fromkeys(("n", "max_tokens", "temperature", "top_p", "stop", "logprobs", "echo", "stream", "best_of", "presence_penalty"))
    assert server.post(**asked, **nulls).json()["choices"] == server.post(**asked).json()["choices"]


def test_bodies_that_are_no_requests(server: Server) -> None:
    def send(content: bytes, kind: str = "application/json") -> httpx.Response:
        return httpx.post(f"{server.url}/v1/completions", content=content, headers={"content-type": kind}, timeout=30)

    assert send(b"{").status_code == 400
    assert send(b"[" * 100_000).status_code == 400
    assert send(b'{"model": "first"}', "text/plain").status_code == 400
    large = send(json.dumps({"model": "first", "prompt": "a" * (5 << 20)}).encode())
    assert large.status_code == 400
    assert "larger" in large.json()["error"]["message"]
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    assert httpx.get(f"{server.url}/nothing").json()["error"]["code"] == "not_found"


def test_a_name_that_is_not_this_machines_is_refused(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/models", headers={"host": "evil.example"})
    assert answer.status_code == 403
    for host in ("localhost", "127.0.0.1:1", "[::1]:80"):
        assert httpx.get(f"{server.url}/health", headers={"host": host}).status_code == 200


def test_a_key_guards_everything_that_costs() -> None:
    with Server(api_key="sésame", hosts=None) as guarded:
        assert httpx.get(f"{guarded.url}/health", headers={"host": "anything"}).status_code == 200
        assert httpx.get(f"{guarded.url}/v1/models").status_code == 401
        with (
            openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        headers = {"authorization": "Bearer sésame".encode()}
        assert httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == 200


def test_a_full_queue_answers_429_and_then_goes_on(server: Server) -> None:
    with httpx.Client(timeout=60) as client:
        body = {"model": "first", "prompt": "a", "n": SLOTS + WAITING, "max_tokens": 8000, "stream": True}
        with client.stream("POST", f"{server.url}/v1/completions", json=body) as stream:
            lines = stream.iter_lines()  # kept: httpx closes a response whose iterator is gone
            next(lines)
            refused = server.post(model="first", prompt="a", max_tokens=1)
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert server.post(model="second", prompt="a", max_tokens=1).status_code == 200  # another run has slots of its own
    server.wait_until_idle()
    assert server.post(model="first", prompt="a", max_tokens=1).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slots(server: Server, stream: bool) -> None:
    body = json.dumps({"model": "first", "prompt": "a", "n": SLOTS, "max_tokens": 8000, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        deadline = time.monotonic() + 10
        while server.models.load < SLOTS:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    began = time.monotonic()
    server.wait_until_idle()
    assert time.monotonic() - began < 2  # 32,000 tokens would take longer


def test_streams_side_by_side_are_those_of_each_alone(server: Server) -> None:
    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=20) as client:

            async def one(seed: int) -> str:
                events = await client.completions.create(model="first", prompt=LETTERS[seed % 5], max_tokens=30, seed=seed, stream=True)
                return "".join([event.choices[0].text async for event in events])

            return await asyncio.gather(*(one(seed) for seed in range(SLOTS + WAITING)))

    assert asyncio.run(all_of_them()) == [alone(LETTERS[seed % 5], 30, seed)[0] for seed in range(SLOTS + WAITING)]
    server.wait_until_idle()


def test_tokens_that_are_no_characters_are_written_as_bytes() -> None:
    from minigpt_cli.generation.streaming import pieces_of

    pieces = pieces_of(ByteTokenizer().token_bytes())
    assert pieces[97] == "a"
    assert pieces[0xE2] == "bytes:\\xe2"
    assert len(set(pieces)) == 256


needs_browser = pytest.mark.skipif(browser.executable() is None, reason="no Chromium is installed")


@needs_browser
def test_the_page_writes_two_runs_side_by_side(server: Server, tmp_path: Path) -> None:
    with browser.browser(tmp_path / "profile") as tab:
        tab.open(server.url)
        tab.wait("document.body && document.body.hasAttribute('data-ready')")
        assert tab.evaluate("[...document.querySelectorAll('.pane select')].map((s) => s.value)") == ["first", "second"]
        assert tab.evaluate("document.getElementById('key_label').hidden")
        settings = {"prompt": "abc", "max_tokens": "50", "temperature": "0.8", "seed": "5", "top_k": "6"}
        for name, value in settings.items():
            tab.evaluate(f"document.getElementById({name!r}).value = {value!r}")
        tab.evaluate("document.getElementById('start').click()")
        tab.wait("[...document.querySelectorAll('.figures')].every((f) => f.textContent.includes('all written'))")
        texts = tab.evaluate("[...document.querySelectorAll('.pane .text')].map((t) => t.textContent)")
        assert texts == ["abc" + alone("abc", 50, 5, name, temperature=0.8, top_k=6)[0] for name in ("first", "second")]
        tab.evaluate("document.querySelectorAll('.pane .token')[3].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
        rows = tab.evaluate("[...document.querySelectorAll('#left .alternatives tr')].map((r) => [...r.cells].map((c) => c.textContent))")
        assert 5 <= len(rows) <= 6
        p = [float(row[1]) for row in rows]
        assert all(0 <= x <= 1 for x in p)
        assert tab.evaluate("document.querySelectorAll('#left .alternatives .is').length") == 1
        assert tab.complaints == []


@needs_browser
def test_the_page_says_what_went_wrong_and_can_be_stopped(server: Server, tmp_path: Path) -> None:
    with browser.browser(tmp_path / "profile") as tab:
        tab.open(server.url)
        tab.wait("document.body && document.body.hasAttribute('data-ready')")
        tab.evaluate("document.getElementById('prompt').value = 'XYZ'; document.getElementById('start').click()")
        tab.wait("document.querySelector('.figures').textContent.includes('does not know')")
        tab.evaluate("document.getElementById('prompt').value = 'a'; document.getElementById('max_tokens').value = 8000")
        tab.wait("!document.getElementById('start').disabled")
        tab.evaluate("document.getElementById('start').click()")
        tab.wait("document.querySelectorAll('#left .token').length > 5")
        tab.evaluate("document.getElementById('stop').click()")
        tab.wait("document.querySelector('.figures').textContent.includes('stopped by you')")
    server.wait_until_idle()


@needs_browser
def test_the_saved_view_works_without_a_server(tmp_path: Path) -> None:
    from minigpt_cli.display.generation import ShownToken, probabilities_page

    hostile = "</script><b>"
    tokens = [ShownToken("a", "a", 0.9, [("a", 0.9), ("b", 0.1)]), ShownToken(hostile, hostile, 0.01, [("\n", 0.5), (" ", 0.2)])]
    (tmp_path / "view.html").write_text(probabilities_page("first", "To ", tokens, "facts"), "utf-8")
    with browser.browser(tmp_path / "profile") as tab:
        tab.open((tmp_path / "view.html").as_uri())
        tab.wait("document.querySelectorAll && document.querySelectorAll('.token').length === 2")
        assert tab.evaluate("document.getElementById('text').textContent") == "To a" + hostile
        tab.evaluate("document.getElementById('text').dispatchEvent(new KeyboardEvent('keydown', {key: 'End'}))")
        rows = tab.evaluate("[...document.querySelectorAll('.alternatives tr')].map((r) => r.cells[0].textContent)")
        assert rows == ["⏎", "␣", hostile]
        assert tab.complaints == []


@needs_browser
def test_a_character_split_over_tokens_is_whole_in_the_saved_view(tmp_path: Path) -> None:
    from minigpt_cli.display.generation import ShownToken, probabilities_page

    names = ["bytes:\\x20\\xe2", "bytes:\\x82", "bytes:\\xac", "é"]
    (tmp_path / "view.html").write_text(probabilities_page("first", "5", [ShownToken(n, "", 0.5, [(n, 0.5)]) for n in names], ""), "utf-8")
    with browser.browser(tmp_path / "profile") as tab:
        tab.open((tmp_path / "view.html").as_uri())
        tab.wait("document.querySelectorAll && document.querySelectorAll('.token').length === 4")
        assert tab.evaluate("[...document.querySelectorAll('.token')].map((t) => t.textContent)") == [" ", "", "€", "é"]
        assert tab.evaluate("document.querySelector('.alternatives .name').textContent") == "\\x20\\xe2"
        assert tab.complaints == []


def test_probability_bands_cover_all() -> None:
    from minigpt_cli.display.generation import band

    assert len({band(p) for p in np.linspace(0, 1, 101)}) == 5
