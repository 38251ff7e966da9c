"""Conversations as training data: a .jsonl file to token files, and which of its tokens are answers. No torch.

A line is `{"messages": [{"role": "user", "content": "…"}, …]}` (roles system, user, assistant) or `{"prompt": "…",
"completion": "…"}`. The template is one added token before a message, which says who speaks, and one after it:

    <|user|>How many legs has a cat?<|end|><|assistant|>Four.<|end|>

The four tokens are added to whatever tokenizer is used. Training learns answers alone, and answers alone are scored: what
follows `<|assistant|>`, up to and including `<|end|>`. Nothing but the ids is needed to know which those are, so nothing else is stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt_cli.bounds import line
from minigpt_cli.data.atomic_folder import atomic_folder, put_in_place
from minigpt_cli.data.dataset import RECORD, SPLITS, TOKENIZER, Dataset, DatasetRecord, SplitRecord, cached, dtype_for, open_dataset
from minigpt_cli.errors import RunDamaged, TextTooShort, UsageError
from minigpt_cli.escaping import file_name
from minigpt_cli.storage.atomic_io import explained, parse_json, write_atomic
from minigpt_cli.tokenization.char import code_points
from minigpt_cli.tokenization.contract import Tokenizer
from minigpt_cli.tokenization.pretrained import load_tokenizer

ROLES = ("system", "user", "assistant")
END = "<|end|>"
TOKENS = (*(f"<|{role}|>" for role in ROLES), END)
LINE_LIMIT = 16 << 20  # bytes
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The same in Jinja, as exported models carry it."""

Message = tuple[str, str]
"""Role and content."""


def is_chat(source: str) -> bool:
    """Whether a source holds conversations."""
    return source.endswith(".jsonl")


def templated(messages: list[Message]) -> str:
    """A conversation as text."""
    return "".join(f"<|{role}|>{content}{END}" for role, content in messages)


def prompt_for(messages: list[Message]) -> str:
    """A conversation that waits for an answer, as text."""
    return templated(messages) + "<|assistant|>"


def read_conversations(source: str) -> Iterator[list[Message]]:
    """The conversations of a source. Raises UsageError if it is no file, or a line of it holds no conversation."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise UsageError(f"no such file: {path}" if not path.exists() else f"{path} is not a file")
    return conversations(path)


def conversations(path: Path) -> Iterator[list[Message]]:
    """The conversations of a .jsonl file, line by line. Raises UsageError that names the line."""
    with explained("read"), path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_LIMIT + 1):
            number += 1
            where = f"{path} line {number}"
            if len(line) > LINE_LIMIT:
                raise UsageError(f"{where} has more than {LINE_LIMIT:,} bytes")
            if line.strip():
                yield _conversation(line, where)


def _conversation(line: bytes, where: str) -> list[Message]:
    try:
        row = parse_json(line, where)
    except RunDamaged as error:
        raise UsageError(str(error)) from error
    if isinstance(row, dict) and "prompt" in row and "completion" in row:
        messages: Any = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    else:
        messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{where} has neither messages nor prompt and completion")
    found = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise UsageError(f"{where}: a message needs a role ({', '.join(ROLES)}) and a content that is text")
        if mark := next((token for token in TOKENS if token in content), None):
            raise UsageError(f"{where}: a message holds {mark}, which is reserved for the template")
        found.append((role, content))
    if not any(role == "assistant" for role, _ in found):
        raise UsageError(f"{where} has no answer (a message of the assistant) to learn from")
    return found


# ---- tokens


def with_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer` with the template's tokens added after its own; itself if it has them."""
    spec = json.loads(tokenizer.to_json())
    known = {token["content"] for token in spec["added_tokens"]}
    new = [token for token in TOKENS if token not in known]
    if not new:
        return tokenizer
    spec["added_tokens"] += [{"id": tokenizer.vocab_size + i, "content": token, "special": True} for i, token in enumerate(new)]
    return load_tokenizer(json.dumps(spec, ensure_ascii=False), tokenizer.name)


def token_ids(tokenizer: Tokenizer) -> dict[str, int] | None:
    """The ids of the template's tokens; None for a tokenizer without them."""
    added = {token["content"]: int(token["id"]) for token in json.loads(tokenizer.to_json())["added_tokens"]}
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


def learned(tokens: npt.NDArray[Any], tokenizer: Tokenizer) -> tuple[npt.NDArray[Any], list[bytes]]:
    """The tokens that training learns, and the bytes that each id stands for: all of a text; of conversations the answers, each closed
    by a line break."""
    pieces, chosen = tokenizer.token_bytes(), answers(tokens, tokenizer)
    if chosen is None:
        return tokens, pieces
    pieces[(token_ids(tokenizer) or {})[END]] = b"\n"
    return np.asarray(tokens)[chosen], pieces


def answer_chars(tokens: npt.NDArray[Any], learned: npt.NDArray[np.bool_], tokenizer: Tokenizer) -> int:
    """Characters of the answers among `tokens`, the template's marks not counted."""
    return len(tokenizer.decode(np.asarray(tokens)[learned & ~is_mark(tokens, tokenizer)]))


# ---- files


@dataclass(frozen=True)
class _Corpus:
    """What a tokenizer learns from: the contents of messages, without the template."""

    path: Path
    n_train: int  # conversations
    alphabet: npt.NDArray[np.uint32]
    train_bytes: int

    def train_text(self) -> Iterator[str]:
        """The training split's messages."""
        for number, messages in enumerate(conversations(self.path)):
            if number >= self.n_train:
                return
            yield from (content for _, content in messages)


def prepare_chat(config: Any, recipe: Any, data_dir: Path, out: Path | None) -> Generator[tuple[int, int, str], None, Dataset]:
    """The token files of a .jsonl file, split between conversations; yields bytes done, bytes in all, and what is done."""
    rows, path = read_conversations(config.source), Path(config.source).expanduser()
    total = path.stat().st_size
    digest, seen, count, n_bytes, n_chars = hashlib.sha256(), np.zeros(0x110000, np.bool_), 0, 0, 0
    for messages in rows:
        text = templated(messages)
        data = text.encode("utf-8")
        digest.update(data)
        for _, content in messages:
            seen[code_points(content)] = True
        count, n_bytes, n_chars = count + 1, n_bytes + len(data), n_chars + len(text)
        yield min(n_bytes, total), total, "reading"
    counts = _split(count, config, path)
    settings = {"format": 1, "chat": 1, "text": digest.hexdigest(), "tokenizer": recipe.identity, "splits": counts}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode("utf-8")).hexdigest()
    target = out or data_dir / f"{file_name(path.stem, 40)}-chat-{file_name(recipe.name, 20)}-{key[:12]}"
    if (found := cached(target, key)) is None:
        tokenizer = with_chat_tokens(
            recipe.build(config, _Corpus(path, counts["train"], np.flatnonzero(seen).astype(np.uint32), n_bytes * counts["train"] // count))
        )
        with atomic_folder(target.parent) as folder:
            splits = yield from _write(folder, path, counts, tokenizer, total)
            json_text = tokenizer.to_json()
            write_atomic(folder / TOKENIZER, json_text)
            record = DatasetRecord(
                key=key,
                label=line(path.name),
                sha256=digest.hexdigest(),
                n_chars=n_chars,
                n_bytes=n_bytes,
                tokenizer=tokenizer.name,
                tokenizer_sha256=hashlib.sha256(json_text.encode("utf-8")).hexdigest(),
                vocab_size=tokenizer.vocab_size,
                dtype=dtype_for(tokenizer.vocab_size),
                train_frac=config.train_frac,
                test_frac=config.test_frac,
                splits=splits,
            )
            write_atomic(folder / RECORD, record.model_dump_json(indent=1))
            put_in_place(folder, target, lambda there: cached(there, key) is not None)
        found = open_dataset(target)
    return found


def _split(count: int, config: Any, path: Path) -> dict[str, int]:
    """Conversations of each split. Raises TextTooShort if one would have none."""
    train, test = int(count * config.train_frac), int(count * config.test_frac)
    counts = {"train": train, "val": count - train - test} | ({"test": test} if config.test_frac else {})
    for name, number in counts.items():
        if not number:
            raise TextTooShort(f"{path} has {count} conversations, which leaves none for the {name} split: use more")
    return counts


def _write(
    folder: Path, path: Path, counts: dict[str, int], tokenizer: Tokenizer, total: int
) -> Generator[tuple[int, int, str], None, dict[str, SplitRecord]]:
    """Write train.bin, val.bin (and test.bin); what dataset.json says of them."""
    rows, dtype, done = conversations(path), dtype_for(tokenizer.vocab_size), 0
    splits: dict[str, SplitRecord] = {}
    for name in SPLITS[: len(counts)]:
        text_sum, file_sum, n_tokens, n_chars, n_bytes, said = hashlib.sha256(), hashlib.sha256(), 0, 0, 0, False
        with explained("write"), (folder / f"{name}.bin").open("wb") as file:
            for _ in range(counts[name]):
                messages = next(rows)
                said = said or any(content for role, content in messages if role == "assistant")
                text = templated(messages)
                ids = tokenizer.encode(text)
                data = ids.astype(dtype).tobytes()
                file.write(data)
                file_sum.update(data)
                text_sum.update(text.encode("utf-8"))
                n_tokens, n_chars, n_bytes = n_tokens + len(ids), n_chars + len(text), n_bytes + len(text.encode("utf-8"))
                yield min(done + n_bytes, total), total, "encoding"
        if not said:
            raise TextTooShort(f"the answers in the {name} split of {path} hold no text, so none can be scored: use more conversations")
        done += n_bytes
        splits[name] = SplitRecord(
            n_tokens=n_tokens, n_chars=n_chars, n_bytes=n_bytes, text_sha256=text_sum.hexdigest(), file_sha256=file_sum.hexdigest()
        )
    return splits
