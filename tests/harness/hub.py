"""A server on this machine with the layout and the API of the Hugging Face hub: models to download, repositories to push to."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub.constants as hub
import pytest

COMMIT = "1" * 40
TOKEN = "hf_secret"


class Answers(BaseHTTPRequestHandler):
    """Writes answers, and nothing to stderr."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def answer(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextmanager
def served(handler: type[Answers]) -> Iterator[str]:
    """The address at which `handler` answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


def use_hub(patch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """Let huggingface_hub ask `address`, as HF_ENDPOINT would before it is imported."""
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.delenv("HF_TOKEN", raising=False)
    patch.setattr(hub, "ENDPOINT", address)
    patch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(hub, "HF_HUB_CACHE", str(cache))
    patch.setattr(hub, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(hub, "HF_HUB_DISABLE_XET", True)


class Models(Answers):
    """Repositories of models, by name; one of which needs an agreement. Whoever has the TOKEN may write to those of `me`."""

    models: ClassVar[dict[str, dict[str, bytes]]] = {}
    gated: ClassVar[set[str]] = set()
    claimed: ClassVar[dict[str, int]] = {}  # sizes that the listing gives instead of the true ones
    asked: ClassVar[list[str]] = []
    pushed: ClassVar[dict[str, dict[str, bytes]]] = {}
    made: ClassVar[list[dict[str, Any]]] = []
    large: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        if path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            if repo not in self.models:
                return self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
            if revision not in ("", "main", COMMIT):
                return self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
            siblings = [self.listed(name, data) for name, data in self.models[repo].items()]
            return self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
        repo, _, name = path.removeprefix("/").partition(f"/resolve/{COMMIT}/")
        if repo in self.gated:
            return self.answer(b"{}", 403, {"X-Error-Code": "GatedRepo"})
        if name in self.models.get(repo, {}):
            data = self.models[repo][name]
            return self.answer(data, 200, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        return self.answer(b"not here", 404, {"X-Error-Code": "EntryNotFound"})

    def listed(self, name: str, data: bytes) -> dict[str, Any]:
        """What the API says of a file: its SHA-256 where it is large, and always a hash of git."""
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        size = self.claimed.get(name, len(data))
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 100}
        return {"rfilename": name, "size": size, "blobId": blob} | ({"lfs": lfs} if name.endswith((".safetensors", ".bin")) else {})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(b"{}", 401)
        if path == "/api/validate-yaml":
            return self.answer(b'{"errors": [], "warnings": []}')
        address = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            wanted = json.loads(body)
            if wanted.get("organization") not in (None, "me"):
                return self.answer(b"{}", 403)
            self.made.append(wanted)
            return self.answer(json.dumps({"url": f"{address}/me/{wanted['name']}"}).encode())
        if path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": "lfs" if f.endswith(".safetensors") else "regular", "shouldIgnore": False} for f in files]
            return self.answer(json.dumps({"files": modes}).encode())
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [o | {"actions": {"upload": {"href": f"{address}/large?oid={o['oid']}"}}} for o in objects]
            return self.answer(json.dumps({"transfer": "basic", "objects": actions}).encode())
        if path.endswith("/commit/main"):
            repo = path.removeprefix("/api/models/").removesuffix("/commit/main")
            lines = [json.loads(line) for line in body.splitlines()]
            kept = self.pushed.setdefault(repo, {})
            for value in (line["value"] for line in lines if line["key"] == "file"):
                kept[value["path"]] = base64.b64decode(value["content"])
            for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
                kept[value["path"]] = self.large[value["oid"]]
            return self.answer(json.dumps({"commitUrl": f"{address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}).encode())
        return self.answer(b"{}", 404)

    def do_PUT(self) -> None:
        oid = parse_qs(urlsplit(self.path).query)["oid"][0]
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(data).hexdigest() == oid
        self.large[oid] = data
        self.answer(b"")
