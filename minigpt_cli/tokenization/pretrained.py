"""Tokenizers that others made: GPT-2's, and any Hugging Face tokenizer.json (or a folder with vocab.json and merges.txt).

`load_tokenizer` also reopens the ones made here; char and byte are recognised and get their NumPy tables back.
"""

from __future__ import annotations

import json
from pathlib import Path

from minigpt_cli.tokenization.bpe import ByteTokenizer
from minigpt_cli.tokenization.bytelevel import bytes_of
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.contract import Tokenizer
from minigpt_cli.tokenization.library import LibraryTokenizer

JSON_LIMIT = 48 << 20  # bytes; the largest in common use (256,000 tokens) has 33 MB


def load_tokenizer(source: Path | str, name: str = "") -> Tokenizer:
    """The tokenizer of a tokenizer.json: a path, or the JSON text itself (which begins with a brace)."""
    if isinstance(source, str) and source.lstrip().startswith("{"):
        text, name = source, name or "tokenizer.json"
    else:
        path = Path(source)
        text, name = path.read_text("utf-8"), name or path.name
    spec = json.loads(text)
    vocab = spec["model"]["vocab"]
    if spec["model"]["type"] == "WordLevel" and all(len(t) == 1 for t in vocab):
        return CharTokenizer([ord(t) for t, _ in sorted(vocab.items(), key=lambda item: item[1])])
    if spec == json.loads(ByteTokenizer().to_json()):
        return ByteTokenizer()
    token_of_id = {i: token for token, i in vocab.items()}
    token_bytes = [bytes_of(token_of_id.get(i, "")) or b"" for i in range(max(token_of_id) + 1)]
    return LibraryTokenizer(text, token_bytes, name)
