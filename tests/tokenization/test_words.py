"""Words that are remembered give the ids of the whole text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from minigpt_cli.errors import UsageError
from minigpt_cli.storage import native_build
from minigpt_cli.tokenization import words
from minigpt_cli.tokenization.library import LibraryTokenizer
from minigpt_cli.tokenization.pretrained import load_tokenizer, with_added_tokens

SPACES = " \n\t\r\x0b\x0c\x1c\x1d\x85\xa0\u180e\u2003\u200b\u2028\u3000"
OTHERS = "\ufeff'stre ldab19!?(),_<|>-é×ßƵώЯ·’”\u0301日本。，😀\x00"


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> LibraryTokenizer:
    found = load_tokenizer(shared_data / "gpt2")
    assert isinstance(found, LibraryTokenizer)
    return found


@pytest.fixture(params=[(), ("<|end|>", "<|en", "日"), ("'ab", "strex")], ids=["nothing", "marks", "letters"])
def tokenizer(request: pytest.FixtureRequest, gpt2: LibraryTokenizer) -> LibraryTokenizer:
    found = with_added_tokens(gpt2, request.param)
    assert isinstance(found, LibraryTokenizer)
    return found


def drawn(n: int) -> list[str]:
    draw, parts = random.Random(1), [*SPACES, *OTHERS, *"   ", "<|end|>", "<|en", "'ab", "don't", "word"]
    return ["".join(draw.choices(parts, k=draw.randint(1, 30))) for _ in range(n)]


@pytest.mark.skipif(words.library() is None, reason="nothing can be compiled here")
def test_words_give_the_ids_of_the_library(tokenizer: LibraryTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST", 50)  # forgotten often
    texts = drawn(1500)
    assert tokenizer._words is not None
    assert [tokenizer.encode(text).tolist() for text in texts] == tokenizer._encode_batch(texts)


@pytest.mark.skipif(words.library() is None, reason="nothing can be compiled here")
def test_each_different_word_is_encoded_once(gpt2: LibraryTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    tokenizer = with_added_tokens(gpt2, ("<|end|>",))
    assert isinstance(tokenizer, LibraryTokenizer)
    checked = tokenizer._checked
    monkeypatch.setattr(tokenizer, "_checked", lambda texts: asked.extend(texts) or checked(texts))
    tokenizer.encode("Arma, arma virumque (cano) don't.<|end|>Arma,\n日本。日本 arma\n" * 3)
    assert asked == ["Arma", ",", " arma", " virumque", " (", "cano", ")", " don", "'t.", "<|end|>", "\n日本", "。", "日本", "\nArma", "\n"]


def test_without_a_compiler_the_ids_are_the_same(gpt2: LibraryTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn(100)
    expected = [gpt2.encode(text).tolist() for text in texts]
    monkeypatch.setenv("MINIGPT_NATIVE", "0")
    for forget in (native_build.forget, words.library.cache_clear):
        forget()
    try:
        plain = load_tokenizer(gpt2.to_json())
        assert isinstance(plain, LibraryTokenizer)
        assert plain._words is None
        assert [plain.encode(text).tolist() for text in texts] == expected
    finally:
        monkeypatch.undo()
        for forget in (native_build.forget, words.library.cache_clear):
            forget()


@pytest.mark.skipif(words.library() is None, reason="nothing can be compiled here")
def test_after_an_error_nothing_wrong_is_remembered(gpt2: LibraryTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(gpt2.to_json())
    assert isinstance(tokenizer, LibraryTokenizer)

    def fail(texts: list[str]) -> list[list[int]]:
        raise UsageError("no")

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "_encode_batch", fail)
        with pytest.raises(UsageError):
            tokenizer.encode("new words")
    assert tokenizer.encode("new words").tolist() == gpt2.encode("new words").tolist()
