"""A tokenizer run by the `tokenizers` library that keeps our contract: lossless, deterministic, bounded.

The library gets segments (see segments.py), and its result is checked: the bytes of the ids must be the bytes of the text, or
an error names the lost characters. Decoding needs no library: it joins the bytes of the ids.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minigpt_cli.errors import UsageError
from minigpt_cli.storage.atomic_io import one_line
from minigpt_cli.tokenization.char import unknown_characters
from minigpt_cli.tokenization.contract import Ids, added_pattern, checked_ids, encoded
from minigpt_cli.tokenization.segments import segments
from minigpt_cli.tokenization.words import Words, library

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_BATCH = 8  # segments given to the library at once, which it spreads over its threads

# An unknown pattern may backtrack without end: the library panics after ten million steps of one match and writes about it to
# stderr. Short segments bound the total time of many matches with fewer steps.
_STRANGE_LIMIT = 1 << 12  # characters in a segment
_QUICK_PATTERNS = {
    "",
    # Llama 3 and Qwen 2, which differ in the digits
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[\s\S]",
}


@contextmanager
def _silent() -> Iterator[None]:
    """Discard what the library writes to stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def library_errors(doing: str) -> Iterator[None]:
    """Turn an error of the library into a UsageError; a panic in Rust arrives as a BaseException."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"{doing}: {one_line(str(error))}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UsageError(f"{doing}: the tokenizers library panicked: {one_line(str(error))}") from error


class LibraryTokenizer:
    """A tokenizer from a Hugging Face JSON."""

    settings: tuple[str, ...] = ()
    edition = 1

    def __init__(self, json_text: str, token_bytes: list[bytes], name: str, added: Mapping[str, int] | None = None) -> None:
        """`json_text` must have been checked (see json_format.py); `token_bytes` has the bytes of each id, `added` the added tokens."""
        self.name = name
        self._json = json_text
        self._added = dict(added or {})
        self._token_bytes = token_bytes
        self._backend: Backend | None = None  # made at its first use: to decode needs none

    @property
    def backend(self) -> Backend:
        """The library's object."""
        if self._backend is None:
            from tokenizers import Tokenizer as Backend

            with library_errors(f"tokenizer {self.name} cannot be opened"):
                backend = Backend.from_str(self._json)
            for content, i in self._added.items():
                if backend.token_to_id(content) != i:  # the library gives its own ids where those of added tokens leave a gap
                    raise UsageError(f"tokenizer {self.name}: its added token {content!r} gets another id than the file says")
            self._backend = backend
        return self._backend

    @cached_property
    def _is_strange(self) -> bool:
        """Whether it cuts the text with a pattern that is not known to be quick."""
        spec = json.loads(self._json)["pre_tokenizer"] or {}
        steps = spec.get("pretokenizers", [spec])
        patterns = {step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"}
        return any(step.get("type") == "Sequence" for step in steps) or not patterns <= _QUICK_PATTERNS

    @cached_property
    def _cuts_at_spaces(self) -> bool:
        """Whether it cuts the text with GPT-2's pattern and by nothing else."""
        spec = json.loads(self._json)
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        spaced = any(character.isspace() for token in spec["added_tokens"] for character in token["content"])
        return spec["pre_tokenizer"] == level and spec["normalizer"] is None and not spaced

    @property
    def vocab_size(self) -> int:
        return len(self._token_bytes)

    def encode(self, text: str) -> Ids:
        """Ids of `text`. Raises UsageError that lists the characters it does not know."""
        encoded(text)
        return np.concatenate([np.empty(0, np.uint32), *self.encode_stream([text])])

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Ids]:
        """Ids of the concatenated `pieces`, segment by segment."""
        parts = segments(pieces, _STRANGE_LIMIT if self._is_strange else 0, self._added)
        words = self._words
        while batch := list(islice(parts, _BATCH)):
            if words is None:
                yield from (np.array(ids, np.uint32) for ids in self._checked(batch))
            else:
                turns = [self._added_pattern.split(segment) if self._added else [segment] for segment in batch]
                yield words.encode([part for segment in turns for part in (*segment, "")])

    @cached_property
    def _words(self) -> Words | None:
        """Words whose ids are remembered; None where words would change the ids, or nothing can be compiled."""
        functions = library() if self._cuts_at_spaces else None
        return Words(functions, self._checked) if functions else None

    @cached_property
    def _added_pattern(self) -> re.Pattern[str]:
        return added_pattern(self._added)

    def _checked(self, texts: list[str]) -> list[list[int]]:
        """The library's ids of each text. Raises UsageError if their bytes are not the text's."""
        _ = self.backend  # raises its own error if it cannot be opened
        try:
            found = self._encode_batch(texts)
        except UsageError:  # such as a vocabulary of whole words without a token for unknown words
            if unknown := self._unknown("".join(texts)):
                raise unknown_characters(unknown, self.name) from None
            raise
        for text, ids in zip(texts, found, strict=True):
            if self._joined(ids) != text.encode("utf-8"):
                raise self._lossy(text)
        return found

    def _encode_batch(self, texts: list[str]) -> list[list[int]]:
        with library_errors(f"tokenizer {self.name} failed on the text"), _silent() if self._is_strange else nullcontext():
            return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _joined(self, ids: list[int]) -> bytes:
        size = self.vocab_size
        return b"".join([self._token_bytes[i] if i < size else b"" for i in ids])

    def _lossy(self, text: str) -> UsageError:
        """The error for a text that decoding does not give back: the lost characters, or the first place that differs."""
        if lost := self._unknown(text):
            return unknown_characters(lost, self.name)
        got, want = self._joined(self._encode_batch([text])[0]), text.encode("utf-8")
        at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
        near = want[max(0, at - 10) : at + 10].decode("utf-8", "replace")
        return UsageError(f"the {self.name} tokenizer does not give back the text near {near!r}: choose one that keeps every character")

    def _unknown(self, text: str) -> list[str]:
        """The characters of `text` that, also alone, are refused or not given back."""
        for content in self._added:
            text = text.replace(content, "")
        found = []
        for character in sorted(set(text)):
            try:
                if self._joined(self._encode_batch([character])[0]) != character.encode("utf-8"):
                    found.append(character)
            except UsageError:
                found.append(character)
        return found

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of `ids`; bytes that are not (yet) UTF-8 become U+FFFD."""
        return self._joined(checked_ids(ids, self.vocab_size).tolist()).decode("utf-8", "replace")

    def token_bytes(self) -> list[bytes]:
        """The bytes that each id stands for."""
        return list(self._token_bytes)

    def to_json(self) -> str:
        """The Hugging Face JSON."""
        return self._json
