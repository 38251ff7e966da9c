"""Byte-level tokenizers: the 256 bytes alone, and byte pair encoding learned on top of them (Sennrich et al. 2016; GPT-2).

Both can encode every text, because every text is bytes. `bpe` first cuts the text into words, numbers, punctuation and spaces
with GPT-2's pattern, then merges the most frequent pairs. It learns from the training split alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from minigpt_cli.config import DataConfig
from minigpt_cli.tokenization.bytelevel import CHARACTER_OF_BYTE, bytes_of
from minigpt_cli.tokenization.contract import Ids, NarrowIds, TrainingText, checked_ids, encoded, hugging_face_json
from minigpt_cli.tokenization.library import LibraryTokenizer, library_errors
from minigpt_cli.tokenization.segments import segments

LEARN_LIMIT = 32 << 20  # bytes of text that merges are learned from at most; a longer text gives pieces spread evenly over it
_FEWEST, _A_TOKEN = 4 << 20, 4 << 10  # bytes that are enough for any vocabulary, and for each of its tokens
WORDS_LIMIT = 3 << 20  # characters of different words in them; the library keeps about 80 bytes for each


def byte_level_json(vocab: dict[str, int], merges: list[list[str]], *, use_regex: bool) -> str:
    """A Hugging Face JSON of byte-level BPE; `use_regex` cuts the text with GPT-2's pattern first."""
    level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model |= {"vocab": vocab, "merges": merges}
    return hugging_face_json(model, level | {"use_regex": use_regex}, level | {"use_regex": True})


class ByteTokenizer:
    """Bytes as tokens: id n is byte n."""

    settings: tuple[str, ...] = ()
    edition = 1
    name = "byte"
    vocab_size = 256

    @classmethod
    def build(cls, config: DataConfig, text: TrainingText) -> Self:
        """The same for every text."""
        return cls()

    def encode(self, text: str) -> Ids:
        """The bytes of the text's UTF-8."""
        return np.frombuffer(encoded(text), np.uint8).astype(np.uint32)

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[NarrowIds]:
        """Ids piece by piece."""
        return (np.frombuffer(encoded(piece), np.uint8) for piece in pieces)

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of `ids`; bytes that are not (yet) UTF-8 become U+FFFD."""
        return checked_ids(ids, self.vocab_size).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def token_bytes(self) -> list[bytes]:
        """Each byte."""
        return [bytes([byte]) for byte in range(256)]

    def to_json(self) -> str:
        """A Hugging Face JSON: byte-level BPE without merges."""
        return byte_level_json({CHARACTER_OF_BYTE[byte]: byte for byte in range(256)}, [], use_regex=False)


class BPETokenizer(LibraryTokenizer):
    """Byte pair encoding learned from the text."""

    settings = ("vocab_size", "min_pair_freq")
    edition = 2  # 1 learned from 32 MiB of text whatever the vocabulary

    @classmethod
    def build(cls, config: DataConfig, text: TrainingText) -> Self:
        """Learn merges until the vocabulary has `vocab_size` tokens or no pair occurs `min_pair_freq` times."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            min_frequency=config.min_pair_freq,
            initial_alphabet=sorted(CHARACTER_OF_BYTE.values()),  # all 256, so that every text can be encoded
            show_progress=False,
        )
        with library_errors("the bpe tokenizer could not be learned"):
            backend.train_from_iterator(_sample(text, learned_from(config.vocab_size)), trainer)
        model = json.loads(backend.to_str())["model"]
        token_of_id = {i: token for token, i in model["vocab"].items()}
        token_bytes = [bytes_of(token_of_id[i]) or b"" for i in range(len(token_of_id))]
        return cls(byte_level_json(model["vocab"], model["merges"], use_regex=True), token_bytes, "bpe")

    def smaller(self, vocab_size: int) -> Self:
        """What would have been learned for a smaller vocabulary: the merges that came first."""
        model = json.loads(self.to_json())["model"]
        vocab = {token: i for token, i in model["vocab"].items() if i < vocab_size}
        merges = model["merges"][: max(0, len(vocab) - 256)]
        return type(self)(byte_level_json(vocab, merges, use_regex=True), self.token_bytes()[: len(vocab)], "bpe")


def learned_from(vocab_size: int) -> int:
    """Bytes of text that a vocabulary is learned from at most."""
    return min(LEARN_LIMIT, max(_FEWEST, _A_TOKEN * vocab_size))


def _sample(text: TrainingText, limit: int) -> Iterator[str]:
    """What merges are learned from: the training text within `limit` and WORDS_LIMIT."""
    stride = max(1, -(-text.train_bytes // limit))
    words: set[str] = set()
    size = 0
    for segment in islice(segments(text.train_text()), 0, None, stride):
        yield segment
        new = set(segment.split()) - words
        words |= new
        size += sum(map(len, new))
        if size > WORDS_LIMIT:
            return
