"""minigpt tokenize, as typed: files, JSON, pieces, and one line for what cannot be done."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TEXT = "The cat sat on the mat — naïve 日本.\n" * 40


@pytest.fixture(autouse=True)
def _text(home: Path) -> None:
    (home / "text.txt").write_text(TEXT, encoding="utf-8")


def test_json_is_what_the_command_line_promises(cli: Any) -> None:
    done = cli("tokenize", "text.txt", "--test-frac", "0.05", "--json")
    assert done.code == 0
    assert done.err == ""
    found = json.loads(done.out)
    assert list(found) == [
        "out",
        "tokenizer",
        "vocab_size",
        "chars",
        "bytes",
        "tokens",
        "chars_per_token",
        "sha256",
        "leak",
        "n_documents",
        "documents",
        "duplicates",
        "alphabet",
        "longest_document",
        "skipped",
        "preview",
    ]
    assert found["tokenizer"] == "char"
    assert found["vocab_size"] == len(set(TEXT))
    assert (found["chars"], found["bytes"]) == (len(TEXT), len(TEXT.encode()))
    assert sum(found["tokens"].values()) == len(TEXT)
    assert list(found["tokens"]) == ["train", "val", "test"]
    assert found["chars_per_token"] == 1.0
    assert found["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert sorted(os.listdir(found["out"])) == ["dataset.json", "test.bin", "tokenizer.json", "train.bin", "val.bin"]


def test_out_holds_the_token_files(cli: Any) -> None:
    done = cli("tokenize", "text.txt", "--tokenizer", "byte", "--out", "tokens", "--train-frac", "0.5")
    assert done.code == 0
    assert "written to  tokens" in done.out
    whole = [np.fromfile(f"tokens/{name}.bin", np.uint16).astype(np.uint8).tobytes() for name in ("train", "val")]
    assert b"".join(whole).decode() == TEXT
    assert not Path("data").exists()


def test_show_prints_pieces_with_their_ids(cli: Any) -> None:
    done = cli("tokenize", "text.txt", "--tokenizer", "byte", "--show", "a\n日")
    lines = done.out.splitlines()[-5:]
    assert [line.split(None, 1) for line in lines] == [
        ["97", "'a'"],
        ["10", r"'\n'"],
        ["230", r"b'\xe6'"],
        ["151", r"b'\x97'"],
        ["165", r"b'\xa5'"],
    ]
    pieces = json.loads(cli("tokenize", "text.txt", "--show", "at", "--json").out)["pieces"]
    alphabet = sorted(set(TEXT))
    assert pieces == [{"id": alphabet.index(c), "text": c} for c in "at"]
    assert json.loads(cli("tokenize", "text.txt", "--show", "", "--json").out)["pieces"] == []


def test_the_preview_says_what_the_data_hold(cli: Any) -> None:
    Path("names.txt").write_text("".join(f"{'anna' if i % 2 else 'müller'}{i % 40}\n" for i in range(80)), encoding="utf-8")
    done = cli("tokenize", "names.txt", "--documents", "lines", "--json")
    found = json.loads(done.out)["preview"]
    assert sum(found["documents"].values()) == 80
    assert (found["shortest"], found["longest"]) == (5, 8)
    assert (found["shortest_name"], found["longest_name"]) == ("names.txt:2", "names.txt:11")
    assert found["alphabet"] == len(set("annamüller0123456789"))
    assert found["scripts"] == {"Latin": 1.0}
    assert all("<|endoftext|>" in window for window in found["windows"])
    shown = cli("tokenize", "names.txt", "--documents", "lines")
    assert "80 documents, split by a hash of their text" in shown.err
    assert "40 documents repeat another" in shown.err
    assert "alphabet" in shown.out
    assert "; 5 (names.txt:2) to 8 characters (names.txt:11)" in shown.out


def test_a_document_that_is_cut_has_its_whole_length_in_the_preview(cli: Any) -> None:
    Path("two").mkdir()
    Path("two/a.txt").write_text("a short one. " * 100)
    Path("two/b.txt").write_text("a longer one. " * 200)
    found = json.loads(cli("tokenize", "two", "--json").out)["preview"]
    assert (found["shortest"], found["longest"]) == (1300, 2800)


def test_validation_text_that_stands_in_the_training_text_is_shown(cli: Any) -> None:
    assert json.loads(cli("tokenize", "text.txt", "--json").out)["leak"] == 1.0  # one sentence, again and again
    (line,) = [line for line in cli("tokenize", "text.txt").out.splitlines() if line.startswith("leak")]
    assert line.split(maxsplit=1)[1].startswith("100.0% of the validation text stands word for word in the training text")


def test_a_character_alphabet_with_many_rare_ones_is_advised_against(cli: Any) -> None:
    Path("han.txt").write_text("".join(chr(0x4E00 + i % 3000) for i in range(9000)), encoding="utf-8")
    assert "--tokenizer bpe or byte would learn them better" in cli("tokenize", "han.txt").err
    assert "would learn them better" not in cli("tokenize", "han.txt", "--tokenizer", "byte").err


def test_several_sources_are_documents(cli: Any) -> None:
    Path("more").mkdir()
    Path("more/b.txt").write_text("xyz")
    found = json.loads(cli("tokenize", "text.txt", "more", "--json").out)
    assert found["sha256"] == hashlib.sha256(f"{TEXT}<|endoftext|>xyz<|endoftext|>".encode()).hexdigest()


def test_without_a_source_the_default_is_taken(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "text        python-docs: " in cli("tokenize").out
    monkeypatch.setenv("MINIGPT_SOURCE", "text.txt")
    assert "text        text.txt: " in cli("tokenize").out
    monkeypatch.delenv("MINIGPT_SOURCE")
    Path("data/input.txt").write_text(TEXT, encoding="utf-8")
    assert "text        data/input.txt: " in cli("tokenize").out


def test_standard_input(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    done = cli("tokenize", "-", "--ascii-only", "--json")
    assert json.loads(done.out)["chars"] == len(TEXT.encode("ascii", "ignore"))


def test_conversations_are_tokenized_as_train_would(cli: Any) -> None:
    Path("chats.jsonl").write_text('{"prompt": "hi", "completion": "ho"}\n' * 20)
    found = json.loads(cli("tokenize", "chats.jsonl", "--json").out)
    assert "-chat-" in found["out"]


def test_bpe_says_when_the_text_has_too_few_pairs(cli: Any) -> None:
    done = cli("tokenize", "text.txt", "--tokenizer", "bpe", "--vocab-size", "5000")
    assert done.code == 0
    assert "fewer than --vocab-size 5000" in done.err
    assert "fewer" not in cli("tokenize", "text.txt", "--tokenizer", "bpe", "--vocab-size", "260").err


def test_progress_goes_to_stderr(cli: Any) -> None:
    done = cli("tokenize", "text.txt")
    assert "encoding the text" in done.err
    assert "encoding" not in done.out


BAD = [
    (["none.txt"], "no file or folder none.txt"),
    (["dangling"], "dangling is a link to nowhere.txt, which is not there"),
    (["tinyshakespear"], "did you mean 'tinyshakespeare'"),
    (["text.txt", "--tokenizer", "cahr"], "did you mean 'char'"),
    (["text.txt", "--tokenizer", "none.json"], "no tokenizer file none.json"),
    (["text.txt", "--tokenizer", "text.txt"], "not valid JSON"),
    (["text.txt", "--show", "Ω"], "does not know 'Ω' (U+03A9)"),
    (["text.txt", "--out", "."], "holds other files"),
    (["text.txt", "--out", "text.txt"], "is a file"),
    (["text.txt", "--vocab-size", "10"], "--vocab-size"),
    (["text.txt", "--train-frac", "nan"], "--train-frac"),
    (["text.txt", "--train-frac", "0.9", "--test-frac", "0.2"], "leave nothing to validate on"),
    (["empty.txt"], "empty.txt is empty"),
    (["one.txt"], "one.txt has 1 character"),
    (["bad.txt"], "bad.txt is not UTF-8 at byte 3"),
    (["folder"], "the folder folder has no text files"),
    (["-", "-"], "only once"),
    (["--nonsense"], "--nonsense"),
]


@pytest.mark.parametrize(("arguments", "complaint"), BAD)
def test_bad_input_is_exit_2_one_line_and_nothing_left_behind(arguments: list[str], complaint: str, cli: Any) -> None:
    Path("empty.txt").touch()
    Path("one.txt").write_text("a")
    Path("dangling").symlink_to("nowhere.txt")
    Path("bad.txt").write_bytes(b"abc\xff")
    Path("folder").mkdir()
    before = sorted(str(path) for path in Path().rglob("*"))
    done = cli("tokenize", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert complaint in done.err.splitlines()[-1]
    assert sum(line.startswith("Error: ") for line in done.err.splitlines()) == 1
    left = [path for path in Path().rglob("*") if str(path) not in before]
    assert [path for path in left if "--show" not in arguments] == []


def test_the_preview_counts_kinds_duplicates_and_what_was_skipped(cli: Any) -> None:
    Path("mixed").mkdir()
    Path("mixed/a.txt").write_text("x" * 300)
    Path("mixed/b.csv").write_text("text\n" + "".join(f"{'y' * 96} {i // 2}\n" for i in range(10)))
    Path("mixed/c.bin").write_bytes(bytes(range(256)) * 4)
    done = cli("tokenize", "mixed", "--json")
    found = json.loads(done.out)
    assert found["preview"]["kinds"] == {"CSV": pytest.approx(980 / 1280), "text": pytest.approx(300 / 1280)}
    assert (found["documents"], found["duplicates"], found["longest_document"]) == (11, 5, 300)
    assert found["skipped"] == {"binary data, not text": 1}
    assert found["alphabet"] == found["preview"]["alphabet"] == 8
    shown = cli("tokenize", "mixed").out
    assert "kinds       CSV 77%, text 23%" in shown
    assert "duplicates  5 documents repeat another" in shown
    assert "kinds" not in cli("tokenize", "text.txt").out
    again = cli("tokenize", found["out"], "--json")  # token files know it too
    assert json.loads(again.out)["duplicates"] == 5


def test_a_validation_split_of_short_documents_alone_is_warned_of(cli: Any) -> None:
    Path("uneven.jsonl").write_text("".join(json.dumps({"text": f"{i} " * (5000 if i == 3 else 1)}) + "\n" for i in range(60)))
    assert "% of the characters are to validate on, since the documents differ in length" in cli("tokenize", "uneven.jsonl").err
    Path("even.jsonl").write_text("".join(json.dumps({"text": f"{i:04}"}) + "\n" for i in range(60)))
    done = cli("tokenize", "even.jsonl")
    assert "differ in length" not in done.err
    assert "; 4 characters each" in done.out


@pytest.mark.parametrize("grouped", ["file", "folder"])
def test_a_validation_split_of_one_author_is_warned_of(cli: Any, grouped: str) -> None:
    rows = [json.dumps({"prompt": f"q{i}", "completion": "a"}) + "\n" for i in range(40)]
    for author in ("ann", "bob"):
        Path(author).mkdir()
        part = rows[:20] if author == "ann" else rows[20:]
        for number, some in enumerate([part] if grouped == "file" else [part[:18], part[18:19], part[19:]]):
            Path(author, f"{number}.jsonl").write_text("".join(some))
    where = "bob/0.jsonl" if grouped == "file" else "bob"
    err = cli("tokenize", "ann", "bob").err
    assert f"nearly all of the validation text is from {where}, and the training text has others too" in err
    assert "nearly all" not in cli("tokenize", "ann").err


@pytest.mark.parametrize(
    ("asked", "made"),
    [("--tokenizer char", "tokenizer bpe"), ("--train-frac 0.9", "train_frac 0.5"), ("--no-lowercase", "lowercase True")],
)
def test_a_setting_typed_for_token_files_is_theirs_or_an_error_though_it_is_the_usual_one(cli: Any, asked: str, made: str) -> None:
    assert cli("tokenize", "text.txt", "--tokenizer", "bpe", "--train-frac", "0.5", "--lowercase", "--out", "t").code == 0
    for command in (["tokenize"], ["train", "--dry-run"], ["train", "--preset", "tiny-run"]):
        done = cli(*command, "t", *asked.split())
        assert done.code == 2
        assert done.err == f"Error: t holds token files made with {made}: leave out {asked}, or give the text itself\n"
    assert cli("tokenize", "t", "--tokenizer", "bpe").code == 0
