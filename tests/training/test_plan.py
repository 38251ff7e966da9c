"""What is planned from a text, a time budget and a speed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minigpt_cli.config import ModernConfig, RunConfig
from minigpt_cli.data.encoding import prepared
from minigpt_cli.training import machine, memory, plan
from minigpt_cli.training.law import LAW, Training
from minigpt_cli.training.machine import Machine, Work, fitted
from minigpt_cli.training.state import TrainingState
from minigpt_cli.training.vocabularies import Text

TWO_CORES = Machine(flops_per_s=600e9, bytes_per_s=20e9, delay_s=1.5e-3)
GPU = Machine(flops_per_s=200e12, bytes_per_s=2e12, delay_s=2e-4)


@pytest.fixture(autouse=True)
def _much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 64 << 30)


def characters(chars: int) -> Text:
    return Text("char", 65, chars * 9 // 10, chars // 10, 1.0)


def pairs(chars: int) -> Text:
    return Text("bpe", 1024, chars * 9 // 26, chars // 26, 2.6, gain=1.45, is_cut=False)


def candidate(config: RunConfig, text: Text, speed: Machine) -> plan._Candidate:
    return plan._candidate(config, text, speed, plan.TRAINED_SHARE * config.optim.time_budget)


def expected(config: RunConfig, text: Text, speed: Machine) -> float:
    return candidate(config, text, speed).nats_per_char


def asked(budget: float, **values: Any) -> RunConfig:
    sections: dict[str, Any] = {"optim": {"time_budget": budget}, "model": {"arch": "modern"}}
    for name, value in values.items():
        sections["model" if name in ModernConfig.model_fields else "optim"][name] = value
    return RunConfig.model_validate(sections)


def planned(chars: int, budget: float, speed: Machine = TWO_CORES, size: int = 0, **values: Any) -> RunConfig:
    return plan.best(asked(budget, **values), tuple(values), [characters(chars)], speed, size).config


def n_params(config: RunConfig) -> int:
    return plan._n_params(config.model, 65)


@pytest.mark.parametrize("chars", [30_000, 1_100_000, 100_000_000])
def test_a_longer_budget_is_never_expected_to_be_worse(chars: int) -> None:
    losses = [expected(planned(chars, budget), characters(chars), TWO_CORES) for budget in (5, 20, 60, 180, 600, 1800, 7200)]
    assert all(later <= earlier + plan._NEARLY for earlier, later in pairwise(losses))
    assert chars < 100_000 or losses[-1] < losses[0]


@pytest.mark.parametrize("chars", [465_000, 10_000_000])
def test_more_time_and_a_faster_machine_train_a_larger_model(chars: int) -> None:
    sizes = [n_params(planned(chars, *given)) for given in ((20, TWO_CORES), (600, TWO_CORES), (600, GPU))]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1]


def test_more_text_trains_a_larger_model_where_time_is_not_the_limit() -> None:
    sizes = [n_params(planned(chars, 500_000)) for chars in (30_000, 465_000, 10_000_000)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    "given",
    [
        {"n_layer": 3},
        {"n_embd": 96, "n_head": 2},
        {"block_size": 48},
        {"dropout": 0.37},
        {"batch_size": 5, "lr": 1e-3},
        {"muon_lr": 0.011},
        {"n_head": 4},
        {"n_layer": 1, "n_embd": 40},
        {"n_kv_head": 2},
    ],
)
def test_what_is_given_stays_and_the_rest_is_a_valid_configuration(given: dict[str, Any]) -> None:
    for chars, budget in ((30_000, 20), (1_100_000, 600)):
        config = planned(chars, budget, **given)
        kept = {**config.model.model_dump(), **config.optim.model_dump()}
        assert {name: kept[name] for name in given} == given
        assert RunConfig.model_validate(config.model_dump()) == config


def test_byte_pairs_are_planned_where_text_is_plentiful() -> None:
    chosen = plan.best(asked(600), (), [characters(100_000_000), pairs(100_000_000)], TWO_CORES).config
    assert (chosen.data.tokenizer, chosen.data.vocab_size) == ("bpe", 1024)


def test_byte_pairs_are_not_planned_where_they_win_nothing_or_the_text_is_read_often() -> None:
    names = pairs(100_000_000)._replace(gain=1.0)
    assert plan.best(asked(600), (), [characters(100_000_000), names], TWO_CORES).config.data.tokenizer == "char"
    assert plan.best(asked(600), (), [characters(100_000), pairs(100_000)], TWO_CORES).config.data.tokenizer == "char"


def test_the_time_that_cutting_a_text_takes_is_taken_from_its_training() -> None:
    config = asked(20)
    at_once, later = (candidate(config, pairs(100_000_000)._replace(prepared_s=s), TWO_CORES).training.tokens for s in (0.0, 9.2))
    assert later == pytest.approx(at_once / 2)


def test_a_part_of_a_large_text_is_cut_where_all_of_it_would_take_long() -> None:
    texts = [
        characters(1_000_000_000),
        *(pairs(1_000_000_000)._replace(prepared_s=s, max_chars=n) for s, n in ((124.0, 0), (22.0, 56_000_000))),
    ]
    texts[2] = texts[2]._replace(train_tokens=round(56_000_000 / 2.6))
    found = plan.best(asked(600), (), texts, TWO_CORES)
    assert (found.config.data.tokenizer, found.config.data.max_chars) == ("bpe", 56_000_000)
    assert "56 M characters from all over this text" in found.why[1]
    assert plan.best(asked(600), (), [texts[0], texts[1]._replace(prepared_s=0.0), texts[2]], TWO_CORES).config.data.max_chars == 0


def test_dropout_is_weighed_where_a_text_is_read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LAW", LAW._replace(passes_dropout=20.0, dropout=0.01))  # as if it cost nothing
    small, large = (plan.best(asked(60), ("teachers",), [characters(chars)], TWO_CORES).config.model for chars in (30_000, 100_000_000))
    assert (small.dropout > 0, large.dropout) == (True, 0)  # type: ignore[union-attr]


@pytest.mark.parametrize("chars", [30_000, 1_100_000])
def test_what_the_start_took_is_not_planned_again(chars: int) -> None:
    late, early = (plan.best(asked(budget), (), [characters(chars)], TWO_CORES, spent_s=s) for budget, s in ((30, 10.0), (20, 0.0)))
    assert late.config.model == early.config.model
    assert late.config.optim.batch_size == early.config.optim.batch_size
    assert late.why[1:] == early.why[1:]  # how often it is read


@pytest.mark.parametrize("size", [100_000, 800_000, 10_000_000])
def test_a_size_that_is_asked_for_is_the_nearest_of_the_ladder(size: int) -> None:
    found = n_params(planned(1_100_000, 60, size=size))
    all_sizes = [n_params(planned(1_100_000, 60, n_layer=layers, n_embd=width)) for layers, width in plan.SHAPES]
    assert abs(found / size - 1) == min(abs(other / size - 1) for other in all_sizes)


@pytest.mark.parametrize("size", [6_000, 50_000, 150_000])
def test_a_text_is_not_cut_in_a_way_that_misses_the_size(size: int) -> None:
    texts = [characters(1_100_000), pairs(1_100_000)]
    config = plan.best(asked(60), (), texts, TWO_CORES, size).config
    assert abs(plan._n_params(config.model, 1024 if config.data.tokenizer == "bpe" else 65) / size - 1) < 0.3


def test_a_size_that_no_shape_has_is_said() -> None:
    for size, is_missed in ((100_000, False), (100, True), (5_000_000_000, True)):
        why = plan.best(asked(60), (), [characters(1_100_000)], TWO_CORES, size).why
        assert ("the nearest has" in why[0]) is is_missed
        assert len(why) == 3 + is_missed


def test_a_small_size_gets_a_small_model() -> None:
    assert n_params(planned(1_100_000, 60, size=50_000)) == pytest.approx(50_000, rel=0.3)


@pytest.mark.parametrize("given", [{"n_head": 7, "n_embd": 224}, {"n_head": 12, "n_embd": 384}])
def test_heads_that_are_given_get_a_width_that_they_divide(given: dict[str, int]) -> None:
    wanted = asked(60, **given)
    model: Any = plan.best(wanted, ("n_head",), [characters(1_100_000)], TWO_CORES).config.model
    assert (model.n_head, model.n_embd % (2 * model.n_head)) == (given["n_head"], 0)


def test_a_plan_fits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    large = planned(100_000_000, 3600, GPU)
    monkeypatch.setattr(memory, "available", lambda device: 1 << 30)
    small = planned(100_000_000, 3600, GPU)
    assert n_params(small) * small.optim.batch_size < n_params(large) * large.optim.batch_size
    assert plan._bytes(small, 65) < 1 << 29


@pytest.mark.parametrize("chars", [30_000, 100_000_000])
def test_a_plan_has_steps_enough_for_the_law_to_be_trusted(chars: int) -> None:
    for budget in (3, 10, 60):
        training = candidate(planned(chars, budget), characters(chars), TWO_CORES).training
        assert training.tokens >= 200 * training.step_tokens


@pytest.mark.parametrize(("val_tokens", "tokenizer"), [(200, "char"), (600, "bpe")])
def test_byte_pairs_are_planned_only_where_every_split_fills_a_window(val_tokens: int, tokenizer: str) -> None:
    repeated = pairs(500_000)._replace(val_tokens=val_tokens, gain=30.0)
    assert plan.best(asked(60), (), [characters(500_000), repeated], TWO_CORES).config.data.tokenizer == tokenizer


@pytest.mark.parametrize("given", [{"n_layer": 12, "n_embd": 768}, {"size": 500_000_000}])
def test_where_few_steps_fit_a_plan_has_as_many_as_it_can(given: dict[str, Any]) -> None:
    config = planned(328_000, 2, **given)
    assert config.optim.batch_size * config.model.block_size == plan._FEWEST_STEP_TOKENS


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1, "1 second"), (20, "20 seconds"), (60, "60 seconds"), (90, "1.5 minutes"), (600, "10 minutes"), (108_000, "30 hours")],
)
def test_a_budget_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert plan._time(seconds) == said


def test_three_lines_say_why() -> None:
    why = plan.best(asked(600), (), [characters(1_100_000)], TWO_CORES).why
    assert len(why) == 3
    assert "parameters" in why[0]
    assert "tokens/s" in why[0]
    assert "is read" in why[1]


@pytest.mark.parametrize("tokens", [1e5, 1e6, 1e8])
def test_the_law_expects_less_loss_of_more_tokens_more_text_and_smaller_batches(tokens: float) -> None:
    t = Training(size=8e5, tokens=tokens, step_tokens=2048, dropout=0.0, text_tokens=1e6, vocab_size=65)
    now = LAW.nats_per_char(t)
    assert LAW.nats_per_char(t._replace(tokens=2 * tokens)) <= now
    assert LAW.nats_per_char(t._replace(text_tokens=2e6)) <= now
    assert LAW.nats_per_char(t._replace(step_tokens=1024)) < now
    enough = LAW.nats_per_char(t._replace(tokens=LAW.enough_tokens(t)))
    assert LAW.nats_per_char(t._replace(tokens=1e12)) == pytest.approx(enough, abs=0.02)  # which no training reaches: it learns by heart


@pytest.mark.parametrize("size", [1e5, 1e6, 1e7])
def test_a_text_is_read_less_often_in_tokens_of_several_characters(size: float) -> None:
    t = Training(size=size, tokens=1e9, step_tokens=1024, dropout=0.0, text_tokens=1e6, vocab_size=65)
    pairs = t._replace(text_tokens=4e5, letters=2.0, gain=1.4)
    assert LAW.enough_tokens(pairs) / 4e5 < 0.6 * LAW.enough_tokens(t) / 1e6


def test_three_measured_steps_give_the_time_of_others() -> None:
    def work(layers: int, width: int, windows: int) -> Work:
        return Work.of(ModernConfig(n_layer=layers, n_embd=width, n_head=width // 32), windows, 65)

    for real in (TWO_CORES, GPU, Machine(50e9, 30e9, 1e-2)):
        measured = [(w, real.step_s(w)) for w in (work(2, 64, 8), work(2, 64, 32), work(2, 256, 16))]
        found = fitted(measured)
        for other in (work(4, 128, 16), work(6, 192, 8)):
            assert found.step_s(other) == pytest.approx(real.step_s(other), rel=0.25)


@pytest.mark.parametrize(("step_s", "tried"), [(10.0, 2), (1e-6, len(machine._TRIED))])
def test_larger_shapes_are_measured_only_where_small_ones_are_quick(step_s: float, tried: int, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[RunConfig] = []

    def step(config: RunConfig, *given: object) -> float:
        timed.append(config)
        return step_s

    monkeypatch.setattr(machine, "_step_s", step)
    dataset: Any = SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=65))
    machine.measured(RunConfig(), dataset, 1.0)
    assert len(timed) == tried


def test_no_more_than_five_steps_of_a_shape_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be, " * 200)
    config = RunConfig().changed(
        data={"source": str(tmp_path / "text.txt")},
        model={"n_layer": 1, "n_embd": 16, "n_head": 1, "block_size": 8},
        optim={"max_steps": 10**6, "batch_size": 2},
        compute={"device": "cpu", "precision": "fp32", "attention": "plain", "compile": "off"},
    )
    taken = []
    step = TrainingState.step
    monkeypatch.setattr(TrainingState, "step", lambda *given: taken.append(1) or step(*given))
    assert machine._step_s(config, prepared(config.data, tmp_path / "data"), 60.0) > 0
    assert len(taken) == 5


def test_teachers_are_planned_where_a_text_is_known_by_heart_before_the_time_is_over() -> None:
    assert planned(30_000, 60).distil.teachers == 2
    assert planned(1_100_000, 20).distil.teachers == planned(100_000_000, 1800).distil.teachers == 0
    assert planned(1_100_000, 1800).distil.teachers > 0


@pytest.mark.parametrize("teachers", [0, 1, 5])
def test_as_many_teachers_as_are_given_are_planned_for(teachers: int) -> None:
    config = asked(60).changed(distil={"teachers": teachers})
    found = plan.best(config, ("teachers",), [characters(150_000)], TWO_CORES)
    assert found.config.distil.teachers == teachers
    assert any("trained first" in line for line in found.why) == bool(teachers)


def test_teachers_and_run_share_the_time() -> None:
    alone = asked(600, n_layer=4, n_embd=128, n_head=4)
    work = Work.of(alone.model, alone.optim.batch_size, 65)  # type: ignore[arg-type]
    training = Training.of(alone.changed(distil={"teachers": 2}), characters(10_000_000))
    speed = training.step_tokens / TWO_CORES.step_s(work)
    first, second, last = plan._chain(training, 600, speed, 0.45)
    assert [end for _, end in (first, second, last)] == pytest.approx([0.45 * 0.45 * 600, 0.45 * 600, 600])
    assert [t.teachers for t, _ in (first, second, last)] == [0, 1, 2]
    assert first[0].tokens == pytest.approx(0.45 * 0.45 * 600 * speed)
