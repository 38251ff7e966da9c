"""A tokenizer.json as the vocabulary of a GGUF file, so that llama.cpp encodes text to the same ids. No torch.

llama.cpp has byte-level BPE: it writes every byte as one printable character, cuts the text with a named pattern and
merges. Our three kinds of tokenizer can be written in this form exactly:

- bpe with its merges;
- byte without merges;
- char with a short chain of merges for each character of several bytes. A chain starts at the character's first byte,
  which UTF-8 has at no other position, so merges never cross a character.

llama.cpp always has an end token (id 11 if none is named, which would end a text at an ordinary character), so one is
appended if the tokenizer has none. It also needs at least one merge.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from minigpt_cli.errors import UsageError
from minigpt_cli.tokenization.bytelevel import CHARACTER_OF_BYTE

END_TOKEN = "<|endoftext|>"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's token types
END_TOKENS = ("<|end|>", END_TOKEN, "<|eot|>", "</s>", "<|end_of_text|>", "<eos>")

# Pre-tokenizing patterns by the name that llama.cpp has for them; our own BPE cuts as GPT-2 does.
_CUTS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {_CUTS % "{1,3}": "llama-bpe", _CUTS % "": "qwen2"}


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs to encode text."""

    pattern: str  # its name for the pre-tokenizer
    tokens: list[str]  # by id, in the byte alphabet
    types: list[int]
    merges: list[str]
    end_id: int
    added: bool  # whether the end token was appended, so that the weights need one more row


def spelled(data: bytes) -> str:
    """`data` in the byte alphabet."""
    return "".join(CHARACTER_OF_BYTE[byte] for byte in data)


def vocabulary(tokenizer_json: str, n_rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer.json for a model with `n_rows` embeddings. Raises UsageError if llama.cpp would give other ids."""
    document = json.loads(tokenizer_json)
    model = document["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if document.get("normalizer"):
        raise _refused(f"it normalises text ({document['normalizer'].get('type')})")
    if kind == "WordLevel":
        pattern, tokens, merges = _characters(model["vocab"])
    elif kind == "BPE":
        pattern, tokens, merges = _byte_pairs(document, model)
    else:
        raise _refused(f"it is a {kind} model, and llama.cpp gives equal ids only for char, byte and byte-level BPE")
    types = dict.fromkeys(tokens, NORMAL)
    for token in document.get("added_tokens") or []:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if any(token_id >= n_rows for token_id in tokens):
        raise UsageError(f"the tokenizer has ids up to {max(tokens)} and the model only {n_rows} rows: the two do not belong together")
    for token_id in range(n_rows):  # rows that no text reaches: padding of the vocabulary
        types.setdefault(token_id, UNUSED)
        tokens.setdefault(token_id, f"[unused{token_id}]")
    ends = [token_id for text in END_TOKENS for token_id, token in tokens.items() if token == text]
    if added := not ends:
        tokens[n_rows], types[n_rows] = END_TOKEN, CONTROL
        ends = [n_rows]
    types[ends[0]] = CONTROL
    ids = sorted(tokens)
    # A vocabulary without merges gets one of two bytes that UTF-8 never has, so that it never happens.
    merges = merges or [f"{CHARACTER_OF_BYTE[0xFE]} {CHARACTER_OF_BYTE[0xFF]}"]
    return Vocabulary(pattern, [tokens[i] for i in ids], [types[i] for i in ids], merges, ends[0], added)


def _characters(vocab: dict[str, int]) -> tuple[str, dict[int, str], list[str]]:
    if long := [token for token in vocab if len(token) != 1]:
        raise _refused(f"{long[0]!r} is a whole word, and only single characters or byte-level BPE fit")
    merges: dict[str, None] = {}
    for character in sorted(vocab):
        spelling = spelled(character.encode())
        for end in range(1, len(spelling)):
            merges[f"{spelling[:end]} {spelling[end]}"] = None
    return "qwen2", {i: spelled(character.encode()) for character, i in vocab.items()}, list(merges)


def _byte_pairs(document: dict[str, Any], model: dict[str, Any]) -> tuple[str, dict[int, str], list[str]]:
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(setting):
            raise _refused(f"its BPE sets {setting}")
    return _pattern(document.get("pre_tokenizer"), bool(merges)), {i: token for token, i in model["vocab"].items()}, merges


def _pattern(pre_tokenizer: dict[str, Any] | None, merges: bool) -> str:
    """llama.cpp's name for how the text is cut before merging."""
    steps = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise _refused("its BPE is not byte-level without a prefix space")
    if not merges:
        return "qwen2"  # nothing merges, so the cuts do not matter; with this name decoding keeps spaces as they are
    if len(steps) == 1 and last.get("use_regex", True):
        return "gpt-2"
    if len(steps) == 2 and steps[0].get("type") == "Split" and steps[0].get("behavior") == "Isolated":
        found = _PATTERNS.get(steps[0].get("pattern", {}).get("Regex", ""))
        if found:
            return found
    raise _refused("llama.cpp has no name for its pre-tokenizer")


def _refused(reason: str) -> UsageError:
    return UsageError(f"GGUF cannot express this tokenizer: {reason}; export with --format hf")
