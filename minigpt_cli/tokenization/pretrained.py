"""Tokenizers from files: GPT-2's, any Hugging Face tokenizer.json, SentencePiece's .model, and those of runs.

A char or byte tokenizer is recognised and opened with its NumPy table. Files are untrusted: see json_format.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt_cli.config import DataConfig
from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.storage.atomic_io import one_line, parse_json
from minigpt_cli.storage.downloads import RemoteFile, download
from minigpt_cli.tokenization import sentencepiece
from minigpt_cli.tokenization.added import AddedTokens
from minigpt_cli.tokenization.bpe import ByteTokenizer, byte_level_json
from minigpt_cli.tokenization.char import CharTokenizer, listed
from minigpt_cli.tokenization.contract import END_OF_TEXT, Tokenizer, TrainingText, added_tokens
from minigpt_cli.tokenization.json_format import SIZE_LIMIT, Checked, check
from minigpt_cli.tokenization.library import LibraryTokenizer

GPT2_DIR = "MINIGPT_GPT2_DIR"  # a folder with GPT-2's vocab.json and merges.txt, for machines without a network

_GPT2_FILES = (
    RemoteFile(
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
        "gpt2-vocab.json",
        "sha256:196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    RemoteFile(
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
        "gpt2-merges.txt",
        "sha256:1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
)


def load_tokenizer(source: Path | str, name: str = "") -> Tokenizer:
    """The tokenizer of a tokenizer.json: its path, its folder, or the JSON text itself (which begins with a brace).

    A folder or a vocab.json may also hold the older pair vocab.json and merges.txt, and a folder SentencePiece's tokenizer.model, or the
    path be of such a file. Raises UsageError.
    """
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return _from_json(source, name or "tokenizer.json")
    path = Path(source)
    if path.is_dir():
        path, name = tokenizer_file(path) or path / "tokenizer.json", name or path.resolve().name
    data = _read(path)
    merges = path.with_name("merges.txt")
    if path.name == "vocab.json" and merges.exists():
        return _from_pair(data, _read(merges), name or path.resolve().parent.name)
    if path.suffix == ".model":
        return _from_json(sentencepiece.to_json(data, name or path.name), name or path.name)
    return _from_json(data, name or path.name)


def tokenizer_file(folder: Path) -> Path | None:
    """The file in `folder` that holds its tokenizer; None without one."""
    kinds = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
    return next((folder / kind[0] for kind in kinds if all((folder / file).is_file() for file in kind)), None)


def with_added_tokens(tokenizer: Tokenizer, contents: Sequence[str]) -> Tokenizer:
    """`tokenizer` with a token for each of `contents` that it lacks; `tokenizer` itself if it lacks none."""
    if not contents:
        return tokenizer
    if isinstance(tokenizer, CharTokenizer | ByteTokenizer):
        return AddedTokens(tokenizer, contents)
    spec = json.loads(tokenizer.to_json())
    known = {token["content"] for token in spec["added_tokens"]}
    new = [content for content in contents if content not in known]
    if not new:
        return tokenizer
    spec["added_tokens"] += [{"id": tokenizer.vocab_size + i, "content": content, "special": True} for i, content in enumerate(new)]
    return load_tokenizer(json.dumps(spec, ensure_ascii=False), tokenizer.name)


def with_characters(tokenizer: Tokenizer, alphabet: npt.NDArray[np.uint32]) -> tuple[Tokenizer, str]:
    """A character tokenizer with tokens for the code points of `alphabet` that it lacks, and what these are. Other tokenizers, and one
    that lacks none, stay as they are."""
    base = tokenizer.base if isinstance(tokenizer, AddedTokens) else tokenizer
    if not isinstance(base, CharTokenizer) or not (new := base.lacking(alphabet)).size:
        return tokenizer, ""
    extended = base.extended(new)
    return with_added_tokens(extended, list(added_tokens(tokenizer))), f"{new.size:,} new characters: {listed(map(chr, new.tolist()))}"


def saved_tokenizer(data: bytes, path: Path) -> Tokenizer:
    """The tokenizer in `data`, the content of `path`. Raises RunDamaged."""
    try:
        if not data.lstrip().startswith(b"{"):  # load_tokenizer would take it for a path
            raise UsageError("it is not JSON")
        return load_tokenizer(data.decode("utf-8"))
    except (UnicodeDecodeError, UsageError) as error:
        raise RunDamaged(f"{path} is not a tokenizer: {one_line(str(error))}") from error


def _read(path: Path) -> bytes:
    """The content of a tokenizer file. Raises UsageError if it is missing or larger than any tokenizer."""
    try:
        if not path.is_file():
            raise UsageError(
                f"no tokenizer file {path}: give a tokenizer.json or .model, or a folder with one or with vocab.json and merges.txt"
            )
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > SIZE_LIMIT:
        raise UsageError(f"{path} has more than the {SIZE_LIMIT:,} bytes that a tokenizer may have")
    return data


def _from_json(text: str | bytes, name: str) -> Tokenizer:
    checked = check(text, name)
    if (plain := _plain(json.loads(checked.json_text) | {"added_tokens": []})) is not None:
        after = range(plain.vocab_size, plain.vocab_size + len(checked.added))
        if not checked.added:
            return plain
        if list(checked.added.values()) == list(after):
            return AddedTokens(plain, list(checked.added))
    return LibraryTokenizer(checked.json_text, checked.token_bytes, name, checked.added)


def _plain(spec: dict[str, Any]) -> CharTokenizer | ByteTokenizer | None:
    """The character or byte tokenizer of a checked JSON; None if it is of another kind."""
    if spec == json.loads(ByteTokenizer().to_json()):
        return ByteTokenizer()
    vocab = spec["model"]["vocab"]
    if spec["model"]["type"] == "WordLevel" and all(len(token) == 1 for token in vocab):
        made = CharTokenizer([ord(token) for token in sorted(vocab, key=vocab.__getitem__)])
        if spec == json.loads(made.to_json()):
            return made
    return None


def _from_pair(vocab_json: bytes, merges_txt: bytes, name: str) -> LibraryTokenizer:
    """The byte-level BPE of a vocab.json and a merges.txt, as GPT-2 was published. Raises UsageError."""
    try:
        vocab = parse_json(vocab_json, "vocab.json")
        lines = merges_txt.decode("utf-8").split("\n")
    except (RunDamaged, UnicodeDecodeError) as error:
        raise UsageError(f"tokenizer {name}: {one_line(str(error))}") from error
    if not isinstance(vocab, dict):
        raise UsageError(f"tokenizer {name}: vocab.json is not an object")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    spec = json.loads(byte_level_json(vocab, merges, use_regex=True))
    if END_OF_TEXT in vocab:
        spec["added_tokens"] = [{"id": vocab[END_OF_TEXT], "content": END_OF_TEXT, "special": True}]
    checked: Checked = check(json.dumps(spec, ensure_ascii=False), name)
    return LibraryTokenizer(checked.json_text, checked.token_bytes, name, checked.added)


class GPT2Tokenizer(LibraryTokenizer):
    """GPT-2's byte-level BPE of 50,257 tokens, downloaded once."""

    @classmethod
    def build(cls, config: DataConfig, text: TrainingText) -> LibraryTokenizer:
        """The same for every text. Raises MiniGPTError if it is neither in a folder or the cache nor can be downloaded."""
        if folder := os.environ.get(GPT2_DIR):
            paths = [Path(folder, "vocab.json"), Path(folder, "merges.txt")]
        else:
            otherwise = f"check the connection, set {GPT2_DIR} to a folder with vocab.json and merges.txt, or use --tokenizer bpe"
            paths = download(_GPT2_FILES, "the gpt2 tokenizer", lambda done, total: None, otherwise)
        data = [_read(path) for path in paths]
        for path, content, file in zip(paths, data, _GPT2_FILES, strict=True):
            if not file.is_content(content):
                raise UsageError(f"{path} is not GPT-2's (its hash differs): give other tokenizers as --tokenizer {path.parent}")
        return _from_pair(data[0], data[1], "gpt2")
