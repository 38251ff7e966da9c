"""Trackers: the same numbers, read back by TensorBoard's own reader; others through their interface."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from minigpt_cli.display import tracking
from minigpt_cli.errors import MissingExtra, UsageError
from minigpt_cli.events import Evaluated, Progress, Stopped


def evaluated(step: int, **changes: Any) -> Evaluated:
    values: dict[str, Any] = {
        "run": "r", "step": step, "train_loss": 2.0 / step, "val_loss": 2.5 / step, "nats_per_char": 1.25, "lr": 1e-3,
        "tokens_seen": 100 * step, "tokens_per_s": 1000.0, "elapsed_s": 0.5, "is_best": True, "patience_left": 3,
        "expert_load": [[0.25, 0.75], [0.5, 0.5]],
    }  # fmt: skip
    return Evaluated(**values | changes)


STOPPED = Stopped(
    run="r", step=20, stop_reason="max_steps", best_step=20, best_val_loss=0.125, best_nats_per_char=0.1, elapsed_s=2.0, tokens_seen=2000
)
BEAT = Progress(run="r", step=5, train_loss=1.0, lr=1e-3, tokens_seen=10, tokens_per_s=1.0, elapsed_s=1.0)


def test_tensorboard_reads_back_every_number(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    with tracking.tracking(["tensorboard"], tmp_path, "r", {"seed": 1}) as trackers:
        for event in (BEAT, evaluated(10), evaluated(20, val_loss=None), STOPPED):
            trackers.show(event)
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    tags = set(reader.Tags()["scalars"])
    assert {"train_loss", "val_loss", "nats_per_char", "lr", "tokens_per_s", "expert_load/layer1/expert0", "best_val_loss"} <= tags
    assert [(e.step, e.value) for e in reader.Scalars("train_loss")] == [(10, pytest.approx(0.2)), (20, pytest.approx(0.1))]
    assert [e.step for e in reader.Scalars("val_loss")] == [10]  # a loss that was not finite is not a number
    assert reader.Scalars("expert_load/layer0/expert1")[0].value == 0.75


class FakeClient(ModuleType):
    """What trackio and wandb have in common."""

    def __init__(self, name: str, broken: bool = False) -> None:
        super().__init__(name)
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.started: dict[str, Any] = {}
        self.finished = False
        self.broken = broken

    def init(self, **settings: Any) -> None:
        self.started = settings

    def log(self, values: dict[str, float], step: int) -> None:
        if self.broken:
            raise RuntimeError("no network")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_clients_get_configuration_rows_and_an_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    client = FakeClient(name)
    monkeypatch.setitem(sys.modules, name, client)
    with tracking.tracking([name, name], tmp_path, "my-run", {"seed": 1}) as trackers:
        trackers.show(BEAT)
        trackers.show(evaluated(10))
    assert client.started == {"project": "minigpt", "name": "my-run", "config": {"seed": 1}}
    assert [step for step, _ in client.rows] == [10]
    assert client.rows[0][1]["val_loss"] == 0.25
    assert client.finished


def test_a_tracker_that_fails_is_named_once_and_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeClient("wandb", broken=True))
    with tracking.tracking(["wandb"], tmp_path, "r", {}) as trackers:
        trackers.show(evaluated(10))
        trackers.show(evaluated(20))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("no network") == 1


def test_unknown_and_missing_trackers_are_refused_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="did you mean 'tensorboard'"):
        tracking.check_trackers(["tensorbored"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"minigpt-cli\[trackio\]"):
        tracking.check_trackers(["trackio"])
