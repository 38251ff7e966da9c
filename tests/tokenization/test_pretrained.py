"""Tokenizers made elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from minigpt_cli.config import DataConfig
from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.storage import downloads
from minigpt_cli.tokenization.contract import TrainingText
from minigpt_cli.tokenization.library import LibraryTokenizer
from minigpt_cli.tokenization.pretrained import _GPT2_FILES, GPT2_DIR, GPT2Tokenizer, load_tokenizer

TEXT = "Once upon a time, there were 1234 naïve foxes.\n\n  They'd said: “never”! 日本\t😀 " * 4
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def learn(model: Any, trainer: Any, pre_tokenizer: Any, decoder: Any, normalizer: Any = None) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        made.normalizer = normalizer
    made.train_from_iterator([TEXT], trainer)
    return made


def byte_level(pattern: Any) -> tokenizers.Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False, special_tokens=["<|end|>"])
    return learn(models.BPE(), trainer, pattern, decoders.ByteLevel(), normalizers.NFC())


def llama3() -> tokenizers.Tokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(CL100K), "isolated")
    return byte_level(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))


def llama2() -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, special_tokens=["<unk>", *(f"<0x{b:02X}>" for b in range(256))], initial_alphabet=["▁"]
    )
    made = learn(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        trainer,
        None or pre_tokenizers.Metaspace(prepend_scheme="never"),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    )
    spec = json.loads(made.to_str())
    spec["added_tokens"] = spec["added_tokens"][:1]
    spec["pre_tokenizer"] = None
    spec["normalizer"] = json.loads('{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},'
        '{"type":"Replace","pattern":{"String":" "},"content":"▁"}]}')  # fmt: skip
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def unigram() -> tokenizers.Tokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=60, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"])
    return learn(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())


@pytest.mark.parametrize("make", [llama3, llama2, unigram])
def test_tokenizers_of_other_families_keep_every_character(make: Any, tmp_path: Path) -> None:
    original = make()
    original.enable_truncation(4)
    (tmp_path / "tokenizer.json").write_text(original.to_str())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.name == tmp_path.name
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    again = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert again.encode(TEXT).ids == ids.tolist()
    assert again.decode(ids.tolist(), skip_special_tokens=False) == TEXT


def test_the_same_ids_as_the_original_where_it_adds_nothing(tmp_path: Path) -> None:
    original = llama3()
    tokenizer = load_tokenizer(original.to_str(), "llama3")
    text = TEXT + "<|end|>" + TEXT
    assert tokenizer.encode(text).tolist() == original.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_characters_that_a_tokenizer_loses_are_named() -> None:
    with pytest.raises(UsageError, match=r"does not know 'Q' \(U\+0051\) '▁' \(U\+2581\): "):
        load_tokenizer(unigram().to_str(), "u").encode("Once ▁ Q")


def test_a_text_that_changes_as_a_whole_is_refused() -> None:
    spec = json.loads(byte_level(pre_tokenizers.ByteLevel()).to_str())
    kept = {t: i for t, i in spec["model"]["vocab"].items() if i < 257}
    spec["model"] |= {"vocab": kept, "merges": []}
    spec["added_tokens"].append({"id": 257, "content": "ab", "special": False})
    tokenizer = load_tokenizer(json.dumps(spec), "odd")
    assert isinstance(tokenizer, LibraryTokenizer)
    tokenizer._token_bytes[257] = b"AB"  # each character alone comes back, the pair does not
    with pytest.raises(UsageError, match="the odd tokenizer does not give back the text near 'ab'"):
        tokenizer.encode("x ab y")


def test_added_tokens_that_would_be_renumbered_are_refused() -> None:
    spec = json.loads(byte_level(pre_tokenizers.ByteLevel()).to_str())
    spec["added_tokens"].append({"id": 5000, "content": "<x>", "special": True})
    with pytest.raises(UsageError, match="'<x>' gets another id"):
        load_tokenizer(json.dumps(spec), "gap").encode("a")


# GPT-2


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> LibraryTokenizer:
    found = load_tokenizer(shared_data / "gpt2")
    assert isinstance(found, LibraryTokenizer)
    return found


def test_gpt2_says_hello_world(gpt2: LibraryTokenizer) -> None:
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.decode([15496, 995]) == "Hello world"
    assert gpt2.encode("<|endoftext|>").tolist() == [50256]
    assert gpt2.vocab_size == 50257


def test_gpt2_opens_from_its_vocab_file_too(gpt2: LibraryTokenizer, shared_data: Path) -> None:
    assert load_tokenizer(shared_data / "gpt2" / "vocab.json").to_json() == gpt2.to_json()


def test_gpt2_from_a_folder_without_a_network(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = lambda: GPT2Tokenizer.build(DataConfig(), TrainingText.of("")).name  # noqa: E731
    monkeypatch.setenv(GPT2_DIR, str(shared_data / "gpt2"))
    assert build() == "gpt2"
    monkeypatch.setenv(GPT2_DIR, str(tmp_path))
    with pytest.raises(UsageError, match="no tokenizer file"):
        build()
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(shared_data / "gpt2" / name, tmp_path / name)
    with (tmp_path / "merges.txt").open("a") as file:
        file.write("x y\n")
    with pytest.raises(UsageError, match="is not GPT-2's"):
        build()


def test_gpt2_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GPT2_DIR, raising=False)
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path)

    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("requests.get", offline)
    with pytest.raises(MiniGPTError, match=f"set {GPT2_DIR} to a folder.*or use --tokenizer bpe$"):
        GPT2Tokenizer.build(DataConfig(), TrainingText.of(""))


def test_gpt2_from_the_download_cache(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GPT2_DIR, raising=False)
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path)
    for file, name in zip(_GPT2_FILES, ("vocab.json", "merges.txt"), strict=True):
        shutil.copyfile(shared_data / "gpt2" / name, tmp_path / file.name)
    assert GPT2Tokenizer.build(DataConfig(), TrainingText.of("")).encode("Hello world").tolist() == [15496, 995]


# Files


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer.json", b"\xff{}", "not valid JSON"),
        ("tokenizer.json", b"[]", "no model"),
        ("vocab.json", b'{"a": 0}', "no model"),  # without merges.txt
    ],
)
def test_files_that_are_no_tokenizers(name: str, content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=complaint):
        load_tokenizer(tmp_path / name)


@pytest.mark.parametrize(("vocab", "merges"), [(b"[1]", b""), (b"{", b""), (b'{"a": 0}', b"\xff"), (b'{"a": 0}', b"a b c\n"), (b"{}", b"")])
def test_pairs_that_are_no_tokenizers(vocab: bytes, merges: bytes, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_bytes(vocab)
    (tmp_path / "merges.txt").write_bytes(merges)
    with pytest.raises(UsageError, match=f"^tokenizer {tmp_path.name}: "):
        load_tokenizer(tmp_path)


def test_missing_and_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError, match="no tokenizer file"):
            load_tokenizer(missing)
    (tmp_path / "t.json").write_text("{}")

    def denied(self: Path, *args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UsageError, match=r"cannot read .*t\.json: Permission denied"):
        load_tokenizer(tmp_path / "t.json")
