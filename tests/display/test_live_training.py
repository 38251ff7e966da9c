"""The live view: what it shows at every width and height, and what it makes of events."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from minigpt_cli.display.live_training import LiveTable, PlainLines, resizable_live
from minigpt_cli.display.terminal_chart import Curve, terminal_chart
from minigpt_cli.display.training_screen import TrainingScreen, TrainingState, evaluation_line, loss_curves
from minigpt_cli.events import Evaluated, Event, Progress, Resumed, Skipped, Started, Stopped


def started(**changes: Any) -> Started:
    content: dict[str, Any] = {
        "run": "modern-1",
        "step": 0,
        "arch": "moe",
        "n_params": 795_321,
        "n_active_params": 500_000,
        "vocab_size": 65,
        "train_tokens": 10**6,
        "val_tokens": 10**5,
        "max_steps": 1300,
        "device": "cpu",
        "precision": "bf16",
        "attention": "plain",
        "compiled": False,
        "notices": [],
    }
    return Started(**(content | changes))


def evaluated(step: int, **changes: Any) -> Evaluated:
    loss = 1.45 + 2 * math.exp(-step / 250)
    content: dict[str, Any] = {
        "run": "modern-1",
        "step": step,
        "train_loss": loss - 0.05,
        "val_loss": loss,
        "nats_per_char": loss / 2.1,
        "lr": 3e-3,
        "tokens_seen": 4096 * step,
        "tokens_per_s": 36_100.0,
        "elapsed_s": 0.11 * step,
        "is_best": True,
        "patience_left": 5,
        "router_entropy": 1.37,
        "expert_load": [[0.25, 0.3, 0.2, 0.25]] * 4,
    }
    return Evaluated(**(content | changes))


def screen(events: list[Event], width: int, height: int) -> str:
    state = TrainingState()
    for event in events:
        state.add(event)
    out = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False)
    out.print(TrainingScreen(state))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


EVENTS: list[Event] = [started(), *(evaluated(65 * i) for i in range(1, 20))]
BEAT = Progress(run="modern-1", step=1250, train_loss=1.33, lr=2e-4, tokens_seen=4096 * 1250, tokens_per_s=40_000, elapsed_s=140)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("height", [24, 40, 60])
def test_everything_fits_and_essentials_are_there(width: int, height: int) -> None:
    text = screen([*EVENTS, BEAT], width, height)
    lines = text.splitlines()
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    assert "step 1,250/1,300" in lines[0]
    assert "left" in lines[0]
    if width < 80:
        return
    for word in ("step", "train", "val", "nats/char", "lr", "tokens/s", "time", "★", "1,235", "left", "patience 5", "experts", "1.33"):
        assert word in text, word
    assert "…" not in text


@pytest.mark.parametrize("height", [5, 8, 10])
def test_progress_is_first_and_stays_on_a_low_terminal(height: int) -> None:
    first, *rest = screen([*EVENTS, BEAT], 80, height).splitlines()
    assert "step 1,250/1,300" in first
    assert rest


def test_characters_have_one_loss_and_other_tokens_two() -> None:
    per_token = screen(EVENTS, 120, 40)
    assert "nats per token, against steps" in per_token
    assert " val " in per_token
    of_characters = screen([started(), *(evaluated(65 * i, nats_per_char=evaluated(65 * i).val_loss) for i in range(1, 20))], 120, 40)
    assert "nats per character, against steps" in of_characters
    assert " val " not in of_characters


def test_curves_have_an_axis_on_the_left_and_their_names_at_their_ends() -> None:
    lines = screen(EVENTS, 100, 50).splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith("against steps"))
    assert all(re.match(r" *[\d.]* │", line) for line in lines[at + 1 : at + 5])
    assert [name for name in ("training", "validation") if any(line.endswith(f" {name}") for line in lines[at:])] == [
        "training",
        "validation",
    ]


@pytest.mark.parametrize("width", [120, 200])
def test_a_wide_screen_has_the_curves_beside_the_table(width: int) -> None:
    lines = screen([*EVENTS, BEAT], width, 24).splitlines()
    assert sum("│" in line and ":" in line for line in lines) > 5
    assert max(map(len, (line.rstrip() for line in lines))) > 0.9 * width


def test_a_long_name_of_a_curve_is_shortened_in_its_middle() -> None:
    curves = [Curve(f"sweep~arch=classic,seed={seed}", [0, 1], [seed, 1]) for seed in (1, 2)]
    chart = terminal_chart(curves, width=80, height=8, colour=False)
    assert "sweep~arc…sic,seed=1" in chart
    assert "sweep~arc…sic,seed=2" in chart


def test_curves_differ_without_colour() -> None:
    flat = [Curve(name, [0, 100], [y, y]) for name, y in (("a", 1.0), ("b", 2.0))]
    rows = [line.partition("│")[2] for line in terminal_chart(flat, width=60, height=8, colour=False).splitlines()]
    below, above = ({*row.split()[0]} for row in (next(r for r in rows if r.endswith(" a")), next(r for r in rows if r.endswith(" b"))))
    assert below != above


@example([[(2.225073858507e-311, -10.0)]], 30, 3)
@given(
    st.lists(st.lists(st.tuples(st.floats(0, 9e9), st.floats(-99, 99)), max_size=5), max_size=4), st.integers(20, 200), st.integers(1, 20)
)
def test_a_chart_of_any_curves_fits(points: list[list[tuple[float, float]]], width: int, height: int) -> None:
    curves = [Curve(f"curve {i}", *zip(*sorted(pairs), strict=True)) for i, pairs in enumerate(points) if pairs]
    lines = terminal_chart(curves, width=width, height=height, colour=False).splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) in (0, height + 2)


def test_a_new_size_of_the_terminal_leaves_nothing_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Console(file=io.StringIO(), width=100, height=30, force_terminal=True, legacy_windows=False)
    state = TrainingState(started(), [evaluated(65)])
    with resizable_live(TrainingScreen(state), out) as live:
        live.refresh()
        before = out.file.tell()
        out.width = 60
        live.refresh()
        out.file.seek(before)
        assert out.file.read().startswith("\x1b[2J\x1b[H")


@pytest.mark.parametrize("width", [40, 100])
def test_notices_of_the_start_stand_whole_above_the_table(width: int) -> None:
    out = Console(file=io.StringIO(), width=width, height=30, force_terminal=True, no_color=True, legacy_windows=False)
    notices = [f"plan: line {i} says why, in so many words that a narrow terminal breaks it" for i in range(4)]
    with LiveTable(out) as view:
        view.show(started(notices=notices))
    words = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.file.getvalue()).split())
    assert [words.count(notice) for notice in notices] == [1] * 4


def test_a_small_terminal_drops_the_curve_and_not_the_table() -> None:
    assert "against steps" in screen(EVENTS, 100, 50)
    small = screen(EVENTS, 80, 16)
    assert "against steps" not in small
    assert "nats/char" in small


def test_best_is_marked_once_and_stays_visible() -> None:
    later = [evaluated(65 * i, is_best=i <= 3) for i in range(1, 40)]
    text = screen([started(), *later], 100, 30)
    assert text.count("★") == 1
    assert next(line for line in text.splitlines() if "★" in line).split()[0] == "195"


def test_remaining_time_follows_speed_and_limit() -> None:
    state = TrainingState()
    for event in (started(), evaluated(1000, tokens_per_s=4096.0, elapsed_s=1000.0)):
        state.add(event)
    assert state.remaining_s == pytest.approx(300)
    state.time_limit_s = 1100
    assert state.remaining_s == pytest.approx(100)


def test_losses_that_are_not_finite_show_as_a_dash_and_leave_the_curve() -> None:
    events = [evaluated(10), evaluated(20, val_loss=None, nats_per_char=None, train_loss=None, is_best=False), evaluated(30)]
    assert "train -  val -  nats/char -" in evaluation_line(events[1], 100)
    assert [list(curve.xs) for curve in loss_curves(events)] == [[10, 30], [10, 30]]


def test_off_a_terminal_each_evaluation_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainLines() as view:
        for event in (started(), BEAT, evaluated(65), Skipped(run="modern-1", step=70, reason="loss nan")):
            view.show(event)
        view.show(Resumed(run="modern-1", step=70, exact=False, notices=["torch was 2.12 and is now 2.13"]))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == ["modern-1:", "step", "Warning:", "torch", "modern-1:"]


def test_the_end_of_the_run_is_on_the_screen() -> None:
    end = Stopped(
        run="modern-1",
        step=1235,
        stop_reason="early_stopping",
        best_step=1235,
        best_val_loss=1.4,
        best_nats_per_char=1.4,
        elapsed_s=1,
        tokens_seen=1,
    )
    assert "stopped early" in screen([*EVENTS, end], 100, 40)
