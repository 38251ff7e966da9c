"""generate --serve over a folder of runs, some of which are hostile."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from minigpt_cli.commands.serve import address, build_app
from minigpt_cli.runstore.records import FileRecord, _checksum
from minigpt_cli.runstore.store import RunStore

FILES = {"best.safetensors": FileRecord(sha256="a" * 64, bytes=1)}
ODD = {
    "no-date": {"created_at": "yesterday"},
    "first-year": {"created_at": "0001-01-01T00:00:00"},
    "last-year": {"created_at": "9999-12-31T23:59:59-23:59"},
    "many": {"n_params": 10**400},
    "markup": {"arch": "</script><b>", "tokenizer": "\x1b[2J\0\u202e", "corpus": {"label": "../\0/..", "sha256": ""}},
    "huge": {"best": {"step": 1, "nats_per_token": 1e308, "nats_per_char": -1e308}},
}


def ask(method: str, path: str, only: str | None = None, **options: Any) -> httpx.Response:
    """What the server of ./runs, or of `only` one, answers."""

    async def one() -> httpx.Response:
        app = build_app(RunStore(Path("runs").absolute()), api_key=None, engine="torch", only=only, ckpt="best", local_only=True)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(one())


def test_no_run_breaks_the_list_of_runs(make_run: Any, home: Path) -> None:
    for name, fields in ODD.items():
        run = make_run(name, files=FILES)
        content = run.record.model_dump(mode="json") | fields  # as someone else may have written it: not checked
        run.file("run.json").write_text(json.dumps({**content, "checksum": _checksum(content)}), "utf-8")
    make_run("good", files=FILES)
    (home / "runs" / "foreign").mkdir()
    make_run("good-2", files=FILES).dir.rename(home / "runs" / b"m\xff".decode("utf-8", "surrogateescape"))
    answer = ask("GET", "/v1/models")
    assert answer.status_code == 200
    found = {model["id"]: model["created"] for model in json.loads(answer.content)["data"]}
    assert {"good"} <= found.keys() <= {*ODD, "good"}
    assert found["good"] == 1767323045
    assert found.get("no-date", 0) == 0


@pytest.mark.parametrize("name", ["nope", "../runs", "no-date", "", "latest\0", "n\ud800"])
def test_no_answer_names_a_folder_of_this_machine(make_run: Any, home: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    make_run("no-date", files=FILES)
    body = json.dumps({"model": name, "prompt": "a"})
    answer = ask("POST", "/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404, 500)
    assert str(home) not in answer.text
    assert "runs/" not in answer.text.replace("../runs", "")
    assert "Traceback" not in caplog.text


def test_only_the_named_run_is_served(make_run: Any, home: Path) -> None:
    for name in ("shown", "shown-2", "hidden"):
        make_run(name, files=FILES)
    assert [model["id"] for model in ask("GET", "/v1/models", only="shown").json()["data"]] == ["shown"]
    assert ask("GET", "/v1/models/shown", only="shown").status_code == 200
    assert ask("GET", "/v1/models/hidden", only="shown").status_code == 404
    for name in ("hidden", "shown-2", "latest", "top"):
        answer = ask("POST", "/v1/completions", only="shown", json={"model": name, "prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_run_is_described_with_prompts_from_its_text(trained: Path) -> None:
    prompts = ask("GET", "/v1/models/first").json()["prompts"]
    assert 1 <= len(prompts) <= 4
    text = (trained / "text.txt").read_text("utf-8")
    assert all(one["prompt"] in text for one in prompts)


def test_the_printed_address_can_be_typed_on_another_machine() -> None:
    for everywhere in ("0.0.0.0", "::", ""):
        assert not address(everywhere, 8000).startswith(("http://0.", "http://[::]", "http://:"))
    assert address("127.0.0.1", 8000) == "http://127.0.0.1:8000/"
    assert address("fe80::1", 80) == "http://[fe80::1]:80/"
