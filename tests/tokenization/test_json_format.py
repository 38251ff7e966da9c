"""Hostile tokenizer files end in one line, in bounded time and memory, before the library sees them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import textwrap
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_cli.errors import UsageError
from minigpt_cli.tokenization import json_format
from minigpt_cli.tokenization.bpe import ByteTokenizer, byte_level_json
from minigpt_cli.tokenization.bytelevel import CHARACTER_OF_BYTE
from minigpt_cli.tokenization.json_format import check
from minigpt_cli.tokenization.pretrained import load_tokenizer

Json = dict[str, Any]
BPE: Json = json.loads(
    byte_level_json({c: b for b, c in CHARACTER_OF_BYTE.items()} | {"ab": 256, "abc": 257}, [["a", "b"], ["ab", "c"]], use_regex=True)
)
UNIGRAM: Json = BPE | {
    "pre_tokenizer": {"type": "Metaspace"},
    "decoder": {"type": "Metaspace"},
    "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["▁", -2]]},
}


def changed(spec: Json, path: str, value: Any) -> Json:
    """A copy of `spec` with one value replaced; path like "model.vocab"."""
    made = copy.deepcopy(spec)
    *above, last = path.split(".")
    inner = made
    for key in above:
        inner = inner[key]
    inner[last] = value
    return made


DEEP: Any = []
for _ in range(200):
    DEEP = {"type": "Sequence", "normalizers": [DEEP]} if DEEP else {"type": "NFC"}

REFUSED = [
    (BPE, "model", [], "has no model"),
    (BPE, "model", {"type": "WordPiece", "vocab": {}}, "'WordPiece' does not keep every character"),
    (BPE, "model.type", 7, "does not keep every character"),
    (BPE, "model.vocab", [], "vocabulary is not an object"),
    (BPE, "model.vocab", {"a": 1 << 32}, "id of 'a'"),
    (BPE, "model.vocab", {"a": -1}, "id of 'a'"),
    (BPE, "model.vocab", {"a": True}, "id of 'a'"),
    (BPE, "model.vocab", {"a": 1, "b": 1}, "two tokens have the same id"),
    (BPE, "model.vocab", {"\ud800": 1}, "half of a surrogate pair"),
    (BPE, "model.merges", 1, "merges are not a list"),
    (BPE, "model.merges", [["a", "b", "c"]], "not a pair"),
    (BPE, "model.merges", ["ab"], "not a pair"),
    (BPE, "model.merges", [["a", 7]], "not a pair"),
    (BPE, "model.merges", [["a", "c"]], "not in the vocabulary"),  # the library would index out of bounds
    (BPE, "model.dropout", 0.5, "dropout is set"),
    (BPE, "model.end_of_word_suffix", "</w>", "end_of_word_suffix is set"),
    (BPE, "model.continuing_subword_prefix", "##", "continuing_subword_prefix is set"),
    (BPE, "model.unk_token", 5, "unk_token is not a string"),
    (UNIGRAM, "model.vocab", {}, "not a list of tokens"),
    (UNIGRAM, "model.vocab", [], "not a list of tokens"),
    (UNIGRAM, "model.vocab", [["a"]], "no score"),
    (UNIGRAM, "model.vocab", [["a", 1e300]], "no score"),
    (UNIGRAM, "model.vocab", [["", 0.0]], "a token is empty"),
    (UNIGRAM, "model.vocab", [["a", 0.0], ["a", 0.0]], "occurs twice"),
    (UNIGRAM, "model.unk_id", 3, "unk_id is not in the vocabulary"),
    (UNIGRAM, "model.unk_id", "a", "the unknown token"),
    (BPE, "added_tokens", {}, ""),
    (BPE, "added_tokens", {"a": 1}, "added tokens are not a list"),
    (BPE, "added_tokens", [1], "no content"),
    (BPE, "added_tokens", [{"content": "", "id": 1}], "no content"),
    (BPE, "added_tokens", [{"content": "<x>"}], "id of '<x>'"),
    (BPE, "added_tokens", [{"content": "<x>", "id": 300}, {"content": "<y>", "id": 300}], "two added tokens"),
    (BPE, "normalizer", 1, "normalizer is not an object"),
    (BPE, "normalizer", {"type": "Lowercase"}, "'Lowercase' changes the text"),
    (BPE, "normalizer", {"type": "Precompiled", "precompiled_charsmap": "x"}, "'Precompiled' changes the text"),  # the library panics
    (BPE, "normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}, "'Replace' changes the text"),  # doubles
    (BPE, "normalizer", {"type": "Sequence", "normalizers": 1}, "not a short list"),
    (BPE, "normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}, "not a short list"),
    (BPE, "normalizer", DEEP, ""),
    (BPE, "pre_tokenizer", "x", "pre-tokenizer is not an object"),
    (BPE, "pre_tokenizer", {"type": "Whitespace"}, "'Whitespace' does not keep"),
    (BPE, "pre_tokenizer", {"type": "FixedLength", "length": 0}, "'FixedLength' does not keep"),  # the library panics
    (BPE, "pre_tokenizer", {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed"}, "Split removes characters"),
    (BPE, "pre_tokenizer", {"type": "Punctuation", "behavior": "Removed"}, "Punctuation removes characters"),
    (BPE, "pre_tokenizer", {"type": "Split", "pattern": "x"}, "no pattern"),
    (BPE, "pre_tokenizer", {"type": "Split", "pattern": {"Regex": ""}}, "empty or longer"),
    (BPE, "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "a" * 20_000}}, "empty or longer"),
    (BPE, "pre_tokenizer", {"type": "Split", "pattern": {"Regex": 1}}, "not a string"),
    (BPE, "decoder", None, "decoder is not an object"),
    (BPE, "decoder", {"type": "WordPiece"}, "WordPiece does not give back the text"),
    (BPE, "decoder", {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "a"}, "content": "b"}]}, "does not give"),
]


@pytest.mark.parametrize(("spec", "path", "value", "complaint"), REFUSED)
def test_what_is_not_lossless_or_not_whole_is_refused_in_one_line(spec: Json, path: str, value: Any, complaint: str) -> None:
    if not complaint:  # harmless, or too deep for JSON itself; either is fine if it is quick
        with suppress(UsageError):
            check(json.dumps(changed(spec, path, value)), "x")
        return
    with pytest.raises(UsageError, match=f"^tokenizer bad.json: .*{complaint}") as caught:
        check(json.dumps(changed(spec, path, value)), "bad.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"model": {"vocab": {"a": 1e999}}}', "id of 'a'"),
        ('{"model": NaN}', "NaN is not JSON"),
        ('{"model": {}, "model": {}}', "a key occurs twice"),
        ('{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}", "not valid JSON"),
        ('{"model":"\ud800"}', "not valid JSON"),
        ("7", "no model"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}, "decoder": {"type": "Fuse"}}', "has no tokens"),
    ],
)
def test_text_that_is_no_tokenizer_json(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        check(text, "x")


def test_size_and_count_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_format, "SIZE_LIMIT", 100)
    with pytest.raises(UsageError, match="more than the 100 that a tokenizer may have"):
        check(" " * 101, "x")
    monkeypatch.setattr(json_format, "_VALUE_LIMIT", 10)
    with pytest.raises(UsageError, match="more than 10 entries"):
        check("{" * 11, "x")


def test_terminal_escapes_in_a_name_or_token_do_not_reach_the_message() -> None:
    with pytest.raises(UsageError) as caught:
        check(json.dumps(changed(BPE, "model.vocab", {"\x1b]0;pwned\x07": -1})), "\x1b[2Jbad\n.json")
    assert str(caught.value).isprintable()


KEPT = [
    (BPE, "pre_tokenizer", None),
    (BPE, "pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}]}),
    (BPE, "pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, {"type": "ByteLevel", "use_regex": False}]}),
    (BPE, "normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
    (BPE, "model.unk_token", "absent"),
    (BPE, "model.merges", ["a b", "ab c"]),
    (BPE, "truncation", {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 9}),  # the library panics
    (BPE, "padding", {"strategy": {"Fixed": 1 << 60}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}),
    (BPE, "post_processor", {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "gone", "type_id": 0}}]}),
    (UNIGRAM, "model.unk_id", None),
]


@pytest.mark.parametrize(("spec", "path", "value"), KEPT)
def test_what_is_harmless_is_kept_or_left_out(spec: Json, path: str, value: Any) -> None:
    tokenizer = load_tokenizer(json.dumps(changed(spec, path, value)), "x")
    text = "aaa  a a " if spec is UNIGRAM else "ab abc 123, x"
    if path == "pre_tokenizer" and value is None:
        text = "ababc"  # without ByteLevel only its own alphabet is known
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_outside_the_byte_alphabet_are_their_own_text() -> None:
    spec = changed(BPE, "model.vocab", BPE["model"]["vocab"] | {"日": 258})
    assert check(json.dumps(spec), "x").token_bytes[258] == "日".encode()


def test_unused_ids_have_no_bytes() -> None:
    spec = changed(BPE, "model.vocab", BPE["model"]["vocab"] | {"zz": 300})
    checked = check(json.dumps(spec), "x")
    assert len(checked.token_bytes) == 301
    assert checked.token_bytes[299] == b""


def test_what_is_checked_passes_again_unchanged() -> None:
    for spec in (BPE, UNIGRAM, json.loads(ByteTokenizer().to_json())):
        once = check(json.dumps(spec), "x").json_text
        assert check(once, "x").json_text == once


@given(st.data())
@settings(max_examples=300)
def test_mutated_files_open_or_are_refused(data: st.DataObject) -> None:
    raw = bytearray(json.dumps(data.draw(st.sampled_from([BPE, UNIGRAM])), ensure_ascii=False).encode())
    junk = [b"", b"\xff", b"0", b'"', b"9" * 30, b"{", b"null", b"\\ud8"]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.sampled_from(junk))
    try:
        tokenizer = load_tokenizer(raw.decode("utf-8", "replace"), "x") if raw.lstrip().startswith(b"{") else None
        if tokenizer is not None:
            assert tokenizer.decode(tokenizer.encode("a ab")) == "a ab"
    except UsageError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


def test_a_panic_in_the_library_is_an_error_and_a_slow_pattern_ends() -> None:
    """In a process of its own, which the library writes its own words about the panic into."""
    script = textwrap.dedent(
        """
        import json, resource, sys, time
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        from minigpt_cli.errors import UsageError
        from minigpt_cli.tokenization.library import LibraryTokenizer
        from minigpt_cli.tokenization.pretrained import load_tokenizer
        broken = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []},
                  "normalizer": {"type": "Precompiled", "precompiled_charsmap": "x"}}
        try:
            LibraryTokenizer(json.dumps(broken), [b""], "broken").backend
        except UsageError as error:
            print(str(error).count("\\n"), "the tokenizers library panicked" in str(error))
        spec = json.loads(sys.stdin.read())
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}, {"type": "ByteLevel"}]}
        started = time.monotonic()
        try:
            load_tokenizer(json.dumps(spec), "slow").encode("a" * 50_000 + "b")
        except UsageError as error:
            print(str(error).count("\\n"), "panicked" in str(error))
        print(time.monotonic() - started)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(BPE), capture_output=True, text=True, timeout=120)
    first, second, seconds = done.stdout.splitlines() or pytest.fail(done.stderr)
    assert done.stderr.count("panicked") == 1  # of the first, which `check` never lets through
    assert first == second == "0 True"
    assert float(seconds) < 60
