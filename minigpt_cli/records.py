"""What a run says of itself: the frozen records in run.json and annotations.json. No torch.

run.json carries the checksum of its own content, so that a flipped bit in it is noticed as surely as one in the
weights; `files` names the generation of files that it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from minigpt_cli import durable
from minigpt_cli.errors import RunDamaged

RECORD_SCHEMA_VERSION = 1
Status = Literal["running", "finished", "interrupted", "failed", "crashed"]


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


MaybeLoss = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A number of nats, or None where it was not finite (JSON has no NaN)."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=())


class Best(_Record):
    """The best validation result."""

    step: int = Field(ge=0)
    nats_per_token: float
    nats_per_char: float
    ci95: tuple[float, float] | None = None
    """95 % interval of nats_per_char by block bootstrap; set by the final re-score."""
    whole_split: bool = False
    """Scored on every character of the validation split, not on samples of it."""


class SplitRecord(_Record):
    """One split of the text."""

    sha256: str
    n_tokens: int = Field(ge=0)
    n_chars: int = Field(ge=0)
    n_bytes: int = Field(ge=0)


class Corpus(_Record):
    """The text that a run was trained on."""

    label: str
    sha256: str
    dataset_dir: str = ""
    splits: dict[str, SplitRecord] = {}


class FileRecord(_Record):
    """Size and checksum of a file of this generation (for metrics.jsonl: of its first `bytes` bytes)."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Base(_Record):
    """The run or file whose weights this run started from."""

    run: str
    sha256: str


class Sitting(_Record):
    """One time that the run was continued, and whether it could continue to the bit."""

    step: int
    exact: bool
    reasons: list[str] = []


class RunRecord(_Record):
    """run.json: what was run, on what, and how it ended."""

    schema_version: Literal[1] = 1
    name: str
    status: Status = "running"
    stop_reason: str | None = None
    created_at: str = ""
    """UTC, ISO 8601."""
    updated_at: str = ""
    """UTC, ISO 8601: the last save."""
    argv: list[str] = []
    preset: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    versions: dict[str, str] = {}
    device: str = "cpu"
    device_name: str = ""
    threads: int = 0
    world_size: int = 1
    arch: str = ""
    tokenizer: str = ""
    corpus: Corpus | None = None
    vocab_size: int = Field(0, ge=0)
    n_params: int = Field(0, ge=0)
    n_active_params: int = Field(0, ge=0)
    best: Best | None = None
    final_train_loss: MaybeLoss = None
    """Nats per token."""
    final_val_loss: MaybeLoss = None
    """Nats per token."""
    stop_step: int = Field(0, ge=0)
    tokens_seen: int = Field(0, ge=0)
    elapsed_s: float = Field(0.0, ge=0)
    group: str | None = None
    left_open: dict[str, str | int | float] | None = None
    """What auto, 0 or a time budget left open when training was asked for, by dotted name, as it was asked; config.json has what became
    of it. None: a run from before this was recorded."""
    base: Base | None = None
    files: dict[str, FileRecord] = {}
    """The generation of files that this record belongs to."""
    metrics_bytes: int = Field(0, ge=0)
    """Length of metrics.jsonl in this generation; what is beyond it is dropped on resume."""
    resume_exact_history: list[Sitting] = []

    def to_json(self) -> str:
        """The text of run.json, with its own checksum in it."""
        content = self.model_dump(mode="json")
        return json.dumps({**content, "checksum": _checksum(content)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> RunRecord:
        """The record in the bytes of a run.json. Raises RunDamaged naming `where` if its checksum or schema is wrong."""
        content = durable.parse_json(data, where)
        if not isinstance(content, dict):
            raise RunDamaged(f"{where} is not a record of a run")
        version = content.get("schema_version")
        if isinstance(version, int) and version > RECORD_SCHEMA_VERSION:
            raise RunDamaged(f"{where} has schema_version {version}: it needs a newer minigpt (pip install -U minigpt-cli)")
        checksum = content.pop("checksum", None)
        try:
            if checksum != _checksum(content):
                raise RunDamaged(f"{where} does not match its own checksum: it was damaged or changed by hand")
            return cls.model_validate(content)
        except ValidationError as error:
            raise RunDamaged(f"{where} is not a record of a run: {durable.first_line_of(error.errors())}") from error  # type: ignore[arg-type]
        except (UnicodeEncodeError, RecursionError) as error:
            raise RunDamaged(f"{where} is not a record of a run: {type(error).__name__}") from error


def _checksum(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


class Annotations(_Record):
    """annotations.json: what people say of a run; never touched by training."""

    tags: list[str] = []
    note: str = ""


def now() -> str:
    """The present moment, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
