"""minigpt train --experiment on tiny models: runs, answers, pages, and what is refused."""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.errors import UsageError
from minigpt_cli.events import StopReason
from minigpt_cli.experiments.catalog import experiment_names, read_experiment
from minigpt_cli.runstore.store import RunStore

TINY = shlex.split(
    """
    --n-embd 8 --n-head 1 --max-steps 2 --eval-every 2 --eval-iters 1
    --threads 1 --device cpu --precision fp32 --attention plain --compile off
"""
)
SAYS = {  # besides its scores
    "overfit": r"did not learn the text by heart.*On new text the same weights need \d\.\d{3} nats per character",
    "context": r"window 16 and window 64 are a statistical tie|better than window \d+ by \d\.\d{4} nats per character",
    "capacity": r"4 layers and 6 layers are|6 layers is better|4 layers is better",
    "dropout": r"With dropout 0\.4 the training loss is \d\.\d{3} nats per token in training mode and \d\.\d{3} in evaluation mode",
    "data": r"Twice the text \(9,180 characters\) would lower the loss by -?\d\.\d{3} .*That is an extrapolation",
    "rate": r"lr \S+ ends lowest, at \d\.\d{3} nats per character",
    "sampling": r"The most probable text comes from temperature .*: \d\.\d{3} nats per character under the model.*Unseen text has",
    "ladder": r"modern and bpe are|bpe is better than modern|modern is better than bpe",
    "break": r"(whole|without scale) (and|is better than) (whole|without scale) .*† Without the mask",
}


@pytest.fixture
def desk(home: Path, text: str) -> Path:
    (home / "text.txt").write_text(text)
    return home


def experiment(name: str, *more: str) -> list[str]:
    return ["train", "text.txt", "--experiment", name, *TINY, *more]


@pytest.mark.parametrize("name", experiment_names())
def test_an_experiment_trains_one_group_and_ends_in_an_answer(name: str, cli: Any, desk: Path) -> None:
    known, command = read_experiment(name), experiment(name, "--seeds", "1", "--html", "answer.html")
    done = cli(*command)
    assert done.code == 0, done.err
    runs = RunStore("runs").runs()
    assert len(runs) == len(known.recipes)
    assert len({run.record.group for run in runs}) == 1
    assert known.question in done.err
    assert known.bet in done.err
    assert re.search(rf"{len(runs)} of {len(runs)} runs? to train, about \d+", done.err)
    paragraph = " ".join(done.out.partition("\n\n")[2].split())
    assert re.search(SAYS[name], paragraph), paragraph
    assert "This is about these weights" in paragraph or not known.against
    shown = re.search(r"^next    minigpt (.*)$", done.out, re.M)
    assert shown
    page = Path("answer.html").read_text()
    assert known.question in page.replace("&#x27;", "'").replace("&#39;", "'")
    assert "<svg" in page
    assert "<table" in page
    before = {run.name: (run.dir / "run.json").read_bytes() for run in runs}
    again = cli(*command)
    assert (again.code, again.out) == (0, done.out)
    assert {run.name: (run.dir / "run.json").read_bytes() for run in RunStore("runs").runs()} == before


def test_a_killed_experiment_goes_on_where_it_stopped(trained: Path, cli: Any, processes: Any) -> None:
    command = experiment("capacity", "--seeds", "1", "--name", "deep")
    assert processes(trained, command, hook="killed", values=("saved",))[0].code == -signal.SIGKILL
    begun = RunStore("runs").names()
    assert len(begun) == 2  # the fixture's and the first of the group
    done = cli(*command, "--json")
    assert done.code == 0, done.err
    *events, answer = done.events
    assert answer["event"] == "experiment"
    assert [run["recipe"] for run in answer["runs"]] == ["1 layer", "2 layers", "4 layers", "6 layers"]
    assert {event["run"] for event in events} == {run["run"] for run in answer["runs"]}
    assert RunStore("runs").find("deep~1_layer,seed=1337").record.resume_exact_history
    assert [(pair["a"], pair["b"]) for pair in answer["verdicts"]] == [
        ("1 layer", "2 layers"), ("2 layers", "4 layers"), ("4 layers", "6 layers"),
    ]  # fmt: skip


def test_more_seeds_add_to_the_same_group_and_settings_hold_for_every_run(cli: Any, desk: Path) -> None:
    assert cli(*experiment("context", "--seeds", "1", "--weight-decay", "0.3")).code == 0
    done = cli(*experiment("context", "--seeds", "2", "--weight-decay", "0.3"))
    assert "3 of 6 runs to train" in done.err
    assert "This is about the recipes" in " ".join(done.out.split())
    runs = RunStore("runs").runs()
    assert len({run.record.group for run in runs}) == 1
    assert {(run.config.model.block_size, run.config.seed) for run in runs} == {(b, s) for b in (16, 64, 256) for s in (1337, 1338)}
    assert {run.config.optim.weight_decay for run in runs} == {0.3}
    assert len({run.config.model.block_size * run.config.optim.batch_size for run in runs}) == 1  # equal tokens


def test_a_recipe_that_cannot_be_trained_leaves_the_answer_of_the_others(cli: Any, desk: Path) -> None:
    Path("text.txt").write_text("A short text. " * 130)
    done = cli(*experiment("context", "--seeds", "1"))
    assert done.code == 1
    assert "cannot fill block_size 256" in done.err
    assert re.search(r"^window 256 +- +0 of 1 runs$", done.out, re.M)
    assert "window 16 and window 64" in done.out or "better than window" in done.out


def test_a_rate_at_which_training_breaks_is_part_of_the_answer(cli: Any, desk: Path) -> None:
    command = [*experiment("rate", "--name", "r", "--json"), "--max-steps", "3"]
    answer = cli(*command).events[-1]
    assert answer["broke"] == ["lr 2"]
    run = RunStore("runs").find("r~lr_0.3,seed=1337")
    run.write_record(run.record.model_copy(update={"status": "failed", "stop_reason": StopReason.DIVERGED}))
    done = cli(*command)
    assert done.code == 0, done.err
    assert done.events[-1]["broke"] == ["lr 0.3", "lr 2"]
    assert "Training breaks at lr 0.3, lr 2:" in " ".join(done.events[-1]["answer"])
    assert [run["stop_reason"] for run in done.events[-1]["runs"]].count("diverged") == 1


def test_the_maskless_model_is_marked_and_compared_with_nothing(cli: Any, desk: Path) -> None:
    done = cli(*experiment("break", "--seeds", "1", "--json"))
    answer = done.events[-1]
    assert [run["recipe"] for run in answer["runs"]][1] == "without mask †"
    assert len(answer["verdicts"]) == 4
    assert all("mask" not in pair["a"] + pair["b"] for pair in answer["verdicts"])


def test_one_of_several_jobs_trains_and_leaves_the_answer_to_the_first(cli: Any, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_ONE_OF_JOBS", "1")
    done = cli(*experiment("overfit", "--json"))
    assert done.code == 0
    assert {event["event"] for event in done.events} == {"started", "evaluated", "saved", "stopped"}


def test_a_dry_run_shows_what_each_recipe_costs_and_trains_nothing(cli: Any, desk: Path) -> None:
    shown = cli(*experiment("context", "--dry-run"))
    assert re.search(r"^window 16 .*ms", shown.out, re.M)
    assert "runs    6, 2 seeds of each" in shown.out
    found = cli(*experiment("overfit", "--dry-run", "--json")).json
    assert found["recipes"]["one text"]["estimated_s"] == found["estimated_s"] > 0
    assert RunStore("runs").names() == []


def test_an_experiment_without_a_name_lists_all_with_question_and_time(cli: Any) -> None:
    done = cli("train", "--experiment")
    assert done.code == 0
    heads = [line for line in done.out.splitlines() if line and not line.startswith(" ")][:-1]
    assert [line.split()[0] for line in heads] == experiment_names()
    assert all(re.search(r"\d+ runs?, about \d", line) for line in heads)
    assert all(f"    {read_experiment(name).question}\n" in done.out for name in experiment_names())


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--experiment", "contxt"], "did you mean 'context'?"),
        (["--experiment", "context", "--sweep", "lr=1e-3,1e-2"], "leave out --sweep"),
        (["--experiment", "context", "--search", "lr=1e-3..1e-2"], "leave out --search"),
        (["--experiment", "context", "--resume", "latest"], "leave out --experiment"),
        (["--experiment", "context", "--init-from", "latest"], "leave out --init-from"),
        (["--experiment", "context", "--print-config"], "leave out --print-config"),
        (["--experiment", "context", "--block-size", "8"], "different values of block_size: leave out --block-size"),
        (["--experiment", "context", "--seeds", "auto"], "a number of seeds"),
        (["--experiment", "context", "--html", "runs/x/run.json"], "does not end in .html"),
        (["--html", "page.html"], "add --experiment NAME"),
    ],
)
def test_what_does_not_fit_an_experiment_is_refused_in_one_line(flags: list[str], hint: str, cli: Any, desk: Path) -> None:
    source = [] if "--resume" in flags else ["text.txt"]
    done = cli("train", *source, *flags)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert hint in done.err
    assert not Path("runs").exists()


def test_the_files_hold_what_the_screens_need() -> None:
    with pytest.raises(UsageError, match="unknown experiment"):
        read_experiment("nothing")
    for name in experiment_names():
        found = read_experiment(name)
        assert found.question.endswith("?")
        assert found.bet.endswith("?")
        assert found.next.startswith("minigpt ")
        assert all(found.partner(label) in (None, *found.recipes) for label in found.recipes)
    assert read_experiment("ladder").partner("bpe") == "modern"
    assert read_experiment("break").partner("without norm") == "whole"
