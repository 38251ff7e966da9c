"""Conversations over several turns: the server through the openai client, the page, and the loop of generate -i --chat."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from harness import browser

from minigpt_cli.cli import run as minigpt
from minigpt_cli.commands.serve import build_app
from minigpt_cli.data import chat
from minigpt_cli.runstore.store import RunStore

SAYS = {"cat": "meow", "dog": "woof", "cow": "moo"}
QUICK = [
    "--n-layer", "1", "--n-head", "2", "--n-embd", "48", "--block-size", "48", "--batch-size", "16", "--max-steps", "100",
    "--eval-every", "100", "--eval-iters", "1", "--device", "cpu", "--precision", "fp32", "--attention", "plain", "--compile", "off",
    "--seed", "1", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run `pets`, which answers in several turns, and a run `plain`, which does not."""
    home = tmp_path_factory.mktemp("conversations")
    animals = list(SAYS)
    rows = []
    for i in range(150):
        turns = [{"role": "system", "content": "be"}] if i % 3 == 0 else []
        for animal in (animals[i % 3], animals[i // 3 % 3])[: 1 + i % 2]:
            turns += [{"role": "user", "content": animal}, {"role": "assistant", "content": SAYS[animal]}]
        rows.append(json.dumps({"messages": turns}))
    (home / "chats.jsonl").write_text("\n".join(rows))
    (home / "plain.txt").write_text("cat dog cow meow\n" * 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert minigpt(["train", "chats.jsonl", "--name", "pets", *QUICK]) == 0
        assert minigpt(["train", "plain.txt", "--name", "plain", *QUICK, "--max-steps", "1", "--eval-every", "1"]) == 0
    return home


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    monkeypatch.chdir(folder)
    return RunStore()


@pytest.fixture
def ask(store: RunStore) -> Callable[..., Any]:
    """Call a function with an OpenAI client of a server over the runs."""

    def call(question: Callable[[openai.AsyncOpenAI], Any]) -> Any:
        async def work() -> Any:
            app = build_app(store, api_key=None, engine="torch", only=None, ckpt="best", local_only=True)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                client = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0)
                return await question(client)

        return asyncio.run(work())

    return call


def talk(*texts: str) -> list[dict[str, str]]:
    """Messages by turns of the user and the assistant."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_each_turn_gets_its_answer_whole_and_streamed(ask: Any) -> None:
    async def question(client: openai.AsyncOpenAI) -> list[str]:
        asked: dict[str, Any] = {"model": "pets", "temperature": 0, "messages": talk("dog", "woof", "cat")}
        whole = await client.chat.completions.create(**asked)
        assert (whole.object, whole.choices[0].message.role, whole.choices[0].finish_reason) == ("chat.completion", "assistant", "stop")
        assert whole.usage.completion_tokens == len("meow") + 1  # and the end
        streamed, reasons = "", []
        async for event in await client.chat.completions.create(**asked, stream=True):
            assert event.object == "chat.completion.chunk"
            streamed += event.choices[0].delta.content or ""
            reasons.append(event.choices[0].finish_reason)
        assert reasons[-1] == "stop"
        return [whole.choices[0].message.content, streamed]

    assert ask(question) == ["meow", "meow"]


def test_logprobs_of_an_answer_are_of_its_own_tokens(ask: Any) -> None:
    async def question(client: openai.AsyncOpenAI) -> Any:
        found = await client.chat.completions.create(model="pets", temperature=0, messages=talk("cow"), logprobs=True, top_logprobs=2)
        return found.choices[0]

    choice = ask(question)
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content == "moo"
    assert all(token.logprob <= 0 and 2 <= len(token.top_logprobs) <= 3 for token in tokens)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "plain"}, openai.BadRequestError, "'plain' has not learned to chat: use /v1/completions"),
        ({"model": "absent"}, openai.NotFoundError, "unknown run"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": talk("a <|end|> b")}, openai.BadRequestError, "reserved for the chat template"),
        ({"messages": talk("€")}, openai.BadRequestError, "does not know"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools is not supported"),
        ({"top_logprobs": 3}, openai.BadRequestError, "needs logprobs"),
    ],
)
def test_what_cannot_be_answered_is_an_error_of_the_client(ask: Any, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ask(lambda client: client.chat.completions.create(**({"model": "pets", "messages": talk("cat")} | changes)))


def test_models_say_whether_they_chat(ask: Any) -> None:
    async def question(client: openai.AsyncOpenAI) -> dict[str, bool]:
        return {model.id: model.chat async for model in client.models.list()}  # type: ignore[attr-defined]

    assert ask(question) == {"pets": True, "plain": False}


def test_the_oldest_turns_leave_a_full_window_and_the_system_stays() -> None:
    messages = [("system", "S"), *((role, f"{role[0]}{i}") for i in range(4) for role in ("user", "assistant")), ("user", "last")]
    whole, left_out = chat.recent(messages, lambda text: True)
    assert (whole, left_out) == (chat.prompt_for(messages), 0)
    some, left_out = chat.recent(messages, lambda text: len(text) <= 110)
    assert some == chat.prompt_for([messages[0], *messages[1 + left_out :]])
    assert messages[1 + left_out][0] == "user"  # no answer without its question
    least, left_out = chat.recent(messages, lambda text: False)
    assert least == chat.prompt_for([messages[0], messages[-1]])
    assert left_out == 8


def test_a_loop_over_many_turns_keeps_takes_back_and_saves(
    store: RunStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved = tmp_path / "saved.jsonl"
    lines = [
        "/undo",
        f"/save {saved}",
        "dog",
        "cow",
        "/undo",
        "/system be",
        "cat",
        f"/save {saved}",
        "€",
        "dog",
        "cat",
        "cow",
        "/help",
        "/quit",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert minigpt(["generate", "pets", "-i", "--chat", "--greedy"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["woof", "moo", "meow", "woof", "meow", "moo"]
    assert "nothing was asked yet" in err
    assert "no answer yet" in err
    assert "taken back: cow" in err
    assert "does not know" in err
    assert "no longer read" in err
    assert "/system [TEXT]" in err
    row = json.loads(saved.read_text())
    assert row["messages"] == [{"role": "system", "content": "be"}, *talk("dog", "woof", "cat", "meow")]
    assert minigpt(["generate", "plain", "-i", "--chat"]) == 2


@pytest.fixture
def url(store: RunStore) -> Iterator[str]:
    app = build_app(store, api_key=None, engine="auto", only="pets", ckpt="best", local_only=True)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, ws="none", log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@browser.needed
def test_the_page_holds_a_conversation(url: str, tmp_path: Path) -> None:
    def asked(tab: browser.Page, question: str, answer: str) -> None:
        tab.evaluate(f"document.getElementById('prompt').value = {question!r}; document.getElementById('start').click()")
        tab.wait(f"!document.getElementById('start').disabled && document.querySelector('.pane .text').textContent === {answer!r}")

    with browser.browser(tmp_path / "profile") as tab:
        tab.open(url)
        tab.wait("document.body && document.body.hasAttribute('data-ready')")
        assert tab.evaluate("document.getElementById('start').textContent") == "Ask"
        tab.evaluate("document.getElementById('temperature').value = 0")
        asked(tab, "dog", "woof")
        asked(tab, "cat", "meow")
        assert tab.evaluate("[...document.querySelectorAll('.turns p')].map((p) => p.textContent)") == [
            "You: dog",
            "Answer: woof",
            "You: cat",
        ]
        tab.evaluate("document.getElementById('again').click()")
        assert tab.evaluate("document.querySelectorAll('.turns p').length") == 0
        assert tab.complaints == []
