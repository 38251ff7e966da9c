"""The frozen records in run.json and annotations.json. No torch.

Every value has one of the types in bounds.py, so that all records can be shown, added and compared. run.json has a checksum of
its own content, so that a flipped bit in it is found, as in the weights. `files` names the generation of files of this record.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minigpt_cli.bounds import Count, Figure, Line, MaybeNats, Moment, Nats, Seconds, Text
from minigpt_cli.errors import MiniGPTError, RunDamaged
from minigpt_cli.events import StopReason
from minigpt_cli.storage import atomic_io

RECORD_SCHEMA_VERSION = 1
Status = Literal["running", "finished", "interrupted", "failed", "crashed"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=())


class Best(_Record):
    """The best validation result."""

    step: Count
    nats_per_token: Nats
    nats_per_char: Nats
    ci95: tuple[Nats, Nats] | None = None
    """95 % interval of nats_per_char by block bootstrap; set by the final re-score."""
    whole_split: bool = False
    """Scored on every character of the validation split, not on samples of it."""


class SplitRecord(_Record):
    """One split of the text."""

    sha256: Line
    n_tokens: Count
    n_chars: Count
    n_bytes: Count


Share = Annotated[float, Field(ge=0, le=1)]
KEPT_LIMIT = 1000  # checkpoints over time: run.json names each, and is written at every save


class Leak(_Record):
    """How much of the validation text stands word for word in the training text (data/leak.py)."""

    run: ClassVar[int] = 50
    """Characters of the shortest run that counts."""
    share: Share
    """The part of the validation text that does."""
    n_chars: Count
    """Characters of it that were looked for."""
    of_val: Share = 1.0
    """The part of the validation text that these are: a large one is sampled."""
    of_train: Share = 1.0
    """The part of the training text in which they were looked for."""

    @property
    def in_words(self) -> str:
        """The result as a sentence."""
        sample = " (estimated from a sample)" if self.of_val < 1 else ""
        least, read = ("at least ", f"; {self.of_train:.0%} of it was read") if self.of_train < 1 else ("", "")
        share = f"{least}{self.share:.1%} of the validation text{sample}"
        return f"{share} stands word for word in the training text, in runs of {self.run} characters and more{read}"


FETCHED_FILES, FETCHED = 20, 100  # files of a dataset that are named, and addresses of a text


class Fetched(_Record):
    """A text from the network, as it came."""

    address: Line
    sha256: Line = ""
    """Of the file at a web address."""
    commit: Line = ""
    """Of a dataset of the Hugging Face hub."""
    files: list[Line] = Field([], max_length=FETCHED_FILES)
    """The first of the dataset's files that were read."""
    n_files: Count = 1


class Corpus(_Record):
    """The text that a run was trained on."""

    label: Line
    sha256: Line
    cut: Line = "character"
    """How the splits were made (data/splitting.py)."""
    n_documents: Count = 1
    """More than one: each ends in an end-of-text token."""
    dataset_dir: Line = ""
    leak: Leak | None = None
    """None: it was not measured, as in old records."""
    fetched: list[Fetched] = Field([], max_length=FETCHED)
    """What came from the network."""
    chats: bool | None = None  # whether it is conversations; None, as in old records: where the label ends in .jsonl
    splits: dict[Line, SplitRecord] = Field({}, max_length=16)


class FileRecord(_Record):
    """Size and checksum of a file of this generation (for metrics.jsonl: of its first `bytes` bytes)."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: Count


class Base(_Record):
    """A model that this run started from or learns from, by its name and the hash of its weights."""

    run: Line
    sha256: Line


class Session(_Record):
    """One time that the run was continued, and whether it could continue to the bit."""

    step: Count
    exact: bool
    reasons: list[Text] = Field([], max_length=1000)


class RunRecord(_Record):
    """run.json: what was run, on what, and how it ended."""

    schema_version: Literal[1] = 1
    name: Line
    status: Status = "running"
    stop_reason: StopReason | None = None
    created_at: Moment = ""
    updated_at: Moment = ""
    """The last save."""
    placed_at: Moment = ""
    """The same, but later than every save that was in this folder when the run was started or resumed. `latest` uses it, because a clock
    can be set back. '' until it is saved."""
    argv: list[Text] = Field([], max_length=10_000)
    preset: Line | None = None
    git_commit: Line | None = None
    git_dirty: bool | None = None
    versions: dict[Line, Line] = Field({}, max_length=1000)
    device: Line = "cpu"
    device_name: Line = ""
    threads: Count = 0
    world_size: Count = 1
    computed_by: dict[Line, Line] = Field({}, max_length=1000)
    """What the last bits depend on, other than the configuration: versions, kernels, processor, threads, variables that libraries read."""
    arch: Line = ""
    tokenizer: Line = ""
    corpus: Corpus | None = None
    vocab_size: Count = 0
    n_params: Count = 0
    n_active_params: Count = 0
    best: Best | None = None
    final_train_loss: MaybeNats = None
    """Nats per token."""
    final_val_loss: MaybeNats = None
    """Nats per token."""
    stop_step: Count = 0
    tokens_seen: Count = 0
    elapsed_s: Seconds = 0.0
    group: Line | None = None
    left_open: Annotated[dict[Line, Line | Count | Figure], Field(max_length=1000)] | None = None
    """The settings that auto, 0 or a time budget left open, by dotted name, as they were given; config.json has their final values.
    None: a run from before this was recorded."""
    base: Base | None = None
    teacher: Base | None = None
    """The model that the run learns from beside the text, in its own folder."""
    files: dict[Line, FileRecord] = Field({}, max_length=100)
    """The generation of files that this record belongs to."""
    kept: dict[Line, FileRecord] = Field({}, max_length=KEPT_LIMIT)
    """Checkpoints over time (--keep-every) by file name; they belong to the run, whatever generation is read."""
    metrics_bytes: Count = 0
    """Length of metrics.jsonl in this generation; what is beyond it is dropped on resume."""
    resume_exact_history: list[Session] = Field([], max_length=100_000)

    @property
    def text_sha256(self) -> str:
        """The hash of the validation text that the best was scored on; '' where it is not known."""
        split = self.corpus.splits.get("val") if self.corpus else None
        return split.sha256 if split else ""

    @property
    def place(self) -> str:
        """The run's place in the order of saves, the last saved last; without `placed_at` (minigpt 0.1) its time."""
        return self.placed_at or self.updated_at or self.created_at

    def to_json(self) -> str:
        """The text of run.json, with its own checksum in it. Raises MiniGPTError for what could not be read again."""
        content = self.model_dump(warnings=False)  # where `model_copy` let something in, the next line says so
        try:
            content = type(self).model_validate(content).model_dump(mode="json")
        except ValidationError as error:
            raise MiniGPTError(f"run {self.name!r} cannot be recorded: {atomic_io.first_line_of(error.errors())}") from error  # type: ignore[arg-type]
        return json.dumps({**content, "checksum": _checksum(content)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> RunRecord:
        """The record in the bytes of a run.json. Raises RunDamaged naming `where` if its checksum or schema is wrong."""
        content = atomic_io.parse_json(data, where)
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
            raise RunDamaged(f"{where} is not a record of a run: {atomic_io.first_line_of(error.errors())}") from error  # type: ignore[arg-type]
        except (UnicodeEncodeError, RecursionError) as error:
            raise RunDamaged(f"{where} is not a record of a run: {type(error).__name__}") from error


def _checksum(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


Tag = Annotated[Line, Field(max_length=60)]


class Annotations(_Record):
    """annotations.json: tags and note of a run; training never changes it."""

    tags: list[Tag] = Field([], max_length=1000)
    note: Text = ""


def now() -> str:
    """The present moment, UTC, ISO 8601."""
    return _written(datetime.now(UTC))


def later_than(moment: str) -> str:
    """The next moment; '' after ''."""
    return _written(datetime.fromisoformat(moment) + timedelta(microseconds=1)) if moment else ""


def _written(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
