"""A SentencePiece vocabulary (a .model file) as a Hugging Face tokenizers JSON that gives the same ids. No torch.

The file is a small protocol buffer: pieces with scores and types, and how the text is prepared. It is read here as data, with bounds.
A unigram vocabulary stays as it is. Of a BPE vocabulary the merges are derived: whatever two pieces make a third one is a merge, and the
higher the score of the third, the earlier. What would not give the same ids, or not give the text back, is refused by name. The space
that the library puts before a text is left out, as that of every tokenizer here: the text is encoded as it is.

Source: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from minigpt_cli.errors import UsageError
from minigpt_cli.storage.atomic_io import one_line
from minigpt_cli.tokenization.contract import Json, hugging_face_json
from minigpt_cli.tokenization.json_format import SPACE_MARK, VOCAB_LIMIT

_UNIGRAM, _BPE = 1, 2
_KINDS = {3: "words", 4: "characters"}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_LONGEST = 100_000_000  # characters of all merges at most; 256,000 pieces of 16 characters have 65 million
_NEVER = -1e6  # the score of a piece that no text may become
_REMEDY = "train it with --normalization_rule_name=identity --remove_extra_whitespaces=false --byte_fallback"


@dataclass
class _Model:
    """What counts of the file; the defaults are those of the format."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)  # text, score, type; the place is the id
    kind: int = _UNIGRAM
    byte_fallback: bool = False
    space_at_the_end: bool = False
    normalization: str = ""  # the name of the rule
    has_rules: bool = False
    collapses_spaces: bool = True
    marks_spaces: bool = True


def to_json(data: bytes, name: str) -> str:
    """The Hugging Face JSON of the .model file `data`, called `name` in messages. Raises UsageError for what cannot be converted."""
    try:
        model = _read(data)
    except (ValueError, struct.error, IndexError) as error:
        raise UsageError(f"{one_line(name, 100)} is not a SentencePiece model: {one_line(str(error), 100)}") from error
    if why := _obstacle(model):
        raise UsageError(f"tokenizer {one_line(name, 100)}: {one_line(why, 200)}")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    back = [{"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    added = [
        {"id": i, "content": text, "special": kind == _CONTROL}
        for i, (text, _, kind) in enumerate(model.pieces)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    return hugging_face_json(
        _bpe(model) if model.kind == _BPE else _unigram(model),
        None,
        {"type": "Sequence", "decoders": back},
        normalizer=spaces,
        added_tokens=added,
    )


def _unigram(model: _Model) -> Json:
    """The pieces with their scores; the unknown one cannot be written."""
    vocab = [[text, _NEVER if kind in (_UNKNOWN, _BYTE) else score] for text, score, kind in model.pieces]
    unknown = next(i for i, (_, _, kind) in enumerate(model.pieces) if kind == _UNKNOWN)
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": model.byte_fallback}


def _bpe(model: _Model) -> Json:
    """The pieces, and as merges every pair of them that makes a normal one."""
    vocab = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    parts = {text for text, _, kind in model.pieces if kind == _NORMAL}
    made = sorted((piece for piece in model.pieces if piece[2] == _NORMAL), key=lambda piece: -piece[1])
    merges = [[text[:i], text[i:]] for text, _, _ in made for i in range(1, len(text)) if text[:i] in parts and text[i:] in parts]
    unknown = next(text for text, _, kind in model.pieces if kind == _UNKNOWN)
    return {"type": "BPE", "unk_token": unknown, "fuse_unk": True, "byte_fallback": model.byte_fallback, "vocab": vocab, "merges": merges}


def _obstacle(model: _Model) -> str:
    """Why the ids would not be the same, or the text not be given back; '' if nothing stands in the way."""
    kinds = Counter(kind for _, _, kind in model.pieces)
    normal = [(text, score) for text, score, kind in model.pieces if kind == _NORMAL]
    letters = {text for text, _ in normal if len(text) == 1}
    if model.kind not in (_UNIGRAM, _BPE):
        return f"it is made of {_KINDS.get(model.kind, 'other pieces')}: only unigram and BPE vocabularies are converted"
    if model.has_rules or model.collapses_spaces:
        what = f"its normalization {model.normalization!r}" if model.has_rules else "it removes repeated spaces, which"
        return f"{what} changes the text, so that decoding would not give it back: {_REMEDY}"
    if model.space_at_the_end or not model.marks_spaces:
        return f"it marks spaces at the end of words, or not at all, and not before them with {SPACE_MARK}"
    if kinds[_UNUSED]:
        return f"it has {kinds[_UNUSED]} pieces that are switched off"
    if kinds[_UNKNOWN] != 1:
        return f"it has {kinds[_UNKNOWN]} pieces for unknown characters, not one"
    if len({text for text, _, _ in model.pieces}) < len(model.pieces):
        return "two pieces are the same"
    if model.byte_fallback and {text for text, _, kind in model.pieces if kind == _BYTE} != {f"<0x{i:02X}>" for i in range(256)}:
        return "it writes unknown characters as bytes, and lacks pieces for some of them"
    if strange := next((text for text, _ in normal if len(text) > 1 and not set(text) <= letters), None):
        return f"its piece {strange!r} has a character that is not a piece itself"
    if model.kind == _BPE and sum(len(text) ** 2 for text, _ in normal) > _LONGEST:
        return "its pieces are so long that their merges would fill the memory"
    scores = sorted(score for text, score in normal if len(text) > 1)
    if model.kind == _BPE and (ties := [a for a, b in pairwise(scores) if a == b]):
        return f"two pieces have the same score {ties[0]:g}, so that the order of its merges is not known"
    return ""


# ---- the file


def _read(data: bytes) -> _Model:
    """The model in a protocol buffer. Raises ValueError, struct.error or IndexError for damaged content."""
    model = _Model()
    for number, value in _fields(data):
        if number == 1:
            if len(model.pieces) == VOCAB_LIMIT:
                raise ValueError(f"it has more than {VOCAB_LIMIT:,} pieces")
            model.pieces.append(_piece(_bytes(value)))
        elif number == 2:
            for inner, setting in _fields(_bytes(value)):
                if inner == 3:
                    model.kind = _int(setting)
                elif inner == 24:
                    model.space_at_the_end = bool(setting)
                elif inner == 35:
                    model.byte_fallback = bool(setting)
        elif number in (3, 5):
            _read_normalization(model, _bytes(value), before=number == 3)
    if not model.pieces:
        raise ValueError("it has no pieces")
    return model


def _read_normalization(model: _Model, data: bytes, before: bool) -> None:
    """What is done to the text `before` it is cut, or to what is decoded."""
    for number, value in _fields(data):
        if number == 1 and before:
            model.normalization = _bytes(value).decode("utf-8")
        elif number == 2:
            model.has_rules |= bool(value)
        elif number == 4 and before:
            model.collapses_spaces = bool(value)
        elif number == 5 and before:
            model.marks_spaces = bool(value)


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, _NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", _bytes(value))
        elif number == 3:
            kind = _int(value)
    if not text:
        raise ValueError("a piece is empty")
    if not math.isfinite(score):
        raise ValueError("the score of a piece is not finite")
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: their numbers, and numbers or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        value: int | bytes | None = None
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            length = {1: 8, 5: 4}.get(wire)
            if length is None:
                length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        if value is None or at > len(data):
            raise ValueError("a field is cut off or of an unknown kind")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of up to ten bytes, seven bits in each, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        number |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return number, at
    raise ValueError("a number has no end")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where a text belongs")
    return value


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a text stands where a number belongs")
    return value
