"""The settings of a text: where it comes from, and how it is cut, split and drawn. config.py has all others, and offers these too."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from minigpt_cli.bounds import COUNT_LIMIT, Encoding, Line, Lines, OneOrSeveral


class Frozen(BaseModel):
    """A part of a configuration: it never changes, knows no other field, and its docstrings are help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=())


class DataConfig(Frozen):
    """Which text, cut into which tokens."""

    source: OneOrSeveral = ""
    """File, folder, '-' for stdin, URL, hf:OWNER/DATASET or named corpus, or several; empty: data/input.txt if there, else python-docs."""
    documents: Line = "auto"
    """What one document is: auto (a file, or a row of a file of rows), file, lines (each line), or a MARK: the text between lines that are
    exactly MARK, without the blank lines around it."""
    text_field: Line = "text"
    """The field of a row, or column of a table, that holds the text."""
    encoding: Encoding = ""
    """Encoding of texts that are not UTF-8, or UTF-16 or UTF-32 with a byte-order mark; such as cp1251."""
    include: Lines = ()
    """Of a folder, read only the files that match this pattern, such as '*.md'; may be repeated."""
    exclude: Lines = ()
    """Of a folder, leave out the files that match this pattern; may be repeated."""
    val: Lines = ()
    """Validate on this source, and train on all of the other; may be repeated."""
    test: Lines = ()
    """With --val: a source that only `eval --split test` reads; may be repeated."""
    tokenizer: Line = "char"
    """char, byte, bpe, gpt2, or a tokenizer.json or SentencePiece .model file."""
    vocab_size: int = Field(512, ge=257, le=1 << 20)
    """Vocabulary to train; used with --tokenizer bpe."""
    new_characters: bool = Field(False, json_schema_extra={"flag": False})
    """Whether a character tokenizer from a file gets the characters of the text that it lacks; written by --init-from."""
    min_pair_freq: int = Field(2, ge=1, le=COUNT_LIMIT)
    """Pairs rarer than this are not merged; used with --tokenizer bpe."""
    lowercase: bool = False
    """Read the text in lowercase."""
    normalize: Literal["off", "nfc"] = "off"
    """Unicode normal form of the text; nfc: a letter and its accents are one character, where there is one."""
    ascii_only: bool = False
    """Drop every character outside ASCII."""
    max_chars: int = Field(0, ge=0, le=COUNT_LIMIT)
    """Train on the first N characters of the training text only (of 500,000 and more: from all over it), and validate on the same text
    as without; 0: on all."""
    train_frac: float = Field(0.9, gt=0, lt=1)
    """Share of the text that is trained on: of one document its beginning, of many some of them."""
    test_frac: float = Field(0.0, ge=0, lt=1)
    """Share of the text that only `eval --split test` reads."""
    sampling: Literal["epoch", "random"] = "epoch"
    """Order of training windows: each once an epoch with a shifting offset, or drawn at random with replacement."""
    document_mask: bool = False
    """Of several documents in a window, let no token attend to those of an earlier document, in training and in every score."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources, one or several."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @model_validator(mode="after")
    def _splits_leave_validation(self) -> DataConfig:
        if self.train_frac + self.test_frac >= 1:
            both = f"--train-frac {self.train_frac} and --test-frac {self.test_frac}"
            raise ValueError(f"{both} leave nothing to validate on: lower one, as in --train-frac 0.8")
        if self.test and not self.val:
            raise ValueError("--test needs --val too, or use --test-frac")
        if self.val and (self.train_frac != 0.9 or self.test_frac):
            raise ValueError("--val stands for --train-frac and --test-frac: leave these out")
        return self


READING = ("documents", "text_field", "encoding", "include", "exclude")
"""The settings that say how a source is read."""

CLEANING = ("normalize", "lowercase", "ascii_only")
"""The settings that change the characters of a text."""
