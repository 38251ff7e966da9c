"""OpenAI's /v1/completions in pydantic: the fields of requests and answers. chat_protocol.py has those of conversations.

Defaults are OpenAI's (temperature 1, no top-k, 16 tokens), not those of the command line. top_k, min_p and
repetition_penalty are accepted too, as by other servers.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Annotated, Any, cast

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from minigpt_cli.errors import UsageError
from minigpt_cli.generation.engine import GenerationRequest, Scored, Step
from minigpt_cli.generation.open_run import LoadedModel
from minigpt_cli.generation.sampling import Sampling

MAX_TOKENS = 8192  # of one sample
MAX_SEQUENCES = 64  # samples in one request
MAX_TOTAL = 1 << 16  # tokens of all samples of one request
MAX_PROMPT = 1 << 17  # characters or tokens of one prompt

_Text = Annotated[str, Field(max_length=MAX_PROMPT)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_PROMPT)]


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool = False


class Settings(BaseModel):
    """What texts and conversations share; other fields of OpenAI's are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=200)
    n: int = Field(1, ge=1, le=MAX_SEQUENCES)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=100)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Annotated[str, Field(max_length=1000)] | Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=16)] | None = (
        None
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        """In OpenAI's protocol null means the default."""
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body

    def refuse(self, *names: str) -> None:
        """Raise UsageError if one of these fields is given."""
        for name in names:
            if getattr(self, name):
                raise UsageError(f"{name} is not supported here: leave it out" + (" (repetition_penalty is)" if "penalty" in name else ""))


class CompletionRequest(Settings):
    """The body of POST /v1/completions."""

    prompt: (
        _Text | _Ids | Annotated[list[_Text], Field(max_length=MAX_SEQUENCES)] | Annotated[list[_Ids], Field(max_length=MAX_SEQUENCES)]
    ) = ""
    max_tokens: int = Field(16, ge=0, le=MAX_TOKENS)  # 0: nothing is written, so that echo and logprobs score a text
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None

    def check(self) -> None:
        """Raise UsageError for what this server does not support."""
        self.refuse("presence_penalty", "frequency_penalty", "logit_bias", "suffix")
        if self.best_of is not None and self.best_of != self.n:
            raise UsageError("best_of other than n is not supported here: ask for n texts and choose one yourself")
        sequences = self.n * len(self.prompts())
        if sequences > MAX_SEQUENCES or sequences * self.max_tokens > MAX_TOTAL:
            raise UsageError(f"{sequences} texts of {self.max_tokens} tokens are too much for one request: at most {MAX_SEQUENCES} texts "
                             f"and {MAX_TOTAL} tokens in all")  # fmt: skip

    def asked(self, loaded: LoadedModel) -> CompletionRequest:
        """What is asked of the run `loaded`: this."""
        return self

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or more; one without tokens is an empty text."""
        prompt = self.prompt
        if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
            return [cast(str | list[int], prompt) or ""]
        return [one or "" for one in cast(list[str | list[int]], prompt)]

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def to_request(self, ids: Sequence[int], seed: int, ends: Sequence[str] = ()) -> GenerationRequest:
        """The engine's request for one of the prompts; `ends`: what ends a text by itself."""
        sampling = Sampling(self.temperature, max(0, self.top_k), self.top_p, self.min_p, self.repetition_penalty)
        scored = self.logprobs is not None
        return GenerationRequest(
            ids, sampling, max(1, self.max_tokens), self.n, seed, self.stops(), ends, alternatives=self.logprobs or 0, score=scored,
            score_prompt=scored and self.echo,
        )  # fmt: skip


def problem(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as OpenAI writes it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


_FINISH_REASONS: dict[str | None, str] = {"stop": "stop", "eot": "stop", "length": "length"}  # OpenAI's word for the engine's


class Choice:
    """One sample's answer as it grows."""

    def __init__(self, index: int, prompt: str, body: CompletionRequest, pieces: Sequence[str], token_bytes: Sequence[bytes]) -> None:
        self.index, self.tokens = index, 0
        self._body, self._pieces, self._token_bytes, self._echo = body, pieces, token_bytes, prompt if body.echo else ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._read = self._given = 0  # characters of the tokens so far, and of the text that was given
        self._held: list[tuple[int, Step | Scored]] = []  # tokens whose text is not given yet, with their first character

    def take(self, steps: Sequence[Step]) -> dict[str, Any]:
        """The next part of the answer. Its logprobs are of the tokens that begin in the text so far: they end where the text ends."""
        text, self._echo = self._echo, ""
        for step in steps:
            written = (step,) if self._body.max_tokens else ()
            for token in (*step.prompt, *written):
                self._held.append((self._read, token))
                self._read += len(self._decoder.decode(self._token_bytes[token.token]))
            text += "".join(one.text for one in written)
            self.tokens += len(written)
        reason = _FINISH_REASONS.get(steps[-1].stop_reason)
        self._given += len(text)
        ready = [pair for pair in self._held if pair[0] < self._given or reason == "length"]
        self._held = self._held[len(ready) :]
        logprobs = self._logprobs(ready) if self._body.logprobs is not None else None
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[tuple[int, Step | Scored]]) -> dict[str, list[Any]]:
        """What OpenAI calls logprobs: the tokens, their log-probabilities and alternatives, and their first characters."""
        return {
            "tokens": [self._pieces[token.token] for _, token in tokens],
            "token_logprobs": [None if token.nats is None else -token.nats for _, token in tokens],
            "top_logprobs": [self._alternatives(token) for _, token in tokens],
            "text_offset": [start for start, _ in tokens],
        }

    def _alternatives(self, token: Step | Scored) -> dict[str, float] | None:
        if token.nats is None:
            return None
        top = {self._pieces[other]: math.log(p) if p > 0 else -1e4 for other, p in token.alternatives}
        return {self._pieces[token.token]: -token.nats} | top  # as OpenAI does, the chosen token too


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The parts of one choice as one."""
    logprobs = parts[0]["logprobs"]
    if logprobs is not None:
        logprobs = {key: [item for part in parts for item in part["logprobs"][key]] for key in logprobs}
    return {**parts[-1], "text": "".join(part["text"] for part in parts), "logprobs": logprobs}


class TextForm:
    """Answers as /v1/completions gives them."""

    id = "cmpl"

    @staticmethod
    def kind(*, streamed: bool) -> str:
        return "text_completion"

    @staticmethod
    def choice(part: dict[str, Any], *, streamed: bool) -> dict[str, Any]:
        return part
