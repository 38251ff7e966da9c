"""--keep-every: what a run keeps over time is what the uninterrupted run keeps, to the bit, and training does not notice it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minigpt_cli import checkpoints
from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.evaluation.recipes import recipe_of
from minigpt_cli.events import Started
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.weights import kept_steps
from minigpt_cli.storage import atomic_io
from minigpt_cli.training import trainer
from minigpt_cli.verify import verify


def steps_on_disk(run: Run) -> list[str]:
    return sorted(path.name for path in run.dir.glob("step-*"))


def test_training_is_the_same_and_the_kept_weights_are_those_that_are_evaluated(
    sessions: Any, dataset: Any, tiny_config: Any, everything: Any
) -> None:
    runs = {}
    for every in (0, 4):
        runs[every] = sessions.begin(f"every-{every}", config := tiny_config(optim__ema=0.9, eval__keep_every=every), dataset())
        events = sessions.train(runs[every], config, dataset())
    without, with_kept = (everything(runs[every]) for every in (0, 4))
    assert {part: without[part] for part in ("best", "last", "resume", "state", "metrics")} == {
        part: with_kept[part] for part in ("best", "last", "resume", "state", "metrics")
    }
    assert recipe_of(runs[0]) == recipe_of(runs[4])
    record = runs[4].record
    assert record.kept[f"step-{record.best.step:06d}.safetensors"] == record.files["best.safetensors"]
    assert steps_on_disk(runs[4]) == ["step-000004.safetensors", "step-000008.safetensors", "step-000012.safetensors"]
    started = next(event for event in events if isinstance(event, Started))
    n_bytes = record.kept["step-000004.safetensors"].bytes
    assert started.notices[-1].startswith(f"keeps 3 checkpoints of {atomic_io.size(4 * record.n_params)}: ")
    assert 0 <= n_bytes - 4 * record.n_params < 4096  # and the header


@pytest.mark.parametrize("killed_at", [2, 6, 9])
def test_a_run_killed_between_keeping_and_recording_ends_with_the_same_set(
    killed_at: int, sessions: Any, dataset: Any, tiny_config: Any, everything: Any, killed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_config(eval__keep_every=1, eval__eval_every=5, model__dropout=0.1)
    whole, parts = (sessions.begin(name, settings, dataset()) for name in ("whole", "parts"))
    sessions.train(whole, settings, dataset())
    keep = checkpoints.keep

    def dies_after(run: Run, record: Any, step: int, weights: Any) -> Any:
        after = keep(run, record, step, weights)
        if step == killed_at:
            raise killed
        return after

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "keep", dies_after)
        with pytest.raises(killed):
            sessions.train(parts, settings, dataset())
    unnamed = [finding.file for finding in verify(parts) if "not in the record" in finding.message]
    if killed_at > 5:
        assert unnamed[-1] == f"step-{killed_at:06d}.safetensors"
    else:  # before the first save: what a person does then
        parts = sessions.begin("parts-again", settings, dataset())
    sessions.train(parts, settings, dataset(), resume=killed_at > 5)
    assert everything(parts) == everything(whole)
    assert steps_on_disk(parts) == steps_on_disk(whole) == [f"step-{step:06d}.safetensors" for step in range(1, 13)]


def test_a_resumed_run_may_keep_others(sessions: Any, dataset: Any, tiny_config: Any) -> None:
    run = sessions.begin("run", settings := tiny_config(eval__keep_every=3), dataset())
    sessions.train(run, settings, dataset(), stop_at=7)
    sessions.train(run, tiny_config(eval__keep_every=5), dataset(), resume=True)
    assert kept_steps(run.refresh().record) == [3, 6, 10]
    assert run.config.resume_changes == ""
    assert not [finding for finding in verify(run) if finding.level == "problem"]


def test_too_many_or_too_large_is_said_before_the_first_step(
    sessions: Any, dataset: Any, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sessions.begin("many", settings := tiny_config(eval__keep_every=1, optim__max_steps=1001), dataset())
    with pytest.raises(
        UsageError, match="keeps 1,001 checkpoints in 1,001 steps, and a run has 1,000 at most: give --keep-every 2 or more"
    ):
        sessions.train(run, settings, dataset())
    asked: list[int] = []

    def full(folder: Path, n_bytes: int, advice: str = "") -> None:
        asked.append(n_bytes)
        raise MiniGPTError(advice)

    monkeypatch.setattr(trainer, "check_space", full)
    for every in (0, 2):
        run = sessions.begin(f"large-{every}", settings := tiny_config(eval__keep_every=every), dataset())
        with pytest.raises(MiniGPTError, match="give --keep-every a larger number" if every else "^$"):
            sessions.train(run, settings, dataset())
    assert asked[1] - asked[0] == 6 * sum(4 * tensor.numel() for tensor in trainer_weights(settings))


def trainer_weights(settings: Any) -> Any:
    from minigpt_cli.models.contract import build_model

    return build_model(settings.model, 11).state_dict().values()
