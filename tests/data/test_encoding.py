"""From text to token files: cut at characters, cached by content, complete or not there."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.tiny import chats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt_cli import registry
from minigpt_cli.config import DataConfig
from minigpt_cli.data import atomic_folder, encoding, text_reader
from minigpt_cli.data.atomic_folder import Preparing
from minigpt_cli.data.dataset import RECORD, Dataset, open_dataset
from minigpt_cli.data.encoding import prepare, prepared
from minigpt_cli.data.sources import decoding as texts
from minigpt_cli.data.sources.contract import PlainText
from minigpt_cli.data.sources.open_source import open_source
from minigpt_cli.errors import MiniGPTError, RunDamaged, TextTooShort, UsageError
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.pretrained import GPT2_DIR

TEXT = "Lorem ipsum dolor sit amet — naïve 日本語.\r\n" * 30
LEARNED = [name for name in registry.TOKENIZERS if name != "gpt2"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIGPT_DATA_DIR", raising=False)
    monkeypatch.setattr(texts, "BLOCK", 64)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tree(folder: Path = Path()) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def config(source: str | tuple[str, ...] = "text.txt", **settings: Any) -> DataConfig:
    return DataConfig(source=source, **{"vocab_size": 270, **settings})


# What comes out


@pytest.mark.parametrize("tokenizer", LEARNED)
@pytest.mark.parametrize("fracs", [(0.9, 0.0), (0.5, 0.25), (0.333, 0.1)])
def test_splits_are_contiguous_and_cut_at_a_character(tokenizer: str, fracs: tuple[float, float], text: Path) -> None:
    dataset = prepared(config(tokenizer=tokenizer, train_frac=fracs[0], test_frac=fracs[1]))
    a, b = int(len(TEXT) * fracs[0]), len(TEXT) - int(len(TEXT) * fracs[1])
    expected = {"train": TEXT[:a], "val": TEXT[a:b]} | ({"test": TEXT[b:]} if fracs[1] else {})
    assert list(dataset.splits()) == list(expected)
    for name, part in expected.items():
        split = dataset.split(name)
        assert dataset.text(name) == part
        assert (split.n_chars, split.n_bytes, split.sha256) == (len(part), len(part.encode()), sha256(part))
        assert split.tokens.dtype == np.uint16
        assert split.tokens.tolist() == dataset.tokenizer.encode(part).tolist()
    assert (dataset.n_chars, dataset.n_bytes, dataset.sha256) == (len(TEXT), len(TEXT.encode()), sha256(TEXT))
    assert dataset.label == "text.txt"


def test_tinyshakespeare_splits_as_nanogpt_does(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BLOCK", 1 << 18)
    source = str(shared_data / "tinyshakespeare.txt")
    chars = prepared(config(source))
    assert (len(chars.train.tokens), len(chars.val.tokens), chars.tokenizer.vocab_size) == (1_003_854, 111_540, 65)
    monkeypatch.setenv(GPT2_DIR, str(shared_data / "gpt2"))
    words = prepared(config(source, tokenizer="gpt2"))
    assert (len(words.train.tokens), len(words.val.tokens), words.tokenizer.vocab_size) == (301_966, 36_059, 50_257)


def test_a_large_vocabulary_gets_four_bytes_a_token() -> None:
    everything = "".join(map(chr, range(0x20, 0x11000))).encode("utf-8", "ignore").decode()
    Path("all.txt").write_text(everything, encoding="utf-8", newline="")
    dataset = prepared(config("all.txt"))
    assert dataset.tokenizer.vocab_size == len(set(everything)) > 1 << 16
    assert dataset.train.tokens.dtype == np.uint32
    assert dataset.text("train") + dataset.text("val") == everything


def test_char_knows_the_characters_of_every_split() -> None:
    Path("t.txt").write_text("a" * 90 + "b" * 5 + "c" * 5)
    assert prepared(config("t.txt", test_frac=0.05)).tokenizer.vocab_size == 3


def test_bpe_learns_from_the_training_split_alone() -> None:
    Path("one.txt").write_text("ab " * 600 + "xy " * 300)
    Path("two.txt").write_text("ab " * 600 + "zw " * 300)
    made = [prepared(config(f"{name}.txt", tokenizer="bpe", train_frac=0.5)).tokenizer.to_json() for name in ("one", "two")]
    assert made[0] == made[1]
    assert b"xy" not in prepared(config("one.txt", tokenizer="bpe", train_frac=0.5)).tokenizer.token_bytes()


def test_ascii_only_drops_the_rest(text: Path) -> None:
    kept = TEXT.encode("ascii", "ignore").decode()
    dataset = prepared(config(ascii_only=True))
    assert dataset.text("train") + dataset.text("val") == kept
    assert (dataset.n_chars, dataset.sha256) == (len(kept), sha256(kept))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_stretches_without_ascii_do_not_end_the_text(block: int, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BLOCK", block)
    text.write_text("日本語" * 5 + "abcdefghij" + "日本語" * 5 + "k", encoding="utf-8")
    dataset = prepared(config(ascii_only=True, train_frac=0.5))
    assert dataset.text("train") + dataset.text("val") == "abcdefghijk"


def test_a_tokenizer_file_is_used_as_it_is(text: Path) -> None:
    first = prepared(config(tokenizer="bpe"))
    for given_as in (str(first.dir / "tokenizer.json"), str(first.dir)):
        again = prepared(config(tokenizer=given_as))
        assert again.train.tokens.tolist() == first.train.tokens.tolist()
        assert again.dir != first.dir


def test_a_record_says_what_was_made(text: Path) -> None:
    dataset = prepared(config(tokenizer="byte"))
    record = json.loads((dataset.dir / RECORD).read_text())
    assert tree(dataset.dir) == ["dataset.json", "tokenizer.json", "train.bin", "val.bin"]
    assert record["tokenizer"] == "byte"
    assert record["splits"]["train"]["file_sha256"] == hashlib.sha256((dataset.dir / "train.bin").read_bytes()).hexdigest()


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=2, max_size=120), st.sampled_from(LEARNED), st.integers(1, 9))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back_whatever_the_read_size(tmp_path: Path, anything: str, tokenizer: str, block: int) -> None:
    (tmp_path / "any.txt").write_bytes(anything.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "BLOCK", block)
        dataset = prepared(config("any.txt", tokenizer=tokenizer, train_frac=0.5))
    assert dataset.text("train") + dataset.text("val") == anything
    assert dataset.n_chars == len(anything)


@pytest.mark.parametrize("tokenizer", LEARNED)
def test_tokens_do_not_depend_on_how_the_text_was_read(tokenizer: str, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for block in (1, 13, 1 << 20):
        monkeypatch.setattr(texts, "BLOCK", block)
        found.append(prepared(config(tokenizer=tokenizer), Path(f"data{block}")))
    assert len({dataset.dir.name for dataset in found}) == 1
    assert len({(dataset.dir / "train.bin").read_bytes() for dataset in found}) == 1


def test_progress_is_told(text: Path) -> None:
    seen: list[Preparing] = []
    prepared(config(tokenizer="bpe"), on_progress=seen.append)
    phases = list(dict.fromkeys(step.phase for step in seen))
    assert phases[0] == "reading"
    assert phases[-1] == "encoding"
    assert seen[-1] == Preparing(len(TEXT.encode()), len(TEXT.encode()), "encoding")
    assert all(0 <= step.done_bytes <= (step.total_bytes or 1 << 40) for step in seen)


class Slow(PlainText):
    """A text that has to be fetched."""

    label = "slow"

    def fetch(self, report: Any) -> None:
        report(3, 6)

    def chunks(self) -> Iterator[str]:
        yield TEXT


def test_downloads_and_learning_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = []

    class Reading(CharTokenizer):
        @classmethod
        def build(cls, config: DataConfig, corpus: Any) -> Any:
            learned.append("".join(corpus.train_text()))
            return super().build(config, corpus)

    monkeypatch.setattr(registry, "load", lambda kind, name: Reading)
    seen: list[Preparing] = []
    prepared(config(""), on_progress=seen.append, source=Slow())
    train = TEXT[: int(len(TEXT) * 0.9)]
    assert learned == [train]
    assert seen[0] == Preparing(3, 6, "downloading")
    total = len(TEXT.encode()) * len(train) // len(TEXT)
    assert Preparing(len(train.encode()), total, "learning tokens from") in seen


# Where it goes


def test_the_same_text_is_not_cut_twice(text: Path) -> None:
    first = prepared(config())
    before = {path: path.stat().st_mtime_ns for path in first.dir.iterdir()}
    seen: list[Preparing] = []
    second = prepared(config(), on_progress=seen.append)
    assert second.dir == first.dir
    assert {path: path.stat().st_mtime_ns for path in first.dir.iterdir()} == before
    assert {step.phase for step in seen} == {"reading"}


def test_a_changed_text_or_setting_is_never_given_old_tokens(text: Path) -> None:
    folders = {prepared(config()).dir}
    stat = text.stat()
    text.write_bytes(TEXT.replace("Lorem", "Loren", 1).encode())
    os.utime(text, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    changed = prepared(config())
    assert changed.text("train").startswith("Loren")
    folders.add(changed.dir)
    for other in ({"train_frac": 0.8}, {"test_frac": 0.05}, {"tokenizer": "byte"}, {"tokenizer": "bpe"}, {"ascii_only": True}):
        folders.add(prepared(config(**other)).dir)
    for other in ({"vocab_size": 280}, {"min_pair_freq": 3}):
        folders.add(prepared(config(tokenizer="bpe", **other)).dir)
    assert len(folders) == 9


def test_settings_that_change_nothing_share_the_files(text: Path) -> None:
    assert prepared(config(vocab_size=999, min_pair_freq=7, sampling="random")).dir == prepared(config()).dir


def test_a_damaged_folder_is_built_again(text: Path) -> None:
    dataset = prepared(config())
    good = (dataset.dir / "train.bin").read_bytes()
    for damage in (good[:-2], b"\x01" + good[1:], b""):
        (dataset.dir / "train.bin").write_bytes(damage)
        assert prepared(config()).dir == dataset.dir
        assert (dataset.dir / "train.bin").read_bytes() == good
    (dataset.dir / RECORD).unlink()
    prepared(config())
    assert (dataset.dir / RECORD).is_file()
    assert os.listdir("data") == [dataset.dir.name]


def test_a_folder_of_ones_own(text: Path) -> None:
    out = Path("deep/tokens")
    first = prepared(config(), out=out)
    assert first.dir == out
    assert prepared(config(), out=out).dir == out
    assert prepared(config(tokenizer="byte"), out=out).tokenizer.name == "byte"  # ours: replaced
    assert sorted(os.listdir("deep")) == ["tokens"]
    assert not Path("data").exists()


def test_foreign_folders_are_not_replaced(text: Path) -> None:
    Path("mine").mkdir()
    Path("mine/photo.jpg").write_text("!")
    for out, complaint in (("mine", "holds other files"), ("text.txt", "is a file"), ("mine/photo.jpg", "is a file")):
        with pytest.raises(UsageError, match=complaint):
            prepared(config(), out=Path(out))
    assert tree() == ["mine", "mine/photo.jpg", "text.txt"]
    (prepared(config(), out=Path("tokens")).dir / "notes.md").write_text("!")
    with pytest.raises(UsageError, match="holds other files"):
        prepared(config(tokenizer="byte"), out=Path("tokens"))
    Path("empty").mkdir()
    assert prepared(config(), out=Path("empty")).dir == Path("empty")


def test_names_of_folders_are_plain(text: Path) -> None:
    odd = Path("…/we ird\x1b[31m (1)")
    odd.parent.mkdir()
    odd.write_bytes(TEXT.encode())
    assert prepared(config(str(odd))).dir.name.startswith("we-ird-31m-1-char-")
    assert prepared(config(("text.txt", str(odd)))).dir.name.startswith("text-and-1-more-char-")


def test_standard_input_is_kept_while_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
        dataset = prepared(config("-", tokenizer="bpe"))
        assert dataset.text("train") + dataset.text("val") == TEXT
        assert dataset.label == "-"
        assert dataset.dir.name.startswith("stdin-bpe-")
    assert sorted(os.listdir("data")) == [dataset.dir.name]


def test_several_sources_become_one_text(text: Path) -> None:
    dataset = prepared(config(), source=open_source(["text.txt", "text.txt"]))
    assert dataset.n_chars == 2 * len(TEXT)


# What is refused leaves nothing behind


@pytest.mark.parametrize(
    ("content", "changes", "complaint"),
    [
        (b"", {}, "text.txt is empty"),
        (b"a", {}, "has 1 character, which leaves none for the train split"),
        ("日".encode(), {"ascii_only": True}, "has no ASCII character"),
        (b"ab", {"train_frac": 0.6, "test_frac": 0.3}, "has 2 characters, which leaves none for the test split"),
    ],
)
def test_texts_too_short_to_cut(content: bytes, changes: dict[str, Any], complaint: str, text: Path) -> None:
    text.write_bytes(content)
    with pytest.raises(TextTooShort, match=complaint):
        prepared(config(**changes))
    assert tree() == ["text.txt"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tokenizer": "chr"}, "unknown tokenizer 'chr': did you mean 'char'"),
        ({"tokenizer": "none.json"}, "no tokenizer file none.json"),
        ({"tokenizer": "text.txt"}, "tokenizer text.txt: .*not valid JSON"),
        ({"source": "none.txt"}, "no file or folder none.txt"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], complaint: str, text: Path) -> None:
    with pytest.raises(UsageError, match=complaint):
        prepared(config(**changes))
    assert tree() == ["text.txt"]


def test_invalid_utf8_is_found_wherever_it_is(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text.write_bytes(TEXT.encode() + b"\xff")
    for source in ("text.txt", "-"):
        for changes in ({}, {"ascii_only": True}):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.read_bytes())))
            with pytest.raises(UsageError, match=f"at byte {len(TEXT.encode())} "):
                prepared(config(source, **changes))
    assert tree() == ["text.txt"]


def test_an_unknown_character_of_a_tokenizer_file_leaves_nothing(text: Path) -> None:
    Path("tokenizer.json").write_text(CharTokenizer([ord("L")]).to_json())
    with pytest.raises(UsageError, match="does not know"):
        prepared(config(tokenizer="tokenizer.json"))
    assert tree() == ["text.txt", "tokenizer.json"]


def test_a_file_that_vanishes_is_one_line(text: Path) -> None:
    steps = prepare(config(), source=open_source("text.txt"))
    text.unlink()
    with pytest.raises(MiniGPTError, match=r"cannot read the text .*text\.txt: No such file"):
        next(steps)


@dataclass
class Changing(PlainText):
    """A text that is another one each time it is read."""

    readings: list[str]
    label: str = "changing"

    def chunks(self) -> Iterator[str]:
        yield self.readings.pop(0)


@pytest.mark.parametrize("second", [TEXT + "!", TEXT[:-1], TEXT.replace("o", "u"), ""])
def test_a_text_that_changes_between_two_readings_is_refused(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_reader, "KEPT", 0)
    with pytest.raises(MiniGPTError, match="changed while it was read"):
        prepared(config(tokenizer="byte"), source=Changing([TEXT, second]))
    assert tree() == []


def test_a_text_that_is_not_large_is_read_once_and_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    once = prepared(config(tokenizer="bpe"), Path("once"), source=Changing([TEXT]))
    monkeypatch.setattr(text_reader, "KEPT", len(TEXT))  # it needs twice as much
    again = prepared(config(tokenizer="bpe"), Path("again"), source=Changing([TEXT] * 3))
    assert [split.path.read_bytes() for split in once.splits().values()] == [split.path.read_bytes() for split in again.splits().values()]
    assert once.sha256 == again.sha256


@pytest.mark.parametrize("number", range(1, 5))
def test_a_full_disk_leaves_nothing(number: int, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th opening for writing meets the end of the disk, which shows when bytes are written."""
    opened = Path.open
    count = [0]

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode:
            count[0] += 1
            if count[0] == number:
                return Full()
        return opened(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    try:
        prepared(config("-", test_frac=0.05))
    except MiniGPTError as error:
        message = str(error)
    else:
        message = "the disk is full" if count[0] < number else "finished on a full disk"
    assert "the disk is full" in message
    monkeypatch.undo()
    assert [path for path in tree() if atomic_folder.UNFINISHED in path or path.endswith(".tmp")] == []


def test_an_abandoned_preparation_leaves_nothing(text: Path) -> None:
    for stop in range(1, 200, 7):
        steps = prepare(config(tokenizer="byte"))
        try:
            for _ in range(stop):
                next(steps)
        except StopIteration:
            break
        steps.close()
        assert tree() == ["text.txt"]
    else:
        pytest.fail("the preparation never ended")


def test_an_interrupt_while_learning_leaves_nothing(text: Path) -> None:
    def interrupt(step: Preparing) -> None:
        if step.phase == "learning tokens from":
            raise KeyboardInterrupt

    original = encoding._made

    def slow(*args: Any) -> Any:
        yield Preparing(0, 1, "learning tokens from")
        return (yield from original(*args))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_made", slow)
        with pytest.raises(KeyboardInterrupt):
            prepared(config(tokenizer="bpe"), on_progress=interrupt)
    assert tree() == ["text.txt"]


def _prepare_in_a_process(folder: str, barrier: Any) -> None:
    os.chdir(folder)
    barrier.wait()
    for block in range(5):
        texts.BLOCK = 16 + block
        dataset: Dataset = prepared(config(tokenizer="byte"))
        assert dataset.text("train") + dataset.text("val") == TEXT


def test_processes_that_prepare_the_same_text_do_not_disturb_each_other(text: Path) -> None:
    (prepared(config(tokenizer="byte")).dir / "val.bin").write_bytes(b"damage")
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_prepare_in_a_process, args=(str(text.parent), barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    dataset = prepared(config(tokenizer="byte"))
    assert open_dataset(dataset.dir).text("train") == dataset.text("train")
    assert [name for name in os.listdir("data") if name.startswith(".")] == []


# A folder of token files as a source


def test_token_files_are_a_source_and_give_what_the_text_gives(text: Path) -> None:
    made = prepared(config(tokenizer="bpe"), out=Path("t"))
    again = prepared(config("t"))
    assert again.tokenizer.to_json() == made.tokenizer.to_json()
    assert (again.key, again.sha256, again.dir) == (made.key, made.sha256, Path("t"))
    assert all(np.array_equal(again.split(name).tokens, split.tokens) for name, split in made.splits().items())
    assert prepared(config("t", tokenizer="bpe")).key == made.key


SOURCES = {
    "one text": {"t.txt": TEXT},
    "one text that holds the end of documents": {"t.txt": TEXT + "<|endoftext|>" + TEXT},
    "a few documents": {"a.txt": TEXT, "b.txt": TEXT[:100], "c.txt": "é" * 20},
    "many documents": {f"{i}.txt": TEXT[i : 3 * i + 1] for i in range(40)},
    "conversations": {"chats.jsonl": chats(30)},
}


def documents(source: str | tuple[str, ...]) -> list[str]:
    """The texts of a source, what is not learned in brackets."""
    return ["".join(piece.text if piece.learned else f"[{piece.text}]" for piece in doc.pieces) for doc in open_source(source).documents()]


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
@pytest.mark.parametrize("what", SOURCES)
@pytest.mark.parametrize("settings", [{}, {"train_frac": 0.6, "test_frac": 0.2}])
def test_token_files_are_read_as_the_text_that_they_were_made_from(tokenizer: str, what: str, settings: dict[str, Any]) -> None:
    Path("texts").mkdir()
    for name, content in SOURCES[what].items():
        Path("texts", name).write_text(content, encoding="utf-8", newline="")
    made = prepared(config("texts", tokenizer=tokenizer, **settings), out=Path("t"))
    found, expected = documents("t"), documents("texts")
    assert sorted(found) == sorted(expected) if made.cut == "document" else found == expected


def test_of_a_document_too_short_for_a_part_in_each_split_no_character_is_lost() -> None:
    Path("texts").mkdir()
    for name, content in {"a.txt": TEXT, "b.txt": "é"}.items():
        Path("texts", name).write_text(content, encoding="utf-8", newline="")
    made = prepared(config("texts"), out=Path("t"))
    assert documents("t") == [made.text("train").removesuffix("<|endoftext|>"), *made.text("val").split("<|endoftext|>")[:2]]
    assert "".join(documents("t")) == TEXT + "é"


def test_token_files_may_be_one_of_several_sources_or_a_split(text: Path) -> None:
    Path("other.txt").write_text("another text, of one line\n" * 20)
    prepared(config("other.txt", tokenizer="byte"), out=Path("t"))
    assert documents(("text.txt", "t")) == documents(("text.txt", "other.txt"))
    together = prepared(config(("text.txt", "t")))
    assert (together.n_documents, together.sha256) == (2, prepared(config(("text.txt", "other.txt"))).sha256)
    held = prepared(config(val=["t"]))
    assert (held.text("train"), held.text("val")) == (TEXT, "another text, of one line\n" * 20)
    assert held.tokenizer.name == "char"
    assert "t holds token files: their whole text is read, train 468 and val 52 characters" in held.notices
    with pytest.raises(UsageError, match="--out t would replace the source t"):
        prepared(config(val=["t"]), out=Path("t"))


def test_an_empty_or_foreign_dataset_json_makes_no_token_folder() -> None:
    Path("texts").mkdir()
    Path("texts/dataset.json").write_text('["a row of text, and another one"]')
    Path("texts/a.txt").write_text(TEXT)
    assert sorted(documents("texts")) == sorted(["a row of text, and another one", TEXT])
    assert prepared(config("texts")).n_documents == 2


@pytest.mark.parametrize("other", [{"tokenizer": "byte"}, {"train_frac": 0.5}, {"test_frac": 0.05}, {"val": ["v.txt"]}])
def test_settings_that_token_files_were_not_made_with_are_refused(other: dict[str, Any], text: Path) -> None:
    prepared(config(tokenizer="bpe"), out=Path("t"))
    with pytest.raises(UsageError, match="give the text itself"):
        prepared(config("t", **other))
    with pytest.raises(UsageError, match="leave out --out"):
        prepared(config("t"), out=Path("u"))


def test_flags_that_say_how_to_read_a_text_do_nothing_to_token_files_and_that_is_said(text: Path) -> None:
    prepared(config(), out=Path("t"))
    found = prepared(config("t", documents="lines", encoding="cp1252"))
    assert found.n_documents == 1
    assert found.notices == ("t holds token files, made already: --documents and --encoding do nothing",)
    assert prepared(config("t")).notices == ()


@pytest.mark.parametrize("missing", ["tokenizer.json", "val.bin", "train.bin"])
def test_incomplete_token_files_are_never_read_as_text(missing: str, text: Path) -> None:
    prepared(config(), out=Path("t"))
    Path("t", missing).unlink()
    with pytest.raises(RunDamaged, match="cannot read"):
        prepared(config("t"))
    with pytest.raises(RunDamaged, match="cannot read"):
        documents("t")


def test_damaged_token_files_are_never_read_as_text(text: Path) -> None:
    prepared(config(), out=Path("t"))
    with Path("t/train.bin").open("ab") as file:
        file.write(b"xx")
    with pytest.raises(RunDamaged, match="damaged"):
        prepared(config("t"))
