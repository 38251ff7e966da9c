"""The server: OpenAI's /v1/completions and /v1/models, /health, and a page at /.

Bodies, texts and queues are bounded; a reader who leaves takes their request along. Without a key only the names of this
machine are answered to (so no web page can reach it through a name of its own), and only JSON is read (so no form can post).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from random import SystemRandom
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError

from minigpt_cli.errors import MiniGPTError, RunNotFound, UsageError
from minigpt_cli.generation.samples import prompt_ids
from minigpt_cli.generation.serving.batcher import Batcher, Busy, Ticket
from minigpt_cli.generation.serving.models import Models, Opened
from minigpt_cli.generation.serving.protocol import Choice, CompletionRequest, joined
from minigpt_cli.generation.streaming import pieces_of

MAX_BODY = 4 << 20  # bytes
LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'"
)


def create_app(models: Models, page: str, *, api_key: str | None = None, hosts: set[str] | None = None) -> FastAPI:
    """The application. `hosts`: names that it answers to, None for any."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        models.close()

    app = FastAPI(title="minigpt", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.exception_handler(404)
    async def missing(request: Request, error: Exception) -> JSONResponse:
        return problem(404, f"there is nothing at {request.url.path[:80]}", "not_found")

    @app.get("/", response_class=HTMLResponse)
    async def front() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": _PAGE_POLICY, "x-content-type-options": "nosniff"})

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "sequences": models.load}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        runs = await asyncio.to_thread(models.list_runs)
        return {"object": "list", "data": [_as_model(run) for run in runs]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Any:
        for run in await asyncio.to_thread(models.list_runs):
            if run.name == name:
                return _as_model(run)
        return problem(404, f"there is no run {name[:80]!r}", "model_not_found")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        try:
            body = await _read(request)
            opened = await models.get(body.model)
            work = _Work(body, opened)
        except Busy as error:
            return problem(429, str(error), "rate_limit_exceeded", {"retry-after": "1"})
        except RunNotFound as error:
            return problem(404, str(error), "model_not_found")
        except UsageError as error:
            return problem(400, str(error), "invalid_request_error")
        except MiniGPTError as error:
            return problem(500, str(error), "server_error")
        if body.stream:
            return StreamingResponse(work.events(), media_type="text/event-stream", headers={"cache-control": "no-store"})
        return await _whole(request, work)

    app.add_middleware(_Guard, api_key=api_key, hosts=hosts)
    return app


class _Guard:
    """Refuses strangers before anything is read."""

    def __init__(self, app: Any, api_key: str | None, hosts: set[str] | None) -> None:
        self._app, self._key, self._hosts = app, api_key, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "").lower()
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if self._hosts is not None and name not in self._hosts:
            return problem(403, f"this server does not answer to the name {name[:80]!r}", "forbidden")
        if self._key is not None and request.url.path.startswith("/v1/"):
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1", "replace")  # as it came
            if not hmac.compare_digest(given, self._key.encode("utf-8")):
                return problem(401, "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'", "invalid_api_key")
        return None


def problem(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as OpenAI writes it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


async def _read(request: Request) -> CompletionRequest:
    """The body, bounded and checked. Raises UsageError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UsageError("send the body as application/json")
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY:
            raise UsageError(f"the body is larger than {MAX_BODY:,} bytes: send a shorter prompt")
    try:
        body = CompletionRequest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = str(first["loc"][0]) if first["loc"] else ""  # what follows names pydantic's own types
        raise UsageError(f"{where or 'the body'}: {first['msg']}") from error
    body.check()
    return body


class _Work:
    """A body's prompts, submitted."""

    def __init__(self, body: CompletionRequest, opened: Opened) -> None:
        tokenizer, self.batcher, self.body = opened.writer.tokenizer, opened.batcher, body
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        pieces = pieces_of(opened.writer.token_bytes)
        prompts = body.prompts()
        ids = [_ids(tokenizer, prompt) for prompt in prompts]
        texts = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]
        self.prompt_tokens = sum(map(len, ids))
        self.choices = [Choice(i * body.n + s, text, body, pieces) for i, text in enumerate(texts) for s in range(body.n)]
        seed = body.seed if body.seed is not None else SystemRandom().randrange(1 << 31)
        self.tickets = _submit_all(self.batcher, [body.to_request(one, seed) for one in ids])

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """Parts of all choices, as they come; whoever stops reading frees the slots."""
        merged: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        readers = [asyncio.create_task(_forward(i, ticket, merged)) for i, ticket in enumerate(self.tickets)]
        try:
            left = len(readers)
            while left:
                number, steps = await merged.get()
                if steps is None:
                    left -= 1
                elif isinstance(steps, MiniGPTError):
                    raise steps
                else:
                    for sample in sorted({step.sample for step in steps}):
                        yield self.choices[number * self.body.n + sample].take([step for step in steps if step.sample == sample])
        finally:
            for reader in readers:
                reader.cancel()
            self.cancel()

    def cancel(self) -> None:
        """Free the slots."""
        for ticket in self.tickets:
            self.batcher.cancel(ticket)

    def answer(self, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        """A whole answer or a piece of a stream."""
        envelope = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.body.model}
        return {**envelope, "choices": list(choices), **({"usage": usage} if usage is not None else {})}

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        written = sum(choice.tokens for choice in self.choices)
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": written, "total_tokens": self.prompt_tokens + written}

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        try:
            async for part in self.parts():
                yield _event(self.answer([part], None))
            if self.body.stream_options is not None and self.body.stream_options.include_usage:
                yield _event(self.answer([], self.usage()))
            yield "data: [DONE]\n\n"
        except MiniGPTError as error:
            yield _event({"error": {"message": str(error), "type": "server_error", "param": None, "code": "server_error"}})


def _submit_all(batcher: Batcher, requests: Sequence[Any]) -> list[Ticket]:
    tickets: list[Ticket] = []
    try:
        for request in requests:
            tickets.append(batcher.submit(request))
    except Busy:
        for ticket in tickets:
            batcher.cancel(ticket)
        raise
    return tickets


async def _forward(number: int, ticket: Ticket, merged: asyncio.Queue[tuple[int, Any]]) -> None:
    try:
        async for steps in ticket.steps():
            merged.put_nowait((number, steps))
        merged.put_nowait((number, None))
    except MiniGPTError as error:
        merged.put_nowait((number, error))


async def _whole(request: Request, work: _Work) -> Response:
    """The whole answer at once, unless its reader leaves first."""
    reading = asyncio.create_task(_gather(work))
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            return Response(status_code=499)
        return JSONResponse(work.answer(reading.result(), work.usage()))
    except UsageError as error:
        return problem(400, str(error), "invalid_request_error")
    except MiniGPTError as error:
        return problem(500, str(error), "server_error")
    finally:
        for task in (reading, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, MiniGPTError):
                await task
        work.cancel()


async def _gather(work: _Work) -> list[dict[str, Any]]:
    parts: dict[int, list[dict[str, Any]]] = {choice.index: [] for choice in work.choices}
    async for part in work.parts():
        parts[part["index"]].append(part)
    return [joined(found) for found in parts.values()]


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _ids(tokenizer: Any, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return prompt_ids(tokenizer, prompt)
    if max(prompt) >= tokenizer.vocab_size:
        raise UsageError(f"the prompt holds token {max(prompt)}, and the vocabulary has {tokenizer.vocab_size}")
    return prompt


def _as_model(run: Any) -> dict[str, Any]:
    return {"id": run.name, "object": "model", "created": run.created, "owned_by": "minigpt", **run.facts}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"
