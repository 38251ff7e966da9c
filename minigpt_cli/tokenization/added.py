"""Tokens added to a character or byte tokenizer, such as the end of a document.

The base tokenizer never gets their texts, so it stays fast. Other tokenizers leave added tokens to their library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from minigpt_cli.tokenization.bpe import ByteTokenizer
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.contract import Ids, added_pattern, checked_ids
from minigpt_cli.tokenization.json_format import check

_BATCH = 1 << 18  # characters given to the base at once


class AddedTokens:
    """`base` with a token for each of `contents`, whose ids follow those of `base`."""

    settings: tuple[str, ...] = ()

    def __init__(self, base: CharTokenizer | ByteTokenizer, contents: Sequence[str]) -> None:
        self.name, self.base = base.name, base
        self._ids = {content: base.vocab_size + i for i, content in enumerate(contents)}
        self._pattern = added_pattern(contents)

    @property
    def vocab_size(self) -> int:
        return self.base.vocab_size + len(self._ids)

    def encode(self, text: str) -> Ids:
        """Ids of `text`. Raises UsageError that lists the characters it does not know."""
        return np.concatenate([np.empty(0, np.uint32), *self.encode_stream(self._pattern.split(text))])

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Ids]:
        """Ids of the concatenated `pieces`; a piece that is exactly an added token's text becomes that token."""
        waiting: list[str] = []
        places: list[int] = []  # of added tokens, in ids of the base
        added: list[int] = []
        size = 0  # in ids of the base
        for piece in pieces:
            if (token := self._ids.get(piece)) is not None:
                places.append(size)
                added.append(token)
            else:
                waiting.append(piece)
                size += len(piece) if isinstance(self.base, CharTokenizer) else len(piece.encode("utf-8", "surrogatepass"))
            if size >= _BATCH:
                yield self._joined(waiting, places, added)
                waiting, places, added, size = [], [], [], 0
        if waiting or added:
            yield self._joined(waiting, places, added)

    def _joined(self, texts: list[str], places: list[int], added: list[int]) -> Ids:
        ids = self.base.encode("".join(texts))
        return np.insert(ids, places, np.array(added, np.uint32)) if places else ids

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of `ids`; bytes that are not (yet) UTF-8 become U+FFFD."""
        index = checked_ids(ids, self.vocab_size)
        texts, contents, begin = [], list(self._ids), 0
        for place in np.flatnonzero(index >= self.base.vocab_size).tolist():
            texts += [self.base.decode(index[begin:place]), contents[index[place] - self.base.vocab_size]]
            begin = place + 1
        return "".join([*texts, self.base.decode(index[begin:])])

    def token_bytes(self) -> list[bytes]:
        """The bytes that each id stands for."""
        return self.base.token_bytes() + [content.encode("utf-8") for content in self._ids]

    @cached_property
    def _json(self) -> str:
        spec = json.loads(self.base.to_json())
        spec["added_tokens"] = [{"id": i, "content": content, "special": True} for content, i in self._ids.items()]
        return check(json.dumps(spec, ensure_ascii=False), self.name).json_text

    def to_json(self) -> str:
        """A Hugging Face `tokenizers` JSON that encodes and decodes the same."""
        return self._json
