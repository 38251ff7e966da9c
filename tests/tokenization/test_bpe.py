"""Byte pair encoding learned here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest

from minigpt_cli.config import DataConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.tokenization import bpe
from minigpt_cli.tokenization.bpe import BPETokenizer, ByteTokenizer
from minigpt_cli.tokenization.bytelevel import CHARACTER_OF_BYTE, bytes_of
from minigpt_cli.tokenization.library import library_errors


class Pieces:
    """A corpus for learning."""

    alphabet = ByteTokenizer().encode("")

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.given = 0
        self.train_bytes = sum(len(piece.encode()) for piece in pieces)

    def train_text(self) -> Iterator[str]:
        for piece in self.pieces:
            self.given += 1
            yield piece


def naive_first_merges(text: str, n: int) -> list[bytes]:
    """The first merges of byte pair encoding by the book, on words cut before spaces."""
    words = [[bytes([b]) for b in word.encode()] for word in re.findall(r" ?[^ ]+", text)]
    made = []
    for _ in range(n):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = max(pairs.values())
        (left, right), *others = [pair for pair, count in pairs.items() if count == best]
        assert not others, "the example must have no ties"
        made.append(left + right)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (left, right):
                    word[i : i + 2] = [left + right]
                i += 1
    return made


def test_merges_are_those_of_the_textbook() -> None:
    text = "ababab cd" + " abab" * 3 + " cd" * 9 + " xcd" + " ab" * 5 + " ef" * 2
    expected = naive_first_merges(text, 3)
    tokenizer = BPETokenizer.build(DataConfig(vocab_size=259), Pieces(text))
    assert tokenizer.token_bytes()[256:] == expected


def test_rare_pairs_are_not_merged() -> None:
    text = "xy xy xy zw"
    assert BPETokenizer.build(DataConfig(vocab_size=400, min_pair_freq=4), Pieces(text)).vocab_size == 256
    learned = BPETokenizer.build(DataConfig(vocab_size=400, min_pair_freq=3), Pieces(text)).token_bytes()[256:]
    assert b"xy" in learned
    assert b"zw" not in learned


def test_learning_is_repeatable() -> None:
    text = "the quick brown fox jumps over the lazy dog " * 30
    made = [BPETokenizer.build(DataConfig(vocab_size=300), Pieces(*parts)).to_json() for parts in ([text], [text[:100], text[100:]])]
    assert made[0] == made[1]


@pytest.mark.parametrize("size", [256, 270, 300, 400])
def test_a_smaller_vocabulary_is_what_would_have_been_learned(size: int) -> None:
    pieces = Pieces("the quick brown fox jumps over the lazy dog and the quicker dogs jump back " * 30)
    large, learned = (BPETokenizer.build(DataConfig(vocab_size=max(257, n)), pieces) for n in (320, size))
    small = large.smaller(size)
    assert small.vocab_size == min(size, large.vocab_size)
    assert small.decode(small.encode("the dogs")) == "the dogs"
    if size >= 257:
        assert small.token_bytes() == learned.token_bytes()[: small.vocab_size]


def test_a_long_text_is_sampled_evenly() -> None:
    corpus = Pieces(*(f"word{n} " * 10_000 for n in range(10)))
    sample = list(bpe._sample(corpus, 1 << 17))
    assert 0 < sum(map(len, sample)) <= 1 << 17
    assert corpus.given == 10  # to the end


def test_a_text_of_ever_new_words_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "WORDS_LIMIT", 100_000)
    corpus = Pieces(*(" ".join(f"{n}x{m}" for m in range(10_000)) for n in range(20)))
    assert sum(map(len, bpe._sample(corpus, bpe.LEARN_LIMIT))) < 400_000
    assert corpus.given < 20


def test_a_larger_vocabulary_is_learned_from_more_text_within_a_limit() -> None:
    amounts = [bpe.learned_from(size) for size in (257, 1024, 2048, 8192, 100_000)]
    assert amounts == sorted(amounts)
    assert amounts[0] == amounts[1] < amounts[2] < amounts[3] == amounts[4] == bpe.LEARN_LIMIT


def test_every_byte_has_its_character() -> None:
    assert sorted(CHARACTER_OF_BYTE) == list(range(256))
    assert len(set(CHARACTER_OF_BYTE.values())) == 256
    assert bytes_of("".join(CHARACTER_OF_BYTE[b] for b in range(256))) == bytes(range(256))
    assert bytes_of("日") is None


def test_half_a_character_decodes_to_the_replacement() -> None:
    assert ByteTokenizer().decode([0xE6, 0x97]) == "\ufffd"


def test_what_the_library_raises_becomes_one_line() -> None:
    with pytest.raises(UsageError, match=r"^doing: went wrong$"), library_errors("doing"):
        raise ValueError("went\nwrong")
    with pytest.raises(KeyboardInterrupt), library_errors("doing"):
        raise KeyboardInterrupt
