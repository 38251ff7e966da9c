"""Change tokenizer.json files at random, open them, and cut texts with those that open.

    python tests/benchmarks/fuzz_tokenizers.py --minutes 10 [--seed 0]

Values anywhere in four real kinds of file (byte-level BPE, a Llama 3 like one, a Llama 2 like one, Unigram) are replaced,
exchanged between files, dropped or added to. Right is a MiniGPTError of one line, or a tokenizer that gives every text
back, in ten seconds and without a word from the library on stderr. Prints one JSON document; exit code 1 if there are
findings.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.tokenization.bpe import byte_level_json
from minigpt_cli.tokenization.bytelevel import CHARACTER_OF_BYTE
from minigpt_cli.tokenization.pretrained import load_tokenizer

SLOW_S = 10.0
TEXTS = ["a ab abc", "", "  a\n\nb", "日本 ▁ <unk> é\u0301 12 it's!", "<0x41> <|x|> \x00 \ufeff\r\n", "ab" * 500 + " a b" * 100]
BYTES = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}
GPT2: dict[str, Any] = json.loads(
    byte_level_json(BYTES | {"ab": 256, "abc": 257, "Ġa": 258}, [["a", "b"], ["ab", "c"], ["Ġ", "a"]], use_regex=True)
)
SPACE_MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SEEDS: list[dict[str, Any]] = [
    GPT2,
    GPT2
    | {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"[^\r\n\p{L}\p{N}]?\p{L}+|\s+"}, "behavior": "Isolated", "invert": False},
                {"type": "Digits", "individual_digits": True},
                {"type": "Punctuation", "behavior": "Contiguous"},
                {"type": "ByteLevel", "use_regex": False},
            ],
        }
    },
    GPT2
    | {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACE_MARK]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True, "lstrip": False, "rstrip": False, "single_word": False}],
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "ab": 4, "▁a": 5} | {f"<0x{byte:02X}>": 6 + byte for byte in range(256)},
            "merges": [["a", "b"], ["▁", "a"]],
        },
    },
    GPT2
    | {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "decoder": {"type": "Metaspace"},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -1.5], ["▁", -2], ["ab", -0.5]]},
    },
]
JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 1e308, "", "a", "▁", "\x00", "\ud800", "ab", "<unk>", "x" * 5000, [], {}, [[]], ["a"]),
    *(["a", "b"], {"type": "BPE"}, {"type": "Fuse"}, {"type": "ByteLevel"}, {"type": "Strip"}, {"String": ""}, {"String": "a"}),
    *({"Regex": pattern} for pattern in ("(", "a*", "(?<=a)", r"\b", "", ".", "(?:)", "[\ud800]", "(a+)+$")),
    *("Removed", "MergedWithNext", "MergedWithPrevious", "Contiguous", {"id": 3, "content": "ab"}, {"id": 600, "content": " a"}),
    {"type": "Metaspace", "replacement": "", "prepend_scheme": "first"},
]

Path = tuple[str | int, ...]


def places(value: Any, above: Path = ()) -> Iterator[Path]:
    """Every place in a JSON value, of long lists the beginning."""
    yield above
    keys = list(value)[:40] if isinstance(value, dict) else range(min(len(value), 8)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*above, key))


def at(value: Any, place: Path) -> Any:
    for key in place:
        value = value[key]
    return value


def mutate(spec: Any, draw: random.Random) -> None:
    """Change one place of `spec`."""
    place = draw.choice([place for place in places(spec) if place])
    parent, key = at(spec, place[:-1]), place[-1]
    kind = draw.random()
    if kind < 0.5:
        parent[key] = copy.deepcopy(draw.choice(JUNK))
    elif kind < 0.7:
        other = draw.choice(SEEDS)
        parent[key] = copy.deepcopy(at(other, draw.choice(list(places(other)))))
    elif kind < 0.85 and isinstance(parent, dict):
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, copy.deepcopy(draw.choice(JUNK)))
    else:
        parent[str(draw.choice(JUNK))[:20]] = copy.deepcopy(draw.choice(JUNK))


def open_and_use(text: str, counts: Counter[str]) -> str:
    """What was wrong with opening `text` as a tokenizer and using it; empty where nothing was."""
    try:
        tokenizer = load_tokenizer(text, "x")
        counts["opened"] += 1
        of_id = load_tokenizer(tokenizer.to_json(), "x").token_bytes()
    except MiniGPTError as error:
        counts["refused"] += 1
        return "" if "\n" not in str(error) and len(str(error)) < 500 else f"a long error: {error}"
    for sample in TEXTS:
        try:
            ids = tokenizer.encode(sample)
        except MiniGPTError as error:
            counts["texts refused"] += 1
            if "\n" in str(error):
                return f"a long error: {error}"
        else:
            counts["texts cut"] += 1
            if tokenizer.decode(ids) != sample or b"".join(of_id[i] for i in ids) != sample.encode():
                return f"lost {sample!r}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, counts, findings = random.Random(options.seed), Counter[str](), []
    with tempfile.TemporaryFile() as words:
        os.dup2(words.fileno(), 2)  # what the library says by itself
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            spec = copy.deepcopy(draw.choice(SEEDS))
            for _ in range(draw.randint(1, 4)):
                mutate(spec, draw)
            text = json.dumps(spec)
            counts["inputs"] += 1
            started = time.monotonic()
            try:
                wrong = open_and_use(text, counts)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                wrong = f"{type(error).__name__}: {error}"
            if not wrong and time.monotonic() - started > SLOW_S:
                wrong = "slow"
            if not wrong and os.fstat(words.fileno()).st_size:
                wrong = "the library wrote to stderr"
                words.truncate(0)
            if wrong:
                findings.append({"wrong": wrong[:300], "input": text[:4000]})
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"seed": options.seed, **counts, "peak_mb": peak_mb, "findings": len(findings), "first": findings[:5]}, indent=1))
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
