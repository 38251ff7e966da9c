"""The server: OpenAI's /v1/completions, /v1/chat/completions and /v1/models, /health, and a page at /.

Bodies, texts and queues are bounded. A request ends when its client leaves, and gets decoding slots only after its complete
body has arrived. guard.py decides which requests are answered. Only JSON is read, so no HTML form can post.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from random import SystemRandom
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from minigpt_cli.errors import MiniGPTError, RunNotFound, UsageError
from minigpt_cli.generation.open_run import LoadedModel
from minigpt_cli.generation.serving.batcher import Batcher, Busy, Ticket
from minigpt_cli.generation.serving.chat_protocol import ChatForm, ChatRequest
from minigpt_cli.generation.serving.guard import Guard
from minigpt_cli.generation.serving.models import Models, Opened
from minigpt_cli.generation.serving.protocol import Choice, CompletionRequest, TextForm, joined, problem
from minigpt_cli.storage.atomic_io import one_line

MAX_BODY = 4 << 20  # bytes
_log = logging.getLogger(__name__)
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'"
)


def create_app(models: Models, page: str, *, api_key: str | None = None, any_host: bool = False) -> Guard:
    """The application, behind its guard."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        models.close()

    app = FastAPI(title="minigpt", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)

    @app.exception_handler(404)
    async def missing(request: Request, error: Exception) -> JSONResponse:
        return problem(404, f"there is no page {request.scope['path'][:80]}", "not_found")

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
                examples = await asyncio.to_thread(models.prompts, name)
                return _as_model(run) | {"prompts": [{"shown": shown, "prompt": prompt} for shown, prompt in examples]}
        return problem(404, f"there is no run {name[:80]!r}", "model_not_found")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answered(request, CompletionRequest, TextForm())

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answered(request, ChatRequest, ChatForm())

    async def answered(request: Request, kind: type[CompletionRequest | ChatRequest], form: TextForm | ChatForm) -> Response:
        try:
            body = await _read(request, kind)
            opened = await _open(models, body.model)
            work = _Work(body.asked(opened.loaded), opened, form)
        except Busy as error:
            return problem(429, str(error), "rate_limit_exceeded", {"retry-after": "1"})
        except RunNotFound as error:
            return problem(404, str(error), "model_not_found")
        except UsageError as error:
            return problem(400, str(error), "invalid_request_error")
        except MiniGPTError as error:
            return problem(500, str(error), "server_error")
        except ClientDisconnect:
            return Response(status_code=499)
        if body.stream:
            return StreamingResponse(work.events(), media_type="text/event-stream", headers={"cache-control": "no-store"})
        return await _whole(request, work)

    return Guard(app, api_key=api_key, any_host=any_host)


async def _open(models: Models, name: str) -> Opened:
    """The run called `name`. Its path and its problems go to the log, not to the client."""
    try:
        return await models.get(name)
    except Busy:
        raise
    except RunNotFound:
        raise RunNotFound(f"unknown run {name[:80]!r}: GET /v1/models lists the runs") from None
    except (MiniGPTError, OSError) as error:
        _log.warning("run %.80r cannot be opened: %s", name, one_line(str(error)))
        raise MiniGPTError(f"run {name[:80]!r} cannot be opened: the server's log says why") from error


async def _read(request: Request, kind: type[CompletionRequest | ChatRequest]) -> CompletionRequest | ChatRequest:
    """The body, bounded and checked. Raises UsageError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UsageError("send the body as application/json")
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY:
            raise UsageError(f"the body is larger than {MAX_BODY:,} bytes: send a shorter prompt")
    try:
        body = kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = str(first["loc"][0]) if first["loc"] else ""  # what follows names pydantic's own types
        raise UsageError(f"{where or 'the body'}: {first['msg']}") from error
    body.check()
    return body


class _Work:
    """A body's prompts, submitted."""

    def __init__(self, body: CompletionRequest, opened: Opened, form: TextForm | ChatForm) -> None:
        tokenizer, self.batcher, self.body, self.form = opened.loaded.tokenizer, opened.batcher, body, form
        self.id, self.created = f"{form.id}-{uuid.uuid4().hex}", int(time.time())
        prompts = body.prompts()
        ids = [_ids(opened.loaded, prompt, body.echo) for prompt in prompts]
        texts = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]
        self.prompt_tokens = sum(map(len, ids))
        vocabulary = opened.pieces, opened.loaded.token_bytes
        self.choices = [Choice(i * body.n + s, text, body, *vocabulary) for i, text in enumerate(texts) for s in range(body.n)]
        seed = body.seed if body.seed is not None else SystemRandom().randrange(1 << 31)
        self.tickets = _submit_all(self.batcher, [body.to_request(one, seed, opened.loaded.ends) for one in ids])

    async def parts(self) -> AsyncIterator[dict[str, Any]]:
        """Parts of all choices as they arrive; if the reader stops, the slots are free."""
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

    def answer(self, parts: Sequence[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        """A whole answer or a piece of a stream."""
        streamed = self.body.stream
        envelope = {"id": self.id, "object": self.form.kind(streamed=streamed), "created": self.created, "model": self.body.model}
        choices = [self.form.choice(part, streamed=streamed) for part in parts]
        return {**envelope, "choices": choices, **({"usage": usage} if usage is not None else {})}

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
    """The complete answer, unless the client leaves first."""
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


def _ids(loaded: LoadedModel, prompt: str | list[int], echo: bool) -> list[int]:
    if isinstance(prompt, str):
        return loaded.text_ids(prompt) if echo else loaded.prompt_ids(prompt)
    if max(prompt) >= loaded.tokenizer.vocab_size:
        raise UsageError(f"the prompt holds token {max(prompt)}, and the vocabulary has {loaded.tokenizer.vocab_size}")
    return prompt


def _as_model(run: Any) -> dict[str, Any]:
    return {"id": run.name, "object": "model", "created": run.created, "owned_by": "minigpt", **run.facts}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"
