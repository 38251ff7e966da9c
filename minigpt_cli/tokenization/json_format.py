"""A Hugging Face tokenizer.json from any source: checked before the library gets it, and reduced to its lossless parts.

Such a file is untrusted input. The library panics, hangs or needs too much memory on some well-formed files (a merge that is
longer than the longest token, a normalizer that doubles the text ten times, ids of four billion). So the file is read with
bounds, and only components that can be inverted are accepted. Each is built again from the fields known here:

- left out, because models here are trained on plain text without added marks: truncation, padding, post-processor, NFC,
  a leading space added by `Prepend` or `prepend_scheme`, whitespace removed around added tokens
- refused by name, because decoding would not give the text back: every other normalizer, pre-tokenizers that remove
  characters, WordPiece, word prefixes and suffixes, dropout
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from minigpt_cli.errors import RunDamaged, UsageError
from minigpt_cli.storage.atomic_io import one_line, parse_json
from minigpt_cli.tokenization.bytelevel import bytes_of
from minigpt_cli.tokenization.contract import Json, hugging_face_json

SIZE_LIMIT = 48 << 20  # bytes; the largest in common use (256,000 tokens) has 33 MB
_VALUE_LIMIT = 4_000_000  # JSON values, so that parsing takes a few hundred megabytes at most
VOCAB_LIMIT = 1 << 20  # ids
_REGEX_LIMIT = 10_000  # characters
SPACE_MARK = "\u2581"  # what SentencePiece writes for a space
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Checked:
    """A tokenizer.json that is safe to give to the library."""

    json_text: str
    token_bytes: list[bytes]  # by id; empty for an unused id
    added: dict[str, int]  # added tokens and the ids that the library must give them


def check(text: str | bytes, name: str) -> Checked:
    """The checked form of a tokenizer.json called `name` in messages. Raises UsageError."""
    return _Checker(name).check(text)


class _Checker:
    """Checks one file; every error names it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _wrong(self, why: str) -> UsageError:
        return UsageError(f"tokenizer {one_line(self._name, 100)}: {one_line(why, 200)}")

    def _parse(self, text: str | bytes) -> Json:
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        if len(data) > SIZE_LIMIT:
            raise self._wrong(f"has {len(data):,} bytes, more than the {SIZE_LIMIT:,} that a tokenizer may have")
        if data.count(b",") + data.count(b"[") + data.count(b"{") > _VALUE_LIMIT:
            raise self._wrong(f"has more than {_VALUE_LIMIT:,} entries")
        try:
            spec = parse_json(data, "it")
        except RunDamaged as error:
            raise self._wrong(str(error)) from error
        if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
            raise self._wrong("is not a Hugging Face tokenizers JSON (it has no model)")
        return spec

    def check(self, text: str | bytes) -> Checked:
        """As the function `check`."""
        spec = self._parse(text)
        model = self._model(spec["model"])
        tokens = _pairs(model)
        added = self._added(spec.get("added_tokens") or [])
        decoder, to_bytes = self._decoder(spec.get("decoder"))
        token_bytes = [b""] * (max([i for _, i in tokens] + [entry["id"] for entry in added], default=-1) + 1)
        for token, i in tokens:
            token_bytes[i] = to_bytes(token)
        for entry in added:
            token_bytes[entry["id"]] = entry["content"].encode("utf-8")
        if not token_bytes:
            raise self._wrong("has no tokens")
        normalizer, pre_tokenizer = self._normalizer(spec.get("normalizer")), self._pre_tokenizer(spec.get("pre_tokenizer"))
        clean = hugging_face_json(model, pre_tokenizer, decoder, normalizer=normalizer, added_tokens=added)
        return Checked(clean, token_bytes, {e["content"]: e["id"] for e in added})

    # -- values

    def _text(self, value: Any, what: str) -> str:
        if not isinstance(value, str):
            raise self._wrong(f"{what} is not a string")
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise self._wrong(f"{what} holds half of a surrogate pair") from None
        return value

    def _id(self, value: Any, what: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < VOCAB_LIMIT:
            raise self._wrong(f"the id of {what!r} is not a number from 0 to {VOCAB_LIMIT - 1:,}")
        return value

    def _type(self, part: Any, what: str) -> str:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise self._wrong(f"its {what} is not an object with a type")
        kind: str = part["type"]
        return kind

    # -- the model

    def _model(self, model: Json) -> Json:
        kind = model.get("type", "BPE")
        if kind == "BPE":
            return self._bpe(model)
        if kind == "WordLevel":
            vocab = self._vocab(model.get("vocab"))
            return {"type": "WordLevel", "vocab": vocab, "unk_token": self._text(model.get("unk_token", "<unk>"), "unk_token")}
        if kind == "Unigram":
            return self._unigram(model)
        raise self._wrong(f"its model {kind!r} does not keep every character: use a BPE, Unigram or WordLevel one")

    def _vocab(self, vocab: Any) -> dict[str, int]:
        if not isinstance(vocab, dict):
            raise self._wrong("its vocabulary is not an object")
        for token, i in vocab.items():
            self._id(i, self._text(token, "a token"))
        if len(set(vocab.values())) < len(vocab):
            raise self._wrong("two tokens have the same id")
        return vocab

    def _bpe(self, model: Json) -> Json:
        for field in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if model.get(field):
                raise self._wrong(f"its {field} is set, so decoding would not give the text back")
        vocab = self._vocab(model.get("vocab"))
        merges = model.get("merges")
        if not isinstance(merges, list):
            raise self._wrong("its merges are not a list")
        pairs = []
        for merge in merges:
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)):
                raise self._wrong("a merge is not a pair of tokens")
            if not (pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab):
                raise self._wrong(f"the merge {' '.join(pair)!r} uses or makes a token that is not in the vocabulary")
            pairs.append(pair)
        clean: Json = {"type": "BPE", "dropout": None, "unk_token": model.get("unk_token")}
        if clean["unk_token"] is not None and self._text(clean["unk_token"], "unk_token") not in vocab:
            clean["unk_token"] = None
        clean |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
        clean |= {field: bool(model.get(field)) for field in ("fuse_unk", "byte_fallback", "ignore_merges")}
        return clean | {"vocab": vocab, "merges": pairs}

    def _unigram(self, model: Json) -> Json:
        vocab = model.get("vocab")
        if not isinstance(vocab, list) or not 0 < len(vocab) <= VOCAB_LIMIT:
            raise self._wrong("its vocabulary is not a list of tokens with scores")
        for entry in vocab:
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], int | float) and abs(entry[1]) < 1e9):
                raise self._wrong("a token has no score")
            if not self._text(entry[0], "a token"):
                raise self._wrong("a token is empty")
        if len({token for token, _ in vocab}) < len(vocab):
            raise self._wrong("a token occurs twice")
        unk = model.get("unk_id")
        if unk is not None and self._id(unk, "the unknown token") >= len(vocab):
            raise self._wrong("its unk_id is not in the vocabulary")
        return {"type": "Unigram", "unk_id": unk, "vocab": vocab, "byte_fallback": bool(model.get("byte_fallback"))}

    def _added(self, tokens: Any) -> list[Json]:
        if not isinstance(tokens, list) or len(tokens) > 1 << 16:
            raise self._wrong("its added tokens are not a list of a reasonable length")
        clean: list[Json] = []
        for token in tokens:
            if not isinstance(token, dict) or not self._text(token.get("content"), "an added token"):
                raise self._wrong("an added token has no content")
            entry: Json = {"id": self._id(token.get("id"), token["content"]), "content": token["content"], "single_word": False}
            clean.append(entry | {"lstrip": False, "rstrip": False, "normalized": False, "special": bool(token.get("special"))})
        if len({e["id"] for e in clean}) < len(clean) or len({e["content"] for e in clean}) < len(clean):
            raise self._wrong("two added tokens are the same")
        return sorted(clean, key=lambda entry: int(entry["id"]))

    # -- what surrounds it

    def _normalizer(self, part: Any) -> Json | None:
        if part is None:
            return None
        kind = self._type(part, "normalizer")
        if kind == "Sequence":
            kept = [made for inner in self._list(part, "normalizers") if (made := self._normalizer(inner)) is not None]
            return {"type": "Sequence", "normalizers": kept} if kept else None
        if kind in ("NFC", "Prepend"):
            return None
        if kind == "Replace" and part.get("pattern") == {"String": " "} and part.get("content") == SPACE_MARK:
            return {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
        raise self._wrong(f"its normalizer {kind!r} changes the text")

    def _pre_tokenizer(self, part: Any) -> Json | None:
        if part is None:
            return None
        kind = self._type(part, "pre-tokenizer")
        if kind == "Sequence":
            kept = [made for inner in self._list(part, "pretokenizers") if (made := self._pre_tokenizer(inner)) is not None]
            return {"type": "Sequence", "pretokenizers": kept} if kept else None
        if kind == "ByteLevel":
            return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": bool(part.get("use_regex", True))}
        if kind == "Metaspace":
            return _metaspace(part)
        if kind == "Digits":
            return {"type": "Digits", "individual_digits": bool(part.get("individual_digits"))}
        if kind in ("Split", "Punctuation"):
            behavior = part.get("behavior", "Isolated")
            if behavior not in ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
                raise self._wrong(f"its pre-tokenizer {kind} removes characters")
            if kind == "Punctuation":
                return {"type": "Punctuation", "behavior": behavior}
            split = {"type": "Split", "pattern": self._pattern(part.get("pattern"))}
            return split | {"behavior": behavior, "invert": bool(part.get("invert"))}
        raise self._wrong(f"its pre-tokenizer {kind!r} does not keep every character")

    def _pattern(self, pattern: Any) -> Json:
        if not isinstance(pattern, dict) or len(pattern) != 1 or next(iter(pattern)) not in ("Regex", "String"):
            raise self._wrong("a Split has no pattern")
        ((kind, value),) = pattern.items()
        if not 0 < len(self._text(value, "a pattern")) <= _REGEX_LIMIT:
            raise self._wrong(f"a pattern is empty or longer than {_REGEX_LIMIT:,} characters")
        return {kind: value}

    def _list(self, part: Json, field: str) -> list[Any]:
        inner = part.get(field)
        if not isinstance(inner, list) or len(inner) > 64:
            raise self._wrong(f"its {field} are not a short list")
        return inner

    def _decoder(self, part: Any) -> tuple[Json, Any]:
        """The decoder, and an equal function from a token to its bytes."""
        steps = self._list(part, "decoders") if isinstance(part, dict) and part.get("type") == "Sequence" else [part]
        kinds = [self._type(step, "decoder") for step in steps]
        if kinds == ["ByteLevel"]:
            return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, _byte_level
        if kinds == ["Metaspace"]:
            return _metaspace(steps[0]), lambda token: token.replace(SPACE_MARK, " ").encode("utf-8")
        replaces = [step for step in steps if step["type"] == "Replace"]
        marks = [(step.get("pattern"), step.get("content")) for step in replaces] == [({"String": SPACE_MARK}, " ")]
        falls_back = "ByteFallback" in kinds
        if not set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"} or len(replaces) != marks:
            raise self._wrong(f"its decoder {'+'.join(kinds)} does not give back the text")
        clean: list[Json] = [{"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}] if marks else []
        clean += [{"type": "ByteFallback"}] if falls_back else []
        clean += [{"type": "Fuse"}]

        def to_bytes(token: str) -> bytes:
            if falls_back and (match := _BYTE_TOKEN.fullmatch(token)):
                return bytes.fromhex(match[1])
            return (token.replace(SPACE_MARK, " ") if marks else token).encode("utf-8")

        return clean[0] if len(clean) == 1 else {"type": "Sequence", "decoders": clean}, to_bytes


def _metaspace(part: Json) -> Json:
    return {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "never", "split": bool(part.get("split", True))}


def _byte_level(token: str) -> bytes:
    found = bytes_of(token)
    return token.encode("utf-8") if found is None else found


def _pairs(model: Json) -> list[tuple[str, int]]:
    """The tokens of a checked model with their ids."""
    if model["type"] == "Unigram":
        return [(token, i) for i, (token, _) in enumerate(model["vocab"])]
    return list(model["vocab"].items())
