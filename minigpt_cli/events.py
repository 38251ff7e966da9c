"""The events of training. Each is a line of `train --json`; `Evaluated` is also a line of metrics.jsonl,
and `Sampled` one of samples.jsonl.

The screen, the run directory and scripts read the same objects. The values in these files are bounded (bounds.py). Times are seconds,
losses nats per token.
"""

from __future__ import annotations

from enum import StrEnum
from signal import SIGINT, SIGTERM
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from minigpt_cli.bounds import Count, Figure, Line, MaybeFigure, MaybeNats, Seconds, Text


class StopReason(StrEnum):
    """Why a run ended, as run.json and `train --json` write it. Of several reasons at once the last in this list counts."""

    TIME_LIMIT = "time_limit"
    MAX_STEPS = "max_steps"
    EARLY_STOPPING = "early_stopping"
    PLATEAU = "plateau"
    TARGET_LOSS = "target_loss"
    DIVERGED = "diverged"
    PRUNED = "pruned"  # a search asked for it
    INTERRUPTED_KEYBOARD = "interrupted_keyboard"  # SIGINT
    TERMINATED = "terminated"  # SIGTERM, a lost terminal, or closed output
    FAILED = "failed"  # an error that training could not handle
    IMPORTED = "imported"  # made from other weights, not trained here

    @property
    def strength(self) -> int:
        """At least 1; of several reasons the one with the largest number counts."""
        return list(StopReason).index(self) + 1

    @property
    def status(self) -> Literal["finished", "interrupted", "failed"]:
        """The status in the record of a run that ended for this reason."""
        if self in (StopReason.DIVERGED, StopReason.FAILED):
            return "failed"
        return "finished" if self.signal_number is None else "interrupted"

    @property
    def signal_number(self) -> int | None:
        """The number of the signal behind this reason; None for other reasons."""
        return {StopReason.INTERRUPTED_KEYBOARD: int(SIGINT), StopReason.TERMINATED: int(SIGTERM)}.get(self)


_Shares = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(max_length=1024)]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")

    run: Line
    step: Count


class Started(_Event):
    """Everything is decided and training starts."""

    event: Literal["started"] = "started"
    arch: str
    n_params: int
    n_active_params: int
    vocab_size: int
    train_tokens: int
    val_tokens: int
    max_steps: int
    device: str
    precision: str
    attention: str
    compiled: bool
    tokens_per_step: int = 0
    notices: list[str] = []  # decisions and warnings, a line each


class Progress(_Event):
    """The state between evaluations, only for the screen: never stored, never in --json."""

    event: Literal["progress"] = "progress"
    train_loss: float | None  # nats per token, of the last step's batch only; None where it was not finite
    lr: float
    tokens_seen: int
    tokens_per_s: float
    elapsed_s: float


class Scoring(_Event):
    """The progress of an evaluation or of the final score, only for the screen: never stored, never in --json."""

    event: Literal["scoring"] = "scoring"
    final: bool
    done: int  # tokens of the validation text
    total: int


class Sampling(_Event):
    """A sample so far, only for the screen: never stored, never in --json."""

    event: Literal["sampling"] = "sampling"
    prompt: str
    text: str


class Sampled(_Event):
    """What the model writes at this step: a line of samples.jsonl."""

    event: Literal["sampled"] = "sampled"
    prompt: Text
    text: Text  # the continuation alone


class Evaluated(_Event):
    """One evaluation."""

    event: Literal["evaluated"] = "evaluated"
    train_loss: MaybeNats  # nats per token
    val_loss: MaybeNats  # nats per token; None where it was not finite
    nats_per_char: MaybeNats  # of the validation text
    lr: Figure
    tokens_seen: Count
    tokens_per_s: Figure
    elapsed_s: Seconds  # of training, over all sessions
    is_best: bool
    patience_left: Count | None = None  # None: no early stopping
    grad_norm: MaybeFigure = None
    expert_load: Annotated[list[_Shares], Field(max_length=1024)] | None = None  # share of tokens by layer and expert
    router_entropy: MaybeFigure = None  # nats, mean over layers


class Planned(_Event):
    """The number of steps was changed to keep the time budget."""

    event: Literal["planned"] = "planned"
    max_steps: int


class Saved(_Event):
    """A generation of checkpoint files is safely on disk."""

    event: Literal["saved"] = "saved"


class Resumed(_Event):
    """Training continues from `step`."""

    event: Literal["resumed"] = "resumed"
    exact: bool
    notices: list[str] = []


class Skipped(_Event):
    """A step was not applied because its loss or gradient was not finite."""

    event: Literal["skipped"] = "skipped"
    reason: str


class Stopped(_Event):
    """The end, after the last save."""

    event: Literal["stopped"] = "stopped"
    stop_reason: StopReason
    best_step: int | None
    best_val_loss: float | None  # nats per token, whole split where re-scored
    best_nats_per_char: float | None
    elapsed_s: float
    tokens_seen: int


Event = Started | Progress | Scoring | Sampling | Sampled | Evaluated | Planned | Saved | Resumed | Skipped | Stopped
