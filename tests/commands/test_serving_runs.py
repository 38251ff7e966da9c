"""generate --serve over a folder of runs, some of which are hostile."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from minigpt_cli.commands.serve import build_app
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


def ask(method: str, path: str, **options: Any) -> httpx.Response:
    """What the server of ./runs answers."""

    async def one() -> httpx.Response:
        app = build_app(RunStore(Path("runs").absolute()), api_key=None, engine="torch", first=None, ckpt="best", local_only=True)
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
