"""What training says while it works. Each is a line of `train --json`; `Evaluated` is also the line in metrics.jsonl.

One object, several readers: the screen, the run directory, scripts. Times are seconds, losses nats per token.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

StopReason = Literal[
    "max_steps",
    "early_stopping",
    "interrupted_keyboard",
    "terminated",
    "time_limit",
    "target_loss",
    "diverged",
    "plateau",
    "pruned",
    "failed",
]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")

    run: str
    step: int


class Started(_Event):
    """Everything is decided and step 0 is next."""

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
    notices: list[str] = []  # decisions and warnings, a line each


class Progress(_Event):
    """A heartbeat between evaluations, for the screen alone: never stored, never in --json."""

    event: Literal["progress"] = "progress"
    train_loss: float | None  # running mean since the last evaluation, when known without waiting for the device
    lr: float
    tokens_seen: int
    tokens_per_s: float
    elapsed_s: float


class Evaluated(_Event):
    """One evaluation."""

    event: Literal["evaluated"] = "evaluated"
    train_loss: float | None  # nats per token
    val_loss: float | None  # nats per token; None where it was not finite
    nats_per_char: float | None  # of the validation text
    lr: float
    tokens_seen: int
    tokens_per_s: float
    elapsed_s: float  # of training, over all sittings
    is_best: bool
    patience_left: int | None = None  # None: no early stopping
    grad_norm: float | None = None
    expert_load: list[list[float]] | None = None  # share of tokens by layer and expert
    router_entropy: float | None = None  # nats, mean over layers


class Saved(_Event):
    """A generation of checkpoint files is safely on disk."""

    event: Literal["saved"] = "saved"


class Resumed(_Event):
    """Training goes on from `step`."""

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


Event = Started | Progress | Evaluated | Saved | Resumed | Skipped | Stopped
