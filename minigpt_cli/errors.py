"""All errors that users see, in one tree.

MiniGPTError            1  failed at work
├── UsageError          2  wrong usage, configuration or input
│   ├── TextTooShort    2  a split that cannot fill one block plus its target
│   ├── UnknownCharacters  2  a text has characters that the tokenizer lacks
│   ├── RunNotFound     2  no such run, or an ambiguous prefix
│   └── MissingExtra    2  a feature whose optional dependency is not installed
├── RunDamaged          1  a run directory that cannot be trusted or read
├── RunLocked           1  another process writes to this run
└── Diverged            3  training produced non-finite numbers and stopped

Interrupted           130  SIGINT, or 143 for SIGTERM, after saving: not in the tree, like KeyboardInterrupt

The number is the exit code. `str(error)` is one line that says what is wrong, where, and what to do; only `cli.py` prints it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches


class MiniGPTError(Exception):
    """A failure with a one-line message that says what to do."""

    exit_code = 1


class UsageError(MiniGPTError):
    """The command line, the configuration or the input is wrong; nothing was written."""

    exit_code = 2


class TextTooShort(UsageError):
    """A split has too few tokens to fill one block and its target."""


class UnknownCharacters(UsageError):
    """A text has characters that the tokenizer does not know."""


class RunNotFound(UsageError):
    """No run has this name, or several begin with it."""


class MissingExtra(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}': pip install 'minigpt-cli[{extra}]'")


class RunDamaged(MiniGPTError):
    """A run directory is incomplete, foreign, or fails its checksums."""


class RunLocked(MiniGPTError):
    """Another living process is training in this run directory."""


class Diverged(MiniGPTError):
    """Training had non-finite numbers in too many steps."""

    exit_code = 3


class Interrupted(BaseException):
    """A signal ended the work after everything was saved; `signal_number` is 2 or 15. Not an Exception: a handler may raise it
    anywhere, also inside library code that catches every Exception."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number, self.exit_code = signal_number, 128 + signal_number


_SYNONYMS = {
    "learning_rate": "lr", "max_lr": "lr", "steps": "max_steps", "max_iters": "max_steps", "iters": "max_steps", "layers": "n_layer",
    "num_layers": "n_layer", "heads": "n_head", "num_heads": "n_head", "width": "n_embd", "hidden_size": "n_embd", "d_model": "n_embd",
    "embed_dim": "n_embd", "context": "block_size", "context_length": "block_size", "seq_len": "block_size", "model": "arch",
    "architecture": "arch", "wd": "weight_decay", "warmup": "warmup_steps", "warmup_iters": "warmup_steps", "name": "run",
    "score": "nats_per_char", "loss": "val_loss", "time": "elapsed_s", "params": "n_params", "tags": "tag",
    "tokeniser": "tokenizer", "opt": "optimizer", "epochs": "max_steps", "batch": "batch_size", "bs": "batch_size", "gpu": "device",
    "minutes": "time_budget", "max_time": "time_budget", "temp": "temperature", "max_tokens": "max_new_tokens", "length": "max_new_tokens",
    "samples": "num_samples", "file": "data", "input": "data", "run_name": "name",
}  # fmt: skip
_SHOWN = 12  # names in one line


def synonym(name: str, known: Collection[str]) -> str | None:
    """What another tool's name for a setting or a field is called here."""
    here = _SYNONYMS.get(name.strip("-").replace("-", "_"))
    return here if here in known else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in `known`, with the nearest ones first."""
    known = list(known)
    same = synonym(name, known)
    near = [same] if same else get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    else:
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        hint = f"known: {', '.join(sorted(known)[:_SHOWN])}{more}"
    return UsageError(f"unknown {kind} {name!r}: {hint}")
