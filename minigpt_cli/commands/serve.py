"""minigpt generate --serve: the runs of a folder, or one run, through an OpenAI-compatible interface, and a page to try them."""

from __future__ import annotations

import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from minigpt_cli.display import console
from minigpt_cli.errors import MiniGPTError, MissingExtra, RunNotFound, UsageError
from minigpt_cli.runstore.directory import RECORD, TOKENIZER, Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.runstore.weights import weights_of

SLOTS = 64  # sequences that each run decodes at once
MAX_WAITING = 128  # sequences that may wait for a slot
EXAMPLES = 4  # prompts from the text of a run
_ANYWHERE = {"0.0.0.0": "192.0.2.1", "::": "2001:db8::1", "": "192.0.2.1"}  # and an address that routes to the network (RFC 5737, 3849)


def serve(store: RunStore, *, host: str, port: int, api_key: str | None, engine: str, only: str | None, ckpt: str | None) -> None:
    """Serve every run, or `only` one, until interrupted. Raises MissingExtra, UsageError for a network address without a key,
    MiniGPTError for a port in use."""
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
    found = store.find(only) if only is not None else None
    ckpt = found.checkpoint_to_read(ckpt) if found else ckpt or "best"
    if found is not None:
        if found.is_teacher:
            raise UsageError(f"--serve serves runs, and {found.name} is the teacher of one: name that run")
        store = RunStore(found.dir.parent)
    app = build_app(store, api_key=api_key, engine=engine, only=found.name if found else None, ckpt=ckpt, local_only=local)
    listener = _listen(host, port)
    n_runs = len(listed(store))
    what = found.name if found else f"{n_runs} run{'s' * (n_runs != 1)}"
    console.notice(f"serving {what} at {address(host, listener.getsockname()[1])} (stop with Ctrl-C)")
    config = uvicorn.Config(app, http=PatientProtocol, ws="none", proxy_headers=False, log_level="warning", access_log=False,
                            limit_concurrency=1024, timeout_graceful_shutdown=2)  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])


def address(host: str, port: int) -> str:
    """The address to type: for a server on every network, the one by which other machines reach this one."""
    shown = _own_address(host) if host in _ANYWHERE else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"


def _own_address(host: str) -> str:
    """This machine's address in its network. Connecting a UDP socket only chooses a route: nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((_ANYWHERE[host], 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def build_app(store: RunStore, *, api_key: str | None, engine: str, only: str | None, ckpt: str, local_only: bool) -> Any:
    """The web application that serves the runs of `store`, or `only` the one of this name."""
    from minigpt_cli.display.pages.tokens import serve_page
    from minigpt_cli.generation.open_run import open_model
    from minigpt_cli.generation.serving.app import create_app
    from minigpt_cli.generation.serving.models import Models

    models = Models(
        lambda: listed(store, only),
        lambda name: open_model(run := _served(store, only, name), run.checkpoint or ckpt, engine),
        lambda name: _version(_served(store, only, name)),
        slots=SLOTS, max_waiting=MAX_WAITING, prompts=lambda name: _prompts(store, name),
    )  # fmt: skip
    return create_app(models, serve_page(), api_key=api_key, any_host=not local_only)


def _served(store: RunStore, only: str | None, name: str) -> Run:
    """The run that a client means, or RUN@STEP. Raises RunNotFound, also for a run that is not the only one served."""
    if only is not None and name != only and not name.startswith(f"{only}@"):
        raise RunNotFound(f"only {only} is served")
    run = store.find_name(name)
    try:
        weights_of(run.dir, run.record, run.checkpoint or "last")
    except UsageError as error:  # a step that it does not keep
        raise RunNotFound(str(error)) from error
    return run


def _prompts(store: RunStore, name: str) -> list[tuple[str, str]]:
    """Examples from the text of a run: as they are shown, and as the model reads them."""
    from minigpt_cli.data.opening import openings
    from minigpt_cli.tokenization.pretrained import load_tokenizer

    try:
        run = store.find_name(name)
        found = openings(run.record, load_tokenizer(run.file(TOKENIZER)), EXAMPLES)
    except MiniGPTError:  # writing with this run says why
        return []
    return [(one.text, one.raw) for one in found if one.text]


def listed(store: RunStore, only: str | None = None) -> list[Any]:
    """The readable runs that have weights, newest first; or `only` the one of this name."""
    from minigpt_cli.data.chat import learned_chats
    from minigpt_cli.generation.serving.models import Listed

    runs = [
        run for run in reversed(store.runs()) if run.record.files and run.name.isprintable() and only in (None, run.name)
    ]  # a name with control characters has no JSON form
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
                "chat": learned_chats(run.record),
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
