"""Which runs are tied with the first, from kept scores alone, and how long it takes for a thousand runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.evaluation import cache
from minigpt_cli.evaluation.eval_target import Target, score_key
from minigpt_cli.evaluation.grouping import chosen_sides
from minigpt_cli.evaluation.leaderboard import rank
from minigpt_cli.evaluation.recipes import recipe_of
from minigpt_cli.evaluation.scores import Score, make_score
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Base, Best, Corpus, FileRecord, RunRecord, SplitRecord
from minigpt_cli.runstore.store import RunStore

Make = Callable[..., Run]


def score(nats: np.ndarray) -> Score:
    return make_score(nats, nats, np.arange(len(nats)) % 8, (b"to be or not " * (len(nats) // 13 + 1))[: len(nats)])


def make(runs_dir: Path, name: str, found: Score, *, keep: bool = True, config: RunConfig | None = None) -> Run:
    """A run that was scored so, as training leaves it."""
    folder = runs_dir / name
    folder.mkdir(parents=True)
    run = Run(folder)
    run.file("config.json").write_text((config or RunConfig()).model_dump_json(), encoding="utf-8")
    train = SplitRecord(sha256="a" * 64, n_tokens=9, n_chars=9, n_bytes=9)
    val = SplitRecord(sha256=found.text_sha256, n_tokens=found.n_tokens, n_chars=found.n_chars, n_bytes=found.n_bytes)
    record = RunRecord(
        name=name,
        status="finished",
        arch="modern",
        corpus=Corpus(label="t", sha256="c" * 64, splits={"train": train, "val": val}),
        best=Best(step=1, nats_per_token=found.nats_per_token, nats_per_char=found.nats_per_char, ci95=found.ci95, whole_split=True),
        files={"best.safetensors": FileRecord(sha256=f"{abs(hash(name)):064x}", bytes=1)},
    )
    run.file("run.json").write_text(record.to_json(), encoding="utf-8")
    if keep:
        cache.keep(folder, score_key(run, Target()), found)
    return run


@pytest.fixture
def text_losses() -> np.ndarray:
    rng = np.random.default_rng(0)
    return 1.5 + np.repeat(rng.normal(0, 0.5, 200), 40) + 0.3 * rng.standard_normal(8000)


def test_a_paired_test_separates_runs_whose_intervals_overlap(tmp_path: Path, text_losses: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    runs = [
        make(tmp_path, name, score(text_losses + worse + 0.02 * rng.standard_normal(8000)), keep=keep)
        for name, worse, keep in (("best", 0, True), ("twin", 0.0001, True), ("worse", 0.02, True), ("lost", 0.02, False))
    ]
    rows = {row.run: row.tied_with_best for row in rank(runs)}
    assert rows == {"best": True, "twin": True, "worse": False, "lost": True}  # lost: only intervals, and they overlap


def test_runs_on_different_texts_are_ranked_apart(tmp_path: Path, text_losses: np.ndarray) -> None:
    runs = [make(tmp_path, "a", score(text_losses)), make(tmp_path, "b", score(text_losses[1:]))]
    assert [row.rank for row in rank(runs)] == [1, 1]


def test_recipes_are_runs_that_differ_in_their_seed_alone(tmp_path: Path, text_losses: np.ndarray) -> None:
    config = RunConfig()
    other_seed = config.model_copy(update={"seed": 2})
    other_threads = other_seed.model_copy(update={"compute": config.compute.model_copy(update={"threads": 3})})
    other_lr = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": 0.1})})
    for name, each in (("a-1", config), ("a-2", other_seed), ("a-3", other_threads), ("b-1", other_lr)):
        make(tmp_path, name, score(text_losses), config=each)
    assert len({recipe_of(run) for run in RunStore(tmp_path).runs()}) == 2
    sides, notices = chosen_sides(RunStore(tmp_path), ["*"], by_config=True)
    assert {name: len(runs) for name, runs in sides} == {"a-*": 2, "b-1": 1}
    assert ["a-3 has the recipe and the seed (2) of a-2" in notice for notice in notices] == [True]


def test_text_and_initial_weights_belong_to_a_recipe_and_the_path_of_the_text_does_not(tmp_path: Path, text_losses: np.ndarray) -> None:
    def changed(name: str, source: str, **record: object) -> Run:
        run = make(tmp_path, name, score(text_losses), config=RunConfig(data=DataConfig(source=source)))
        run.file("run.json").write_text(run.record.model_copy(update=record).to_json(), encoding="utf-8")
        return run.refresh()

    plain = changed("plain", "a.txt")
    assert plain.record.corpus is not None
    other_text = plain.record.corpus.model_copy(update={"sha256": "d" * 64})
    assert recipe_of(changed("elsewhere", "./a.txt")) == recipe_of(plain)
    for name, record in (("text", {"corpus": other_text}), ("start", {"base": Base(run="x", sha256="e" * 64)}), ("two", {"world_size": 2})):
        assert recipe_of(changed(name, "a.txt", **record)) != recipe_of(plain)


def cpu_seconds(code: str) -> float:
    """Processor time of a fresh interpreter that runs `code`: what a quiet machine would take, or less."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_two_evaluations_of_a_megabyte_compare_in_two_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name in ("a", "b"):
        make(tmp_path, name, score(rng.exponential(1.5, 1_000_000)))
    arguments = ["compare", "a", "b", "--json", "--runs-dir", str(tmp_path)]
    assert cpu_seconds(f"from minigpt_cli.cli import run; import sys; sys.exit(run({arguments!r}))") < 2


def test_a_thousand_runs_are_ranked_in_a_second(tmp_path: Path, text_losses: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "write_atomic", lambda path, data: path.write_bytes(data))  # a thousand flushes take longer than the test
    rng = np.random.default_rng(3)
    first = score(text_losses)
    for number in range(1000):
        nats = text_losses + 0.0001 * number + 0.1 * rng.standard_normal(8000)
        make(tmp_path, f"run-{number}", replace(first, char_nats=nats, nats_per_char=float(nats.mean())))
    arguments = ["runs", "leaderboard", "--json", "--runs-dir", str(tmp_path)]
    started = cpu_seconds("import minigpt_cli.cli, numpy")
    program = f"from minigpt_cli.cli import run; import sys; sys.exit(run({arguments!r}))"
    assert any(cpu_seconds(program) - started < 1 for _ in range(3))  # once is enough: other processes share the caches
