"""SentencePiece vocabularies: the ids of the library, and every character given back, or refused by name."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from harness.vocabularies import BPE, KEEPS, Piece, field, sentencepiece_model

from minigpt_cli.errors import UsageError
from minigpt_cli.tokenization.contract import added_tokens
from minigpt_cli.tokenization.pretrained import load_tokenizer

STRANGE = [
    "né à Zürich, don't — 漢字 🙂 1234 .", "two  spaces   here ", "日本語のテキスト", "tab\there", "aaaaaaaa aaaa aa a", " leading",
    "trailing ", "\u200bzero", "ＦＵＬＬ ﬁ", "a<q>b th--- the", "e\u0301 é",
]  # fmt: skip
LINES = [line for text in list(topics.values())[:40] for line in text.split("\n") if line.strip()]
Train = Callable[..., tuple[Any, Path]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """train(kind, **settings): the library's processor, and the file of its vocabulary."""
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")

    def make(kind: str, **settings: Any) -> tuple[Any, Path]:
        written = io.BytesIO()
        given = {"vocab_size": 500, "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
        sentences = iter(LINES[:600] + STRANGE)
        library.SentencePieceTrainer.train(
            sentence_iterator=sentences, model_writer=written, model_type=kind, minloglevel=2, hard_vocab_limit=False, **(given | settings)
        )
        path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
        path.write_bytes(written.getvalue())
        return library.SentencePieceProcessor(model_proto=written.getvalue()), path

    return make


def mixed(n: int) -> list[str]:
    """Lines of prose and tables, of many scripts, and of letters in any order."""
    drawn = random.Random(0)
    letters = "ab c  déé漢字 xyzth e.,\t🙂"
    shuffled = ["".join(drawn.choices(letters, k=drawn.randint(1, 60))) for _ in range(n // 4)]
    return [*LINES[: n - len(shuffled)], *STRANGE, *shuffled]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"add_dummy_prefix": False}, {"user_defined_symbols": ["<q>", "th", "---"]}, {"split_by_whitespace": False, "vocab_size": 900}],
    ids=["plain", "no prefix", "symbols", "across spaces"],
)
def test_ids_are_those_of_the_library_and_give_the_text_back(train: Train, kind: str, settings: dict[str, Any]) -> None:
    library, path = train(kind, **settings)
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == library.vocab_size()
    prefix = " " if settings.get("add_dummy_prefix", True) else ""  # the library writes it before each text
    lines = mixed(1200)
    assert len(lines) >= 1200
    ties = 0
    for line in lines:
        ids, theirs = tokenizer.encode(prefix + line).tolist(), library.encode(line)
        assert tokenizer.decode(ids) == prefix + line
        if ids != theirs:  # divisions of one score, as of a line of dashes: the library adds in 32 bits, whose rounding chooses
            ties += 1
            assert kind == "unigram"
            assert sum(map(library.get_score, ids)) == pytest.approx(sum(map(library.get_score, theirs)), rel=1e-6)
    assert ties < len(lines) / 100


def test_a_text_of_many_lines_is_encoded_as_one(train: Train) -> None:
    library, path = train("bpe")
    text = " " + "\n".join(LINES[:300])
    assert load_tokenizer(path).encode(text).tolist() == library.encode(text[1:])


def test_without_bytes_unknown_characters_are_named(train: Train) -> None:
    library, path = train("unigram", byte_fallback=False, character_coverage=0.98)
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode(" of the list").tolist() == library.encode("of the list")
    with pytest.raises(UsageError, match="漢"):
        tokenizer.encode("漢")


def test_control_pieces_are_added_tokens(train: Train) -> None:
    _, path = train("bpe")
    tokenizer = load_tokenizer(path)
    assert added_tokens(tokenizer) == {"<s>": 1, "</s>": 2}
    assert tokenizer.encode("</s>").tolist() == [2]


def test_its_json_gives_the_same_ids(train: Train) -> None:
    tokenizer = load_tokenizer(train("unigram")[1])
    again = load_tokenizer(tokenizer.to_json())
    assert all(again.encode(line).tolist() == tokenizer.encode(line).tolist() for line in STRANGE)


# What is refused


PIECES = [("<unk>", 0.0, 2), ("▁", -1.0, 1), ("a", -2.0, 1), ("b", -3.0, 1), ("ab", -4.0, 1), ("▁a", -5.0, 1)]


def model(pieces: list[Piece] = PIECES, trainer: bytes = BPE, rest: bytes = KEEPS) -> bytes:
    return sentencepiece_model(pieces, trainer, rest)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], Any]:
    def load(data: bytes) -> Any:
        (tmp_path / "x.model").write_bytes(data)
        return load_tokenizer(tmp_path / "x.model")

    return load


def test_a_small_vocabulary_is_read_without_any_library(opened: Callable[[bytes], Any]) -> None:
    assert opened(model()).encode("ab a").tolist() == [4, 5]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "is not a SentencePiece model: it has no pieces"),
        (b"{}", "is not a SentencePiece model"),
        (b"\x0a\xff\xff\xff\xff\x0f", "is not a SentencePiece model: a field is cut off"),
        (model(rest=b""), "removes repeated spaces, which changes the text"),
        (model(rest=field(3, field(1, b"nmt_nfkc") + field(2, b"rules") + field(4, 0))), "its normalization 'nmt_nfkc' changes the text"),
        (model(rest=KEEPS + field(5, field(2, b"rules"))), "changes the text"),
        (model(trainer=field(3, 3)), "it is made of words: only unigram and BPE"),
        (model(trainer=BPE + field(24, 1)), "marks spaces at the end of words"),
        (model(trainer=BPE + field(35, 1)), "lacks pieces for some of them"),
        (model(rest=field(3, field(4, 0) + field(5, 0))), "marks spaces at the end of words, or not at all"),
        (model([*PIECES, ("c", -6.0, 5)]), "1 pieces that are switched off"),
        (model([*PIECES, ("é", -6.0, 2)]), "2 pieces for unknown characters"),
        (model(PIECES[1:]), "0 pieces for unknown characters"),
        (model([*PIECES, ("ab", -6.0, 1)]), "two pieces are the same"),
        (model([*PIECES, ("ax", -6.0, 1)]), "its piece 'ax' has a character that is not a piece itself"),
        (model([*PIECES, ("ba", -5.0, 1)]), "two pieces have the same score -5"),
        (model([*PIECES, ("", -6.0, 1)]), "a piece is empty"),
        (model([*PIECES, ("ba", float("nan"), 1)]), "the score of a piece is not finite"),
        (model([*PIECES, ("a" * 20_000, -6.0, 1)]), "its pieces are so long"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line(opened: Callable[[bytes], Any], data: bytes, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        opened(data)
    assert complaint in str(caught.value)
    assert "x.model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_is_an_error_of_one_line_or_another_vocabulary(opened: Callable[[bytes], Any]) -> None:
    drawn, whole, errors = random.Random(0), model(), []
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(drawn.randint(1, 3)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        try:
            opened(bytes(data[: drawn.randint(1, len(data))]))
        except UsageError as error:
            errors.append(str(error))
    assert len(errors) > 50
    assert not any("\n" in error for error in errors)
