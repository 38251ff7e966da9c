"""OpenAI's /v1/chat/completions: a conversation in the template of data/chat.py, and its answer as a message."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from minigpt_cli.data import chat
from minigpt_cli.errors import UsageError
from minigpt_cli.generation.open_run import LoadedModel
from minigpt_cli.generation.serving.protocol import MAX_PROMPT, MAX_TOKENS, CompletionRequest, Settings

MAX_MESSAGES = 4096
_DEFAULT_TOKENS = 512  # an answer ends by itself


class Part(BaseModel):
    """A part of a message; only texts are read."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_PROMPT)]


class Message(BaseModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_PROMPT)] | list[Part] = ""

    def turn(self) -> chat.Message:
        """Role and text. Raises UsageError for a text with a mark of the template."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        chat.check_unmarked(text, "a message")
        return "system" if self.role == "developer" else self.role, text


class ChatRequest(Settings):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    def check(self) -> None:
        """Raise UsageError for what this server does not support."""
        self.refuse("presence_penalty", "frequency_penalty", "logit_bias", "tools", "functions")
        if self.response_format is not None and self.response_format.get("type") != "text":
            raise UsageError("response_format other than text is not supported here: leave it out")
        if self.top_logprobs and not self.logprobs:
            raise UsageError("top_logprobs needs logprobs: true")

    def asked(self, loaded: LoadedModel) -> CompletionRequest:
        """The same as a text to continue: as many of the newest turns as fit into the window. Raises UsageError for a run that was not
        trained on conversations."""
        if chat.token_ids(loaded.tokenizer) is None:
            raise UsageError(f"run {loaded.run!r} has not learned to chat: use /v1/completions, or train it on a .jsonl of conversations")
        tokens = self.max_completion_tokens or self.max_tokens or _DEFAULT_TOKENS
        room = chat.room(loaded.config.model.block_size, tokens)
        prompt, _ = chat.recent([message.turn() for message in self.messages], lambda text: len(loaded.text_ids(text)) <= room)
        shared = {name: getattr(self, name) for name in Settings.model_fields}
        asked = CompletionRequest(**shared, prompt=prompt, max_tokens=tokens, logprobs=self.top_logprobs if self.logprobs else None)
        asked.check()
        return asked


class ChatForm:
    """Answers as /v1/chat/completions gives them."""

    id = "chatcmpl"

    @staticmethod
    def kind(*, streamed: bool) -> str:
        return "chat.completion.chunk" if streamed else "chat.completion"

    @staticmethod
    def choice(part: dict[str, Any], *, streamed: bool) -> dict[str, Any]:
        message = {"role": "assistant", "content": part["text"]}
        logprobs = None if part["logprobs"] is None else {"content": _tokens(part["logprobs"])}
        ending = {"logprobs": logprobs, "finish_reason": part["finish_reason"]}
        return {"index": part["index"], "delta" if streamed else "message": message, **ending}


def _tokens(logprobs: dict[str, list[Any]]) -> list[dict[str, Any]]:
    columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    return [
        {**_token(token, logprob), "top_logprobs": [_token(*pair) for pair in top.items()]}
        for token, logprob, top in zip(*columns, strict=True)
    ]


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
