"""Faults during a training run: numbers that are not finite, full disks, kills in the loop, memory that runs out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from minigpt_cli import checkpoints
from minigpt_cli.errors import Diverged, MiniGPTError, UsageError
from minigpt_cli.evaluation.recipes import recipe_of
from minigpt_cli.events import Evaluated, Resumed, Skipped, Started, StopReason
from minigpt_cli.runstore.directory import Run
from minigpt_cli.training import memory, planner, resuming, state
from minigpt_cli.training.evaluator import Evaluator, Measured
from minigpt_cli.training.schedules import lr_factor

Poison = Callable[[Callable[[int], bool]], None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Makes the loss of every step for which `strikes(number of forward passes so far)` holds not a number."""
    real = state._loss

    def arm(strikes: Callable[[int], bool]) -> None:
        calls = 0

        def loss(model: Any, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal calls
            calls += 1
            total, cross_entropy = real(model, x, *rest)
            return (total * math.nan, cross_entropy * math.nan) if strikes(calls) else (total, cross_entropy)

        monkeypatch.setattr(state, "_loss", loss)

    return arm


def strict_lines(run: Run) -> list[dict[str, Any]]:
    """metrics.jsonl, by a reader that knows no NaN."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} in metrics.jsonl")

    return [json.loads(line, parse_constant=refuse) for line in run.file("metrics.jsonl").read_text().splitlines()]


# ---- numbers that are not finite


def test_a_step_that_is_not_finite_is_not_applied_and_is_recorded(sessions: Any, dataset: Any, tiny_config: Any, poison: Poison) -> None:
    settings = tiny_config(optim__max_steps=4, eval__eval_every=1)
    run = sessions.begin("run", settings, dataset())
    poison(lambda call: call == 3)
    events = sessions.train(run, settings, dataset())
    assert [e.step for e in events if isinstance(e, Skipped)] == [3]
    losses = {e.step: e.val_loss for e in events if isinstance(e, Evaluated)}
    assert losses[3] == losses[2]  # nothing changed
    assert losses[4] != losses[3]  # and training went on
    assert [line["event"] for line in strict_lines(run)] == ["evaluated", "evaluated", "skipped", "evaluated", "evaluated"]
    assert all(t.isfinite().all() for t in checkpoints.load_resume(run).last.values())


def test_a_run_that_skipped_a_step_resumes_to_the_bit(
    sessions: Any, dataset: Any, tiny_config: Any, poison: Poison, everything: Any
) -> None:
    settings = tiny_config(optim__max_steps=6, eval__eval_every=2, optim__ema=0.9)
    whole, parts = (sessions.begin(name, settings, dataset()) for name in ("whole", "parts"))
    poison(lambda call: call == 3)
    sessions.train(whole, settings, dataset())
    poison(lambda call: call == 3)
    sessions.train(parts, settings, dataset(), stop_at=3)
    poison(lambda call: False)
    sessions.train(parts, settings, dataset(), resume=True)
    assert everything(parts) == everything(whole)


def test_ten_refused_steps_end_the_run_with_its_best_intact(sessions: Any, dataset: Any, tiny_config: Any, poison: Poison) -> None:
    settings = tiny_config(optim__max_steps=40, eval__eval_every=2)
    run = sessions.begin("run", settings, dataset())
    poison(lambda call: call > 4)
    with pytest.raises(Diverged) as caught:
        sessions.train(run, settings, dataset())
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    record = run.refresh().record
    assert (record.status, record.stop_reason, record.stop_step) == ("failed", "diverged", 14)
    assert record.best is not None
    assert record.best.step == 4
    assert all(t.isfinite().all() for t in checkpoints.load(run).model.state_dict().values())
    poison(lambda call: False)
    events = sessions.train(run, settings, dataset(), resume=True)  # whoever resumes it wants it to try again
    assert events[-1].step == 40


def test_a_validation_loss_that_is_not_finite_is_never_best(
    sessions: Any, dataset: Any, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_config(optim__max_steps=6, eval__eval_every=2)
    run, real = sessions.begin("run", settings, dataset()), Evaluator.__call__

    def broken(self: Evaluator, *given: Any) -> Measured:
        measured = real(self, *given)
        return Measured(None, None, None, measured.val_nats * math.nan)

    monkeypatch.setattr(Evaluator, "__call__", broken)
    sessions.train(run, settings, dataset())
    assert run.refresh().record.best is None
    assert "best.safetensors" not in run.record.files
    assert [line["val_loss"] for line in strict_lines(run)] == [None, None, None]
    assert "no best checkpoint" in checkpoints.load(run).notices[0]


# ---- the disk, and kills, in the middle of training


def work_of(sessions: Any, settings: Any, text: Any) -> Callable[[Run], None]:
    return lambda run: sessions.train(run, settings, text, resume=bool(run.refresh().record.files))


def test_a_disk_that_fills_up_at_any_moment_loses_at_most_the_steps_after_the_last_save(
    sessions: Any, dataset: Any, tiny_config: Any, saboteur: Any, everything: Any
) -> None:
    settings = tiny_config(model__arch="bigram", optim__max_steps=4, eval__eval_every=2, eval__save_every=1)
    whole = sessions.begin("whole", settings, dataset())
    sessions.train(whole, settings, dataset())
    expected = everything(whole)
    for nth in _strides(3, 11):
        run = sessions.begin(f"run-{nth}", settings, dataset())
        message = None
        try:
            with saboteur.strikes(nth, "full"):
                work_of(sessions, settings, dataset())(run)
        except MiniGPTError as error:
            message = str(error)
        if message is None and saboteur.count < nth:
            return
        assert message is None or ("disk is full" in message and "\n" not in message)
        assert not list(run.dir.rglob("*.tmp"))
        work_of(sessions, settings, dataset())(run)
        assert everything(run) == expected, f"call {nth}: {saboteur.log[nth - 1]}"
    pytest.fail("training never finished")


def test_a_kill_at_any_system_call_of_training_changes_nothing(
    sessions: Any, dataset: Any, tiny_config: Any, saboteur: Any, killed: Any, everything: Any
) -> None:
    settings = tiny_config(model__arch="bigram", optim__max_steps=4, eval__eval_every=2, eval__save_every=1)
    whole = sessions.begin("whole", settings, dataset())
    sessions.train(whole, settings, dataset())
    expected = everything(whole)
    for nth in _strides(2, 11):
        run = sessions.begin(f"run-{nth}", settings, dataset())
        try:
            with saboteur.strikes(nth, "kill"):
                work_of(sessions, settings, dataset())(run)
            return
        except killed:
            pass
        work_of(sessions, settings, dataset())(run)
        assert everything(run) == expected, f"call {nth}: {saboteur.log[nth - 1]}"
    pytest.fail("training never finished")


def _strides(first: int, stride: int) -> Iterator[int]:
    """Every `stride`-th call: prime to the calls of one save, so that over a run each of them is struck."""
    return iter(range(first, 1000, stride))


def test_free_disk_space_is_checked_before_step_0(sessions: Any, dataset: Any, tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    settings = tiny_config()
    run, real = sessions.begin("run", settings, dataset()), os.statvfs("/")
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result([*real[:4], 1, *real[5:]]))
    with pytest.raises(MiniGPTError, match="are needed"):
        sessions.train(run, settings, dataset())
    assert not run.file("last.safetensors").exists()


# ---- resuming elsewhere, or as something else


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"optim__lr": 1e-4}, "--lr"),
        ({"model__n_embd": 32}, "--n-embd"),
        ({"optim__batch_size": 8}, "--batch-size"),
        ({"data": {"ascii_only": True}}, "--ascii-only"),
        ({"optim__max_steps": 1}, "--max-steps"),
        ({"seed": 8}, "--seed"),
    ],
)
def test_settings_that_may_not_change_on_resume_are_refused_by_name(changes: dict[str, Any], flag: str, tiny_config: Any) -> None:
    with pytest.raises(UsageError, match=flag):
        resuming.check_changes(tiny_config(), tiny_config(**changes), steps_done=4)


def test_settings_that_may_change_on_resume_are_accepted(sessions: Any, dataset: Any, tiny_config: Any) -> None:
    settings = tiny_config(optim__max_steps=4, optim__schedule="constant")
    run = sessions.begin("run", settings, dataset())
    sessions.train(run, settings, dataset())
    longer = tiny_config(optim__max_steps=6, optim__schedule="constant", eval__eval_every=3, eval__patience=5)
    events = sessions.train(run, longer, dataset(), resume=True)
    assert events[-1].step == 6
    noted = "4:max_steps=4 4:eval_every=4 4:patience=0"
    assert run.refresh().config == longer.model_copy(update={"resume_changes": noted})
    assert run.record.resume_exact_history[-1].exact


@pytest.mark.parametrize("schedule", ["linear", "cosine-plateau"])
def test_the_rate_of_an_extended_run_never_jumps_and_the_run_is_not_called_exact(
    schedule: str, sessions: Any, dataset: Any, tiny_config: Any, everything: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The plateau's tail ends when validation no longer improves: here, at once.
    monkeypatch.setattr(Evaluator, "__call__", lambda self, *given: Measured(2.0, 2.0, 2.0, np.ones(8)))
    first, longer = (tiny_config(optim__max_steps=n, optim__schedule=schedule, eval__eval_every=1) for n in (6, 24))
    found = []
    for name, stops in (("whole", [None]), ("parts", [1, 3, None])):
        run = sessions.begin(name, first, dataset())
        sessions.train(run, first, dataset())
        ended = run.refresh().record.stop_step
        for stop_at in stops:
            sessions.train(run, longer, dataset(), stop_at=stop_at, resume=True)
        found.append(everything(run))
        rates = [event.lr for event in run.metrics()]
        assert max(abs(a - b) for a, b in pairwise(rates[ended - 1 : ended + 4])) <= 0.34 * longer.optim.lr  # over two steps
        assert rates[ended + 3] == longer.optim.lr * lr_factor(ended + 3, longer.optim)
        joined = run.record.resume_exact_history[0]
        assert (joined.exact, joined.reasons) == (False, ["max_steps was 6 and is now 24"])
        assert run.config.resume_changes.split()[0] == f"{ended}:max_steps=6"
    assert found[0] == found[1]
    straight = sessions.begin("straight", longer, dataset())
    sessions.train(straight, longer, dataset())
    assert recipe_of(straight.refresh()) != recipe_of(run.refresh())
    assert everything(straight)["last"] != found[0]["last"]


def test_an_extended_run_is_repeated_to_the_bit_from_its_configuration(sessions: Any, dataset: Any, tiny_config: Any) -> None:
    first, longer = (tiny_config(optim__max_steps=n, optim__schedule="wsd") for n in (6, 12))
    run = sessions.begin("run", first, dataset())
    sessions.train(run, first, dataset(), stop_at=5)
    sessions.train(run, longer, dataset(), resume=True)
    again = sessions.begin("again", run.refresh().config, dataset())
    sessions.train(again, again.config, dataset())
    assert again.refresh().config == run.config
    assert again.record.files["last.safetensors"] == run.record.files["last.safetensors"]
    assert recipe_of(again) == recipe_of(run)


def test_sessions_and_threads_do_not_change_the_recipe_and_patience_does(sessions: Any, dataset: Any, tiny_config: Any) -> None:
    settings = tiny_config(optim__max_steps=8)
    whole, parts, other = (sessions.begin(name, settings, dataset()) for name in ("whole", "parts", "other"))
    for run, change in ((whole, {}), (parts, {"compute__threads": 2}), (other, {"eval__patience": 9})):
        sessions.train(run, tiny_config(optim__max_steps=8, eval__time_limit=60.0), dataset(), stop_at=4)
        sessions.train(run, tiny_config(optim__max_steps=8, **change), dataset(), resume=True)
    assert recipe_of(parts.refresh()) == recipe_of(whole.refresh())
    assert "4:patience=0" in other.refresh().config.resume_changes
    assert recipe_of(other) != recipe_of(whole)


@pytest.mark.parametrize(
    "text", ["x", "3", "3:max_steps=x", "3:max_steps=6  4:seed=1", "5:patience=1 4:patience=2", "3:lr_scale=.", "3:a=1 " * 2000]
)
def test_changes_that_cannot_be_read_are_refused(text: str, tiny_config: Any) -> None:
    with pytest.raises(ValidationError, match="resume_changes"):
        tiny_config(resume_changes=text)


def test_a_resume_that_cannot_be_exact_says_so_and_continues(sessions: Any, dataset: Any, tiny_config: Any) -> None:
    settings = tiny_config(optim__max_steps=8, model__dropout=0.1)
    run = sessions.begin("run", settings, dataset())
    sessions.train(run, settings, dataset(), stop_at=4)
    run.write_record(
        run.refresh().record.model_copy(
            update={"computed_by": {"torch": "2.0", "the number of threads": "64", "the number of processes": "2"}}
        )
    )
    divided = tiny_config(optim__max_steps=8, model__dropout=0.1, optim__batch_size=2, optim__grad_accum=2)
    events = sessions.train(run, divided, dataset(), resume=True)
    resumed = next(e for e in events if isinstance(e, Resumed))
    assert not resumed.exact
    for word in ("torch", "threads", "processes", "batch_size", "grad_accum"):
        assert any(word in notice for notice in resumed.notices), word
    assert events[-1].step == 8


@pytest.mark.parametrize(
    "damage",
    [
        {"progress": {"nonsense": 1}},
        {"progress": {"best_loss": "x"}},
        {"elapsed_s": None},
        {"evaluated_step": None},
        {"figures": 3},
        {"figures": {"grad_norm": "x"}},
    ],
)
def test_a_training_state_that_does_not_fit_is_one_line(damage: dict[str, Any], sessions: Any, dataset: Any, tiny_config: Any) -> None:
    settings = tiny_config(optim__max_steps=2)
    run = sessions.begin("run", settings, dataset())
    sessions.train(run, settings, dataset())
    point = checkpoints.load_resume(run)
    broken = {**point.resume_state, **damage}
    checkpoints.save(run, point.record, last=point.last, resume=point.resume, resume_state=broken)
    with pytest.raises(MiniGPTError) as caught:
        sessions.train(run, tiny_config(optim__max_steps=5), dataset(), resume=True)
    assert "\n" not in str(caught.value)


def test_optimizer_tensors_that_do_not_fit_are_one_line(sessions: Any, dataset: Any, tiny_config: Any) -> None:
    settings = tiny_config(optim__max_steps=2, optim__optimizer="muon")
    run = sessions.begin("run", settings, dataset())
    sessions.train(run, settings, dataset())
    point = checkpoints.load_resume(run)
    for broken in ({}, {n: t.new_zeros(1) for n, t in point.resume.items()}):
        checkpoints.save(run, point.record, last=point.last, resume=broken, resume_state=point.resume_state)
        with pytest.raises(MiniGPTError, match="does not fit"):
            sessions.train(run, tiny_config(optim__max_steps=5, optim__optimizer="muon"), dataset(), resume=True)


# ---- memory


def out_of_memory_above(monkeypatch: pytest.MonkeyPatch, windows: int, error: Exception, after: int = 0) -> None:
    """Batches of more than `windows` raise `error` from the forward pass number `after` on."""
    real, calls = state._loss, 0

    def loss(model: Any, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        if len(x) > windows and calls > after:
            raise error
        return real(model, x, *rest)

    monkeypatch.setattr(state, "_loss", loss)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmany\nlines"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_running_out_of_memory_is_one_line_with_a_batch_that_would_fit(
    error: Exception, sessions: Any, dataset: Any, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_config(optim__batch_size=8)
    run = sessions.begin("run", settings, dataset())
    out_of_memory_above(monkeypatch, 4, error)
    with pytest.raises(memory.OutOfMemory, match="--batch-size 4 would") as caught:
        sessions.train(run, settings, dataset())
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_another_runtime_error_is_not_called_memory(sessions: Any, dataset: Any, tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sessions.begin("run", tiny_config(), dataset())
    out_of_memory_above(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        sessions.train(run, tiny_config(), dataset())


@pytest.mark.parametrize("after", [0, 7])
def test_auto_batch_divides_the_batch_and_continues_with_the_same_total(
    after: int, sessions: Any, dataset: Any, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"optim__max_steps": 12, "eval__eval_iters": 0, "optim__optimizer": "adamw"}
    whole = sessions.begin("whole", tiny_config(**plan, optim__batch_size=8), dataset())
    sessions.train(whole, tiny_config(**plan, optim__batch_size=8), dataset())
    settings = tiny_config(**plan, optim__batch_size=8, optim__auto_batch=True)
    run = sessions.begin("run", settings, dataset())
    out_of_memory_above(monkeypatch, 2, MemoryError(), after)
    events = sessions.train(run, settings, dataset())
    assert run.refresh().config.optim.batch_size == 2
    assert run.config.optim.grad_accum == 4
    assert any("memory ran out" in notice for e in events if isinstance(e, Started) for notice in e.notices)
    assert [e.step for e in run.metrics()] == [e.step for e in whole.metrics()] == [4, 8, 12]
    for ours, theirs in zip(run.metrics(), whole.metrics(), strict=True):
        assert ours.val_loss == pytest.approx(theirs.val_loss, abs=1e-5)  # the same windows, added up in another order


def test_auto_batch_divides_the_batch_where_measuring_already_runs_out_of_memory(
    dataset: Any, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_config(optim__batch_size=8, optim__auto_batch=True, optim__max_steps=0)  # planned by the speed of real steps
    out_of_memory_above(monkeypatch, 2, RuntimeError("could not create a primitive"))
    config, notices = planner.resolve(settings, dataset())
    assert (config.optim.batch_size, config.optim.grad_accum) == (2, 4)
    assert sum("memory ran out" in notice for notice in notices) == 2
    with pytest.raises(memory.OutOfMemory, match="--batch-size 4 would"):
        planner.resolve(tiny_config(optim__batch_size=8, optim__max_steps=0), dataset())


def test_auto_batch_gives_up_on_a_batch_that_cannot_be_halved(
    sessions: Any, dataset: Any, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_config(optim__batch_size=6, optim__auto_batch=True)
    run = sessions.begin("run", settings, dataset())
    out_of_memory_above(monkeypatch, 2, MemoryError())
    with pytest.raises(memory.OutOfMemory):
        sessions.train(run, settings, dataset())


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (StopReason.INTERRUPTED_KEYBOARD, "interrupted"),
        (StopReason.TERMINATED, "interrupted"),
        (StopReason.PRUNED, "finished"),
    ],
)
def test_the_reason_of_a_requested_stop_is_recorded(reason: StopReason, status: str, sessions: Any, dataset: Any, tiny_config: Any) -> None:
    run = sessions.begin("run", tiny_config(), dataset())
    sessions.train(run, tiny_config(), dataset(), stop_at=3, reason=reason)
    assert (run.refresh().record.stop_reason, run.record.status, run.record.stop_step) == (reason, status, 3)
    assert f'"stop_reason": "{reason.value}"' in run.file("run.json").read_text()


@pytest.mark.parametrize("step", ["many", None, -1, 1.5, True])
def test_a_save_whose_step_is_not_a_number_is_damaged(step: Any, sessions: Any, dataset: Any, tiny_config: Any) -> None:
    settings = tiny_config(optim__max_steps=2)
    run = sessions.begin("run", settings, dataset())
    sessions.train(run, settings, dataset())
    point = checkpoints.load_resume(run)
    checkpoints.save(run, point.record, last=point.last, resume=point.resume, resume_state={**point.resume_state, "step": step})
    assert "using the one before" in checkpoints.load_resume(run).notices[0]
