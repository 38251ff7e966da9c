"""minigpt generate --serve: the runs of a folder through an OpenAI-compatible interface, and a page to try them."""

from __future__ import annotations

import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from minigpt_cli.display import console
from minigpt_cli.errors import MiniGPTError, MissingExtra, UsageError
from minigpt_cli.runstore.directory import RECORD, Run
from minigpt_cli.runstore.store import RunStore

SLOTS = 64  # sequences that each run decodes at once
MAX_WAITING = 128  # sequences that may wait for a slot


def serve(store: RunStore, *, host: str, port: int, api_key: str | None, engine: str, first: str | None, ckpt: str) -> None:
    """Serve until interrupted. Raises MissingExtra, UsageError for a network address without a key, MiniGPTError for a port in use."""
    try:
        import uvicorn

        from minigpt_cli.generation.serving.connections import PatientProtocol
        from minigpt_cli.generation.serving.guard import check_key, is_loopback
    except ImportError:
        raise MissingExtra("--serve", "serve") from None
    if api_key is not None:
        check_key(api_key)
    local = is_loopback(host)
    if not local and api_key is None:
        raise UsageError(f"--host {host} is open to the network: add --api-key KEY, or leave --host out to serve this machine alone")
    found = store.find(first) if first is not None else None
    if found is not None:
        store, ckpt = RunStore(found.dir.parent), found.checkpoint or ckpt
    app = build_app(store, api_key=api_key, engine=engine, first=found.name if found else None, ckpt=ckpt, local_only=local)
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    console.notice(f"serving {len(store.runs())} runs at http://{shown}:{listener.getsockname()[1]}/ (stop with Ctrl-C)")
    config = uvicorn.Config(app, http=PatientProtocol, ws="none", proxy_headers=False, log_level="warning", access_log=False,
                            limit_concurrency=1024, timeout_graceful_shutdown=2)  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])


def build_app(store: RunStore, *, api_key: str | None, engine: str, first: str | None, ckpt: str, local_only: bool) -> Any:
    """The web application that serves the runs of `store`."""
    from minigpt_cli.display.pages.tokens import serve_page
    from minigpt_cli.generation.open_run import open_model
    from minigpt_cli.generation.serving.app import create_app
    from minigpt_cli.generation.serving.models import Models

    models = Models(
        lambda: listed(store, first),
        lambda name: open_model(store.find_name(name), ckpt, engine),
        lambda name: _version(store.find_name(name)),
        slots=SLOTS, max_waiting=MAX_WAITING,
    )  # fmt: skip
    return create_app(models, serve_page(), api_key=api_key, any_host=not local_only)


def listed(store: RunStore, first: str | None = None) -> list[Any]:
    """The readable runs that have weights, `first` before the others, then newest first."""
    from minigpt_cli.generation.serving.models import Listed

    runs = [
        run for run in reversed(store.runs()) if run.record.files and run.name.isprintable()
    ]  # a name with control characters has no JSON form
    runs.sort(key=lambda run: run.name != first)
    return [
        Listed(
            run.name,
            _created(run.record.created_at),
            {
                "arch": run.record.arch,
                "tokenizer": run.record.tokenizer,
                "n_params": run.record.n_params,
                "nats_per_char": run.record.best.nats_per_char if run.record.best else None,
                "corpus": Path(run.record.corpus.label).name if run.record.corpus else None,
            },
        )
        for run in runs
    ]


def _created(date: str) -> int:
    """Seconds since 1970; 0 if the record has no date."""
    with suppress(ValueError, OverflowError):
        return int(datetime.fromisoformat(date).timestamp())
    return 0


def _version(run: Run) -> object:
    """A value that changes when the run is saved again or replaced."""
    status = run.file(RECORD).stat()
    return run.name, status.st_ino, status.st_mtime_ns


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        raise MiniGPTError(f"cannot serve at {host} port {port}: {error.strerror or error}; try another --port") from error
    return listener
