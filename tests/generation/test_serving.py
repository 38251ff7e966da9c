"""The server before its real partners: OpenAI's client, and sockets that break off."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from minigpt_cli.errors import RunDamaged
from minigpt_cli.tokenization.bpe import ByteTokenizer

from .server import LETTERS, SLOTS, WAITING, Server, alone

openai = pytest.importorskip("openai", reason="the openai client is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


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


@pytest.mark.parametrize("prompt", [[], [[]], [""], [[0], []], ["a", ""]])
def test_a_prompt_without_tokens_is_an_empty_text(server: Server, prompt: list[Any]) -> None:
    empty = server.post(model="first", prompt="", max_tokens=5, seed=1).json()["choices"][0]["text"]
    answer = server.post(model="first", prompt=prompt, max_tokens=5, seed=1)
    assert answer.status_code == 200
    assert answer.json()["choices"][-1]["text"] == empty


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


@pytest.mark.parametrize(
    "trouble", [RunDamaged("/home/me/runs/first/run.json is damaged"), FileNotFoundError(2, "gone", "/home/me/runs/first")]
)
def test_problems_and_paths_of_a_run_go_to_the_log_alone(
    trouble: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as server:

        def fail(name: str) -> None:
            raise trouble

        monkeypatch.setattr(server.models, "_open_run", fail)
        answer = server.post(model="first", prompt="a")
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "run 'first' cannot be opened: the server's log says why"
        assert "/home/me/runs/first" in caplog.text
        assert "Traceback" not in caplog.text


def test_null_means_the_default(server: Server) -> None:
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


def test_a_full_queue_answers_429_and_later_works_again(server: Server) -> None:
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
    with server.connect() as connection:
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


def test_no_tokens_with_echo_score_a_text(client: Any) -> None:
    scored = client.completions.create(model="first", prompt="abcde", max_tokens=0, echo=True, logprobs=1)
    choice = scored.choices[0]
    assert (choice.text, choice.finish_reason, scored.usage.completion_tokens) == ("abcde", "length", 0)
    written = client.completions.create(model="first", prompt="abc", max_tokens=2, temperature=0, echo=True, logprobs=1).choices[0]
    assert choice.logprobs.tokens == list("abcde")
    assert choice.logprobs.token_logprobs[:3] == written.logprobs.token_logprobs[:3]
    assert client.completions.create(model="first", prompt="abc", max_tokens=0).choices[0].text == ""


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_end_where_the_text_ends(client: Any, stream: bool) -> None:
    free = alone("abc", 40, 3)[0]
    stop = free[10:13]
    answer = client.completions.create(model="first", prompt="abc", max_tokens=40, seed=3, stop=stop, logprobs=1, stream=stream)
    parts = [event.choices[0] for event in answer] if stream else [answer.choices[0]]
    text = "".join(part.text for part in parts)
    assert text == free[: free.index(stop)]
    assert "".join(token for part in parts for token in part.logprobs.tokens) == text
    assert [at for part in parts for at in part.logprobs.text_offset] == list(range(len(text)))
