"""Conversations as text: their template, the tokens it adds, and which tokens are answers. No torch.

The template is one added token before a message, which says who speaks, and one after it:

    <|user|>How many legs has a cat?<|end|><|assistant|>Four.<|end|>

The four tokens are added to whatever tokenizer is used. Training learns answers alone, and answers alone are scored: what
follows `<|assistant|>`, up to and including `<|end|>`. Nothing but the ids is needed to know which those are, so nothing else is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt_cli.data.sources.contract import Piece
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.records import RunRecord
from minigpt_cli.tokenization.contract import Tokenizer, added_tokens

ROLES = ("system", "user", "assistant")
END = "<|end|>"
TOKENS = (*(f"<|{role}|>" for role in ROLES), END)
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The same in Jinja, as exported models carry it."""

Message = tuple[str, str]
"""Role and content."""


def learned_chats(record: RunRecord) -> bool:
    """Whether a run was trained on conversations, of which the answers alone are learned and scored."""
    corpus = record.corpus
    return corpus is not None and (corpus.label.endswith(".jsonl") if corpus.chats is None else corpus.chats)


def in_pieces(messages: Iterable[Message]) -> Iterator[Piece]:
    """A conversation in its template: marks and contents, of which the assistant's are learned."""
    for role, content in messages:
        yield Piece(f"<|{role}|>", learned=False)
        yield Piece(content, learned=role == "assistant")
        yield Piece(END, learned=False)


def templated(messages: Iterable[Message]) -> str:
    """A conversation as text."""
    return "".join(piece.text for piece in in_pieces(messages))


def prompt_for(messages: list[Message]) -> str:
    """A conversation that waits for an answer, as text."""
    return templated(messages) + "<|assistant|>"


def check_unmarked(text: str, what: str) -> None:
    """Raise UsageError for a text with a mark of the template; `what` names the text."""
    if mark := next((token for token in TOKENS if token in text), None):
        raise UsageError(f"{what} contains {mark}, which is reserved for the chat template: leave it out")


def room(window: int, answer_tokens: int) -> int:
    """The tokens of a window that a conversation may take: at most a quarter stays free for the answer."""
    return window - min(answer_tokens, window // 4)


def recent(messages: Sequence[Message], fits: Callable[[str], bool]) -> tuple[str, int]:
    """The prompt for as many of the newest messages as fit, after the system's, and how many are left out; the newest is always there."""
    system = [message for message in messages if message[0] == "system"]
    turns = [message for message in messages if message[0] != "system"]
    kept = turns
    while len(kept) > 1 and not fits(prompt_for([*system, *kept])):
        kept = kept[1:]
        while len(kept) > 1 and kept[0][0] == "assistant":  # an answer without its question
            kept = kept[1:]
    return prompt_for([*system, *kept]), len(turns) - len(kept)


# ---- tokens


def token_ids(tokenizer: Tokenizer) -> dict[str, int] | None:
    """The ids of the template's tokens; None for a tokenizer without them."""
    added = added_tokens(tokenizer)
    return {token: added[token] for token in TOKENS} if all(token in added for token in TOKENS) else None


def answers(tokens: npt.NDArray[Any], tokenizer: Tokenizer) -> npt.NDArray[np.bool_] | None:
    """Which tokens belong to answers, (N,): those after <|assistant|> up to and with <|end|>. None where the text is no conversation."""
    ids = token_ids(tokenizer)
    if ids is None:
        return None
    marker = np.isin(tokens, np.array(list(ids.values())))
    if not (np.asarray(tokens)[marker] == ids["<|assistant|>"]).any():
        return None
    last = np.maximum.accumulate(np.where(marker, np.arange(len(tokens)), -1))  # the nearest marker at or before each token
    before = np.concatenate([[-1], last[:-1]])
    inside = (before >= 0) & (np.asarray(tokens)[before] == ids["<|assistant|>"])
    learned: npt.NDArray[np.bool_] = inside & (~marker | (np.asarray(tokens) == ids[END]))
    return learned


def is_mark(tokens: npt.NDArray[Any], tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """Which tokens are the template's, (N,)."""
    return np.isin(tokens, np.array(list((token_ids(tokenizer) or {}).values()), dtype=np.int64))


def answer_starts(tokens: npt.NDArray[Any], tokenizer: Tokenizer) -> npt.NDArray[np.intp]:
    """The first token of each answer, (n_answers,): what follows an <|assistant|>."""
    ids = token_ids(tokenizer)
    return np.flatnonzero(np.asarray(tokens) == (-1 if ids is None else ids["<|assistant|>"])) + 1


def answer_chars(tokens: npt.NDArray[Any], learned: npt.NDArray[np.bool_], tokenizer: Tokenizer) -> int:
    """Characters of the answers among `tokens`, the template's marks not counted."""
    return len(tokenizer.decode(np.asarray(tokens)[learned & ~is_mark(tokens, tokenizer)]))
