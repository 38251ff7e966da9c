"""The score on the whole validation text at the end of a training: it says how far it is, and a signal ends it without loss."""

from __future__ import annotations

import re
import signal
import time
from typing import Any

import pytest

from minigpt_cli.commands.signals import StopSignals
from minigpt_cli.display.training_screen import TrainingState
from minigpt_cli.events import Event, Scoring, StopReason
from minigpt_cli.training.trainer import Job, fit


def test_a_signal_during_the_final_score_leaves_a_finished_run_with_the_score_of_training(
    sessions: Any, tiny_config: Any, dataset: Any
) -> None:
    settings = tiny_config()
    run = sessions.begin("run", settings, dataset())
    steps = settings.optim.max_steps
    events = sessions.train(run, settings, dataset(), stop_at=steps + 1)  # training asks after every step, then the final score does
    record, evaluated = run.refresh().record, list(run.metrics())
    assert (record.status, record.stop_reason) == ("finished", StopReason.MAX_STEPS)
    assert record.best is not None
    assert not record.best.whole_split
    assert min(evaluation.nats_per_char or 9 for evaluation in evaluated) == record.best.nats_per_char
    assert (events[-1].event, evaluated[-1].step) == ("stopped", steps)


@pytest.mark.parametrize("presses", [1, 2, 3])
def test_ctrl_c_again_during_the_final_score_leaves_a_finished_run_too(presses: int, sessions: Any, tiny_config: Any, dataset: Any) -> None:
    settings = tiny_config(eval__eval_iters=0)
    run = sessions.begin("run", settings, dataset())
    left = [presses]

    def press(event: Event) -> None:
        while isinstance(event, Scoring) and event.final and left[0]:
            left[0] -= 1
            signal.raise_signal(signal.SIGINT)

    with sessions.store.lock(run), StopSignals() as signals:
        signals.wait_for_save(lambda message: None)
        events = list(fit(Job(run, settings, dataset()), signals.poll, press))
    record = run.refresh().record
    assert not left[0] or presses > 2  # the second press ends the score at once
    assert (record.status, record.stop_reason) == ("finished", StopReason.MAX_STEPS)
    assert record.best is not None
    assert record.best.ci95 is None  # the score of training
    assert events[-1].event == "stopped"


def test_the_final_score_and_evaluations_tell_how_far_they_are(sessions: Any, tiny_config: Any, dataset: Any) -> None:
    settings, shown = tiny_config(eval__eval_iters=0), list[Scoring]()
    run = sessions.begin("run", settings, dataset())
    with sessions.store.lock(run):
        list(fit(Job(run, settings, dataset()), show=shown.append))
    for final in (True, False):
        amounts = [event.done for event in shown if event.final is final]
        assert amounts[-1] == len(dataset().val.tokens)
        assert all(event.done <= event.total for event in shown)


def test_the_screen_shows_how_long_the_final_score_takes() -> None:
    screen = TrainingState()
    for done in (0, 250):
        screen.add(Scoring(run="run", step=12, final=True, done=done, total=1000))
        time.sleep(0.02)
    assert re.fullmatch(r"scoring the whole validation text · 0\.\d s left", screen.scoring_words())
