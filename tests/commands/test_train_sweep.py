"""minigpt train --sweep, --seeds and --search on a tiny model."""

from __future__ import annotations

import io
import json
import shlex
import signal
import time
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from minigpt_cli.commands.group_result import _open_questions
from minigpt_cli.display.group_screen import GroupScreen, Standings
from minigpt_cli.display.training_screen import TrainingState
from minigpt_cli.evaluation.grouping import _common_name
from minigpt_cli.evaluation.recipes import by_recipe
from minigpt_cli.events import Progress, Started
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.training import trainer


def test_grid_trains_ordinary_runs_of_one_group_and_the_same_command_resumes_it(trained: Path, cli: Any, tiny: list[str]) -> None:
    command = ["train", "text.txt", *tiny, "--sweep", "lr=1e-3,1e-2", "--seeds", "2"]
    done = cli(*command)
    assert done.code == 0, done.err
    runs = [run for run in RunStore("runs").runs() if run.record.group]
    assert len(runs) == 4
    assert len({run.record.group for run in runs}) == 1
    assert {(run.config.optim.lr, run.config.seed) for run in runs} == {(lr, seed) for lr in (1e-3, 1e-2) for seed in (1337, 1338)}
    table, _, lines = done.out.partition("best ")
    assert sorted(line.split()[0] for line in table.splitlines()[1:] if line) == [
        "0.001",
        "0.01",
    ]  # a row for each value, not for each seed
    best = min(("0.001", "0.01"), key=lambda lr: mean(run.record.best.nats_per_char for run in runs if run.config.optim.lr == float(lr)))
    assert lines.startswith(f"   lr {best}: ")
    assert "verdict lr " in lines
    assert f"lr {best} is the" in lines  # value that was tried
    shown = next(line.removeprefix("next    minigpt ") for line in lines.splitlines() if line.startswith("next"))
    assert shown.endswith(f"--lr {best}")
    assert cli(*shlex.split(shown), "--name", "again").code == 0
    assert len(by_recipe([RunStore("runs").find("again"), next(run for run in runs if run.config.optim.lr == float(best))])) == 1
    RunStore("runs").remove(RunStore("runs").find("again"))
    before = {run.name: (run.dir / "run.json").read_bytes() for run in runs}
    RunStore("runs").remove(runs[0])
    again = cli(*command)
    assert again.code == 0, again.err
    after = {run.name: (run.dir / "run.json").read_bytes() for run in RunStore("runs").runs() if run.record.group}
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {runs[0].name}


def test_seeds_of_a_time_budget_are_one_recipe_and_swept_steps_are_not(trained: Path, cli: Any, tiny: list[str]) -> None:
    at = tiny.index("--max-steps")
    quick = [*tiny[:at], *tiny[at + 2 :]]
    assert cli("train", "text.txt", *quick, "--name", "timed", "--time-budget", "0.05s", "--seeds", "2").code == 0
    assert cli("train", "text.txt", *quick, "--name", "steps", "--sweep", "max_steps=2,3", "--seeds", "2").code == 0
    timed, steps = ([run for run in RunStore("runs").runs() if run.record.group == group] for group in ("timed", "steps"))
    assert all(run.record.left_open and run.record.left_open["optim.max_steps"] == 0 for run in timed)
    assert [len(recipe) for recipe in by_recipe(timed)] == [2]
    assert [len(recipe) for recipe in by_recipe(steps)] == [2, 2]
    folded = cli("runs", "leaderboard", "--fold-seeds", "--where", "group=steps", "--json").json
    assert sorted(row["n"] for row in folded) == [2, 2]


def test_each_run_of_a_group_has_its_whole_budget_and_one_alone_counts_its_start(
    trained: Path, cli: Any, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, gone, fit = tiny.index("--max-steps"), [], trainer.fit

    def counted(job: trainer.Job, *rest: Any) -> Any:
        gone.append(time.perf_counter() - job.begun)  # type: ignore[operator]
        return fit(job, *rest)

    monkeypatch.setattr(trainer, "fit", counted)
    quick = ["train", "text.txt", *tiny[:at], *tiny[at + 2 :], "--time-budget", "0.05s"]
    assert cli(*quick, "--sweep", "lr=1e-3,1e-2").code == cli(*quick).code == 0
    first, second, alone = gone
    assert max(first, second) < 0.1 * alone


def test_one_failure_does_not_end_the_rest(trained: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", *tiny, "--name", "g", "--sweep", "block_size=8,100000,4", "--json")
    assert done.code == 1
    stopped = [event["run"] for event in map(json.loads, done.out.splitlines()) if event["event"] == "stopped"]
    assert stopped == ["g~block_size=8", "g~block_size=4"]
    assert not Path("runs/g~block_size=100000").exists()


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--sweep", "lrr=1"], "did you mean 'lr'"),
        (["--sweep", "resume_changes=1:lr=2"], "unknown setting"),
        (["--sweep", "lr=fast"], "--lr fast"),
        (["--sweep", "n_head=3"], "does not divide"),
        (["--sweep", "lr"], "--sweep lr"),
        (["--seeds", "0"], "--seeds"),
        (["--sweep", "seed=1,01"], "the same run"),
        (["--sweep", "lr=1e-3,0.001", "--seeds", "2"], "the same run"),
        (["--seeds", "2", "--merge", "--lora-rank", "2"], "--merge is for one run"),
        (["--search", "lr=1..0"], "must rise"),
        (["--search", "lr=1e-3..1e9:log"], "--lr 1e+09"),
        (["--search", "lr=1e-3..1e-2", "--seeds", "2"], "leave out --sweep and --seeds"),
    ],
)
def test_wrong_sweep_is_refused_before_anything_is_trained(flags: list[str], hint: str, trained: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", *tiny, *flags)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert hint in done.err
    assert RunStore("runs").names() == ["first"]


def test_search_trains_and_goes_on_to_its_number_of_trials(trained: Path, cli: Any, tiny: list[str]) -> None:
    pytest.importorskip("optuna")
    command = ["train", "text.txt", *tiny, "--name", "s", "--search", "lr=1e-4..1e-2:log", "--search", "n_layer=1..2"]
    assert cli(*command, "--trials", "2").code == 0
    done = cli(*command, "--trials", "3")
    assert done.code == 0, done.err
    runs = [run for run in RunStore("runs").runs() if run.record.group == "s"]
    assert {run.name for run in runs} == {"s~t0", "s~t1", "s~t2"}
    assert all(1e-4 <= run.config.optim.lr <= 1e-2 and run.config.model.n_layer in (1, 2) for run in runs)  # type: ignore[union-attr]


def test_a_search_killed_at_any_moment_comes_to_its_number_of_trials(trained: Path, tiny: list[str], processes: Any) -> None:
    """Each process goes on with the trial that the one before it left, and is killed a little further on; none is lost."""
    optuna = pytest.importorskip("optuna")
    command = ["train", "text.txt", *tiny, "--name", "s", "--search", "lr=1e-4..1e-2:log", "--search", "n_layer=1..2", "--trials", "3"]
    for moment in ("asked", "drawn", "planned", "begun", "saved", "saved", "scored", "telling", "asked", "begun", "telling"):
        assert processes(trained, command, hook="killed", values=(moment,))[0].code == -signal.SIGKILL, moment
    done = processes(trained, command)[0]
    assert done.code == 0, done.err
    assert "group s: 3 runs, 0 failed" in done.err
    runs = {run.name: run.record for run in RunStore("runs").runs() if run.record.group == "s"}
    assert {(name, record.status) for name, record in runs.items()} == {("s~t0", "finished"), ("s~t1", "finished"), ("s~t2", "finished")}
    assert any(record.resume_exact_history for record in runs.values()), "what was saved was not trained again"
    backend = optuna.storages.journal.JournalFileBackend("runs/.s.journal")
    states = [trial.state.name for trial in optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(backend)).trials]
    assert states == ["COMPLETE"] * 3
    assert not list(Path("runs").glob(".s.t*.lock"))


def test_a_search_says_the_values_that_it_found(trained: Path, cli: Any, tiny: list[str]) -> None:
    pytest.importorskip("optuna")
    done = cli("train", "text.txt", *tiny, "--name", "s", "--search", "lr=1e-4..1e-2:log", "--trials", "2")
    runs = [run for run in RunStore("runs").runs() if run.record.group == "s"]
    best = min(runs, key=lambda run: run.record.best.nats_per_char)  # type: ignore[union-attr]
    assert f"best    lr {best.config.optim.lr:.6g}: {best.record.best.nats_per_char:.4f} nats per character, run {best.name}" in done.out  # type: ignore[union-attr]
    assert f"--lr {best.config.optim.lr:.6g}\n" in done.out
    assert "those take several seeds" in done.out


@pytest.mark.parametrize(
    ("setting", "best_first", "is_open"),
    [
        ("dropout", "0 0.1", False),
        ("n_layer", "1 2", False),
        ("dropout", "0.1 0.2", True),
        ("lr", "0.01 0.001", True),
        ("lr", "2 1 3", False),
    ],
)
def test_a_value_beyond_the_best_is_proposed_where_there_is_one(setting: str, best_first: str, is_open: bool) -> None:
    found: Any = [SimpleNamespace(values=(value,)) for value in best_first.split()]
    assert len(_open_questions(found, [setting])) == is_open


def test_seeds_alone_have_a_mean_and_no_setting(trained: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", *tiny, "--name", "s", "--seeds", "2")
    assert done.code == 0, done.err
    assert "seed  nats/char" in done.out
    scores = [run.record.best.nats_per_char for run in RunStore("runs").runs() if run.record.best and run.record.group == "s"]
    assert f"mean    {sum(scores) / 2:.4f} ±" in done.out
    assert "of 2 seeds" in done.out
    assert "verdict" not in done.out
    assert done.out.rstrip().endswith("next    minigpt runs leaderboard --fold-seeds --where group=s")
    assert cli("runs", "leaderboard", "--fold-seeds", "--where", "group=s").code == 0


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_screen_of_a_group_fits_and_shows_values_and_the_time_left(width: int) -> None:
    finished = tuple(((f"{lr:g}", "muon"), 2 + lr) for lr in (0.001, 0.002, 0.003))
    standings = Standings("search-3fa2c1", 30, ("lr", "optimizer"), finished, 1, ("0.004", "adamw"), 12.0)
    state = TrainingState()
    state.add(Progress(run="search-3fa2c1~t4", step=50, train_loss=2.0, lr=1e-3, tokens_seen=50, tokens_per_s=10.0, elapsed_s=5.0))
    state.started = Started.model_construct(max_steps=100, run="search-3fa2c1~t4")
    out = Console(file=io.StringIO(), width=width, height=20, force_terminal=True, color_system=None, legacy_windows=False)
    out.print(GroupScreen(state, standings))
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in lines)
    assert "3 of 30 runs done · 1 failed · about 5:05 left in all" in lines[0]
    assert [line.split()[:2] for line in lines[4:8]] == [["0.001", "muon"], ["0.002", "muon"], ["0.003", "muon"], ["0.004", "adamw"]]
    assert "5.0 s left" in lines[-1]


def test_names_of_recipes_end_with_whole_words() -> None:
    assert _common_name(["g~lr=0.1,seed=1337", "g~lr=0.1,seed=1338"]) == "g~lr=0.1"
    assert _common_name(["modern-1", "modern-12"]) == "modern-*"


def test_what_was_read_is_said_once_for_all_tokenizers(trained: Path, cli: Any, tiny: list[str]) -> None:
    done = cli("train", "text.txt", "--sweep", "tokenizer=char,byte", "--name", "t", *tiny)
    assert done.code == 0, done.err
    assert done.err.count("\nvalidation  ") == 1
