"""Every write, fsync, rename, link and open of a save fails, or the process is killed after it; nothing saved is lost.

The way SQLite is tested: break the Nth call, check, and continue with N + 1 until the work finishes without a fault.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import tiny

from minigpt_cli import checkpoints
from minigpt_cli.config import RunConfig
from minigpt_cli.errors import Interrupted, MiniGPTError
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore import snapshots
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Best, RunRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization.char import CharTokenizer

VOCABULARY = [ord(c) for c in "abcdefghijk"]
SETTINGS = RunConfig.model_validate({"model": {"arch": "bigram", "block_size": 8}})


def weights(generation: int) -> dict[str, torch.Tensor]:
    """A model whose every number says which generation it is of."""
    return {name: torch.full_like(t, float(generation)) for name, t in build_model(SETTINGS.model, len(VOCABULARY), 0).state_dict().items()}


def save(run: Run, record: RunRecord, generation: int, *, best: bool = True) -> RunRecord:
    mark = Best(step=generation, nats_per_token=1.0, nats_per_char=1.0) if best else record.best
    record = record.model_copy(update={"stop_step": generation, "best": mark})
    state = {"step": generation}
    resume = {"moment": torch.full((3,), float(generation))}
    return checkpoints.save(
        run, record, last=weights(generation), resume=resume, resume_state=state, best=weights(generation) if best else None
    )


def generation_on_disk(run: Run) -> int:
    """The generation that a reader gets, after checking that all that it gets is of that one."""
    point = checkpoints.load_resume(Run(run.dir))
    generation = int(point.resume_state["step"])
    assert point.record.stop_step == generation
    assert point.record.best is not None
    assert torch.equal(point.resume["moment"], torch.full((3,), float(generation)))
    for tensors, which in ((point.last, "last"), (checkpoints.load(Run(run.dir), "best").model.state_dict(), "best")):
        wanted = generation if which == "last" else point.record.best.step
        assert all(torch.equal(t, torch.full_like(t, float(wanted))) for t in tensors.values()), which
    return generation


def leftovers(run: Run) -> list[str]:
    return sorted(str(p.relative_to(run.dir)) for p in run.dir.rglob("*.tmp"))


@pytest.fixture
def two_generations(tmp_path: Path) -> Callable[[], Run]:
    """Makes a fresh copy of a run with generations 0 and 1 on disk."""
    store = RunStore(tmp_path / "seed")
    run = tiny.begun(store, "run", SETTINGS, CharTokenizer(VOCABULARY).to_json(), vocab_size=len(VOCABULARY))
    record = run.record
    for generation in (0, 1):
        record = save(run, record, generation)
    made = 0

    def copy() -> Run:
        nonlocal made
        made += 1
        snapshots.forget()
        return Run(shutil.copytree(run.dir, tmp_path / f"copy-{made}" / "run"))

    return copy


def save_next(run: Run) -> None:
    """What a trainer does: append a line, save with a new best, save without."""
    with RunStore(run.dir.parent).lock(run):
        point = checkpoints.load_resume(run)
        record = save(run, point.record, point.record.stop_step + 1)
        save(run, record, record.stop_step + 1, best=False)


def resume_with_more_steps(run: Run) -> None:
    """What `train --resume --max-steps` does before step 0."""
    with RunStore(run.dir.parent).lock(run):
        point = checkpoints.load_resume(run)
        longer = SETTINGS.model_copy(update={"optim": SETTINGS.optim.model_copy(update={"max_steps": 99})})
        record = checkpoints.continue_from(run, point, point.record, longer)
        save(run, record, record.stop_step + 1)


@pytest.mark.parametrize("work", [save_next, resume_with_more_steps])
@pytest.mark.parametrize("mode", ["kill", "error", "full", "signal"])
def test_whatever_call_fails_a_complete_generation_can_be_read(
    work: Callable[[Run], None], mode: str, two_generations: Any, saboteur: Any, killed: Any
) -> None:
    for nth in range(1, 500):
        run = two_generations()
        finished, message = True, ""
        try:
            with saboteur.strikes(nth, mode):
                work(run)
        except killed:
            finished = False
        except (MiniGPTError, Interrupted) as error:
            finished, message = False, str(error)
        assert "\n" not in message
        assert not message or leftovers(run) == [], f"call {nth}: {saboteur.log[-1]}"
        assert generation_on_disk(run) >= 1, f"call {nth}: {saboteur.log[-1]}"
        if finished and saboteur.count < nth:
            assert nth > 20
            return
        if nth % 5 == 0:
            work(run)  # the next process goes on from there
            assert generation_on_disk(run) >= 2
            assert leftovers(run) == []
    pytest.fail("the work never finished untouched")


def test_a_kill_during_the_recovery_from_a_kill_loses_nothing(two_generations: Any, saboteur: Any, killed: Any) -> None:
    """Every ninth call of a save is a death, and of each recovery every eleventh too."""
    for first in range(1, 200, 9):
        begun = two_generations()
        if not _dies(first, save_next, begun, saboteur, killed):
            return
        before = generation_on_disk(begun)
        for second in range(1 + first % 11, 200, 11):
            snapshots.forget()
            run = Run(shutil.copytree(begun.dir, begun.dir.parent / f"again-{second}" / "run"))
            died = _dies(second, resume_with_more_steps, run, saboteur, killed)
            assert generation_on_disk(run) >= before
            shutil.rmtree(run.dir.parent)
            if not died:
                break
    pytest.fail("the work never finished untouched")


def _dies(nth: int, work: Callable[[Run], None], run: Run, saboteur: Any, killed: type[BaseException]) -> bool:
    try:
        with saboteur.strikes(nth, "kill"):
            work(run)
    except killed:
        return True
    return False


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "input/output"),
    ],
)
def test_an_error_of_the_system_is_one_line_that_says_what_to_do(number: int, words: str, two_generations: Any, saboteur: Any) -> None:
    run = two_generations()
    with pytest.raises(MiniGPTError, match=words) as caught, saboteur.strikes(3, "error", number):
        save(run, run.record, 2)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert generation_on_disk(run) == 1
    assert leftovers(run) == []


def test_a_disk_without_hard_links_gets_copies(two_generations: Any, saboteur: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = two_generations()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    with monkeypatch.context() as patch:
        patch.setattr("os.link", refuse)
        save_next(run)
    assert generation_on_disk(run) == 3
    run.file("last.safetensors").write_bytes(b"")
    assert generation_on_disk(run) == 2
