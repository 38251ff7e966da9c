"""What is written depends on model, prompt, settings and seed: not on the batch, the cache, the cut or the company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from minigpt_cli.config import ClassicConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.generation.decoders.c import NativeDecoder, available
from minigpt_cli.generation.decoders.torch import TorchDecoder
from minigpt_cli.generation.engine import Engine, GenerationRequest, Step
from minigpt_cli.generation.samples import Sample, collect, distinct, in_order, prompt_ids, run
from minigpt_cli.generation.sampling import NotFinite, Sampling
from minigpt_cli.generation.sampling import choose as sampling_choose
from minigpt_cli.generation.select_decoder import decoder_of
from minigpt_cli.models.contract import build_model

from .recompute import RecomputingDecoder
from .steps import generate
from .test_decoders import CONFIGS, T, V, make, weights_of

GREEDY = Sampling(temperature=0, top_k=0)
ENGINES = ["torch", *(["native", "native-fp32"] if available() else [])]
ROUNDED = [*ENGINES, *(["native-int8"] if available() else [])]
TOKEN_BYTES = [bytes([97 + i]) for i in range(V)]


def tokens(steps: Any, count: int) -> list[list[int]]:
    return [sample.tokens for sample in collect(steps, count)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("count", [1, 3])
def test_greedy_text_is_that_of_full_recomputation_inside_the_block(name: str, engine: str, count: int) -> None:
    model = make(name)
    for first in range(V):
        expected = [step.token for step in generate(RecomputingDecoder(model), [first], sampling=GREEDY, max_new_tokens=T - 1)]
        steps = generate(decoder_of(model, count, engine), [first], sampling=GREEDY, max_new_tokens=T - 1, num_samples=count)
        assert tokens(steps, count) == [expected] * count


def test_narrow_greedy_choices_are_settled_by_float32() -> None:
    """Two tokens whose logits differ by a millionth: 16-bit weights alone would not know which is larger."""
    model: Any = make("classic")
    with torch.no_grad():
        w = model.output_weight
        w[5] = w[4] * (1 + 1e-6)
    agree = []
    for engine in ENGINES:
        decoder = decoder_of(model, 1, engine)
        for first in range(V):
            ours = [s.token for s in generate(decoder, [first], sampling=GREEDY, max_new_tokens=T - 1)]
            agree.append(ours == [s.token for s in generate(RecomputingDecoder(model), [first], sampling=GREEDY, max_new_tokens=T - 1)])
    assert sum(agree) >= len(agree) - 1  # float32 itself may round a tie of a millionth either way


@pytest.mark.parametrize("engine", ROUNDED)
@pytest.mark.parametrize("name", ["classic", "modern", "moe", "bigram"])
def test_a_sample_is_the_same_alone_and_among_sixteen(name: str, engine: str) -> None:
    model, new = make(name), 3 * T  # beyond the block too
    together = tokens(generate(decoder_of(model, 16, engine), [1, 2], max_new_tokens=new, num_samples=16, seed=5), 16)
    assert len({tuple(t) for t in together}) > 1
    for few in (1, 4):
        assert tokens(generate(decoder_of(model, few, engine), [1, 2], max_new_tokens=new, num_samples=few, seed=5), few) == together[:few]
    waves = tokens(generate(decoder_of(model, 3, engine), [1, 2], max_new_tokens=new, num_samples=16, seed=5), 16)
    assert waves == together


@pytest.mark.parametrize("engine", ROUNDED)
def test_requests_in_flight_do_not_change_each_other(engine: str) -> None:
    model = make("modern")
    requests = [GenerationRequest([i % V], Sampling(temperature=1 + i / 4), 5 + 3 * i, 1 + i % 2, seed=i) for i in range(5)]
    alone = [tokens(run(Engine(decoder_of(model, 2, engine)), r), r.num_samples) for r in requests]
    together = Engine(decoder_of(model, 4, engine))
    samples: dict[int, list[Sample]] = {}
    pending = list(requests)
    while pending or together.busy:
        if pending:  # one joins at each of the first steps
            request = pending.pop(0)
            samples[together.submit(request)] = [Sample() for _ in range(request.num_samples)]
        for step in together.step():
            samples[step.request][step.sample].add(step)
    assert [[s.tokens for s in group] for group in samples.values()] == alone


def test_the_seed_decides() -> None:
    decoder = decoder_of(make("modern"), 1, "torch")
    texts = [tokens(generate(decoder, [1], max_new_tokens=20, seed=seed), 1)[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_learned_positions_start_again_with_the_newest_half() -> None:
    """Documented: when the window is full, the newest half of it is read again and becomes its beginning."""
    model: Any = make("classic")
    new = 3 * T
    ours = tokens(generate(decoder_of(model, 1, "torch"), [1], sampling=GREEDY, max_new_tokens=new), 1)[0]
    text = [1]
    context = [1]
    with torch.no_grad():
        for _ in range(new):
            token = int(model(torch.tensor([context])).logits[0, -1].argmax())
            text.append(token)
            context = text[-T // 2 :] if len(context) == T else [*context, token]
    assert ours == text[1:]


def test_of_a_prompt_longer_than_the_block_the_end_counts() -> None:
    for name in ("classic", "modern"):
        decoder = decoder_of(make(name), 1, "torch")
        long = [i % V for i in range(3 * T)]
        assert tokens(generate(decoder, long, max_new_tokens=5), 1) == tokens(generate(decoder, long[-T:], max_new_tokens=5), 1)


def test_stop_strings_end_a_sample_and_are_left_out() -> None:
    decoder = decoder_of(make("modern"), 4, "torch")
    free = collect(generate(decoder, [1], max_new_tokens=40, num_samples=4, seed=3, token_bytes=TOKEN_BYTES), 4)
    stop = free[1].text[3:5]
    for before, sample in zip(
        free,
        collect(generate(decoder, [1], max_new_tokens=40, num_samples=4, seed=3, token_bytes=TOKEN_BYTES, stop=[stop]), 4),
        strict=True,
    ):
        cut = before.text.find(stop)
        assert sample.text == (before.text if cut < 0 else before.text[:cut])
        assert sample.stop_reason == ("length" if cut < 0 else "stop")


def test_what_ends_a_text_by_itself_and_the_time_are_reasons_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of(make("modern"), 1, "torch")
    [free] = collect(generate(decoder, [1], max_new_tokens=40, seed=3, token_bytes=TOKEN_BYTES), 1)
    [ended] = collect(generate(decoder, [1], max_new_tokens=40, seed=3, token_bytes=TOKEN_BYTES, ends=[free.text[3:5]]), 1)
    assert (ended.stop_reason, ended.text) == ("eot", free.text[: free.text.find(free.text[3:5])])
    clock = iter(range(1000))
    monkeypatch.setattr("minigpt_cli.generation.engine.time.perf_counter", lambda: float(next(clock)))
    [late] = collect(generate(decoder, [1], max_new_tokens=40, seed=3, token_bytes=TOKEN_BYTES, max_time_s=5.0), 1)
    assert late.stop_reason == "time"
    assert 1 <= len(late.tokens) < 40
    assert late.text == free.text[: len(late.text)]


def test_scores_and_alternatives_are_of_the_bare_model() -> None:
    model = make("modern")
    decoder = decoder_of(model, 1, "torch")
    ids = [1]
    for step in generate(decoder, [1], sampling=Sampling(temperature=2, top_k=3), max_new_tokens=T - 1, alternatives=4):
        with torch.no_grad():
            p = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()
        assert step.nats == pytest.approx(-np.log(p[step.token]), abs=1e-4)
        order = np.argsort(-p)[:4]
        assert [i for i, _ in step.alternatives] == order.tolist()
        np.testing.assert_allclose([q for _, q in step.alternatives], p[order], atol=1e-5)
        ids.append(step.token)


def test_a_repetition_penalty_counts_prompt_and_continuation() -> None:
    decoder = decoder_of(make("modern"), 1, "torch")
    strong = Sampling(temperature=0, repetition_penalty=1e6)
    written = tokens(generate(decoder, [1, 2], sampling=strong, max_new_tokens=V - 2), 1)[0]
    logits_positive = len({1, 2, *written})
    assert logits_positive > V // 2  # tokens with positive logits are hardly ever said twice


def test_cancelling_frees_the_slots() -> None:
    engine = Engine(decoder_of(make("modern"), 2, "torch"))
    first = engine.submit(GenerationRequest([1], max_new_tokens=1000, num_samples=5))
    engine.step()
    assert engine.running == 2
    engine.cancel(first)
    assert not engine.busy
    second = engine.submit(GenerationRequest([1], max_new_tokens=3, num_samples=2))
    steps = []
    while engine.busy:
        steps += engine.step()
    assert {s.request for s in steps} == {second}
    assert len(steps) == 6


def test_leaving_the_reader_frees_the_slots() -> None:
    engine = Engine(decoder_of(make("modern"), 2, "torch"))
    reading = run(engine, GenerationRequest([1], max_new_tokens=1000))
    next(reading)
    reading.close()
    assert not engine.busy


@pytest.mark.parametrize(("ids", "new", "count"), [([], 5, 1), ([1], 0, 1), ([1], 5, 0), ([-1], 5, 1), ([1, V], 5, 1)])
def test_what_cannot_be_decoded_is_refused(ids: list[int], new: int, count: int) -> None:
    with pytest.raises(UsageError):
        list(generate(decoder_of(make("modern"), 1, "torch"), ids, max_new_tokens=new, num_samples=count))


class Overflowing(TorchDecoder):
    """A decoder whose second row of logits is not finite from the second step on, as one rare token of huge weights makes it."""

    bad = np.nan

    def step(self, ids: Any, slots: Any, positions: Any) -> Any:
        logits = super().step(ids, slots, positions)
        logits[1:] = self.bad
        return logits


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_k": 2, "top_p": 0.5, "min_p": 0.1}, {"repetition_penalty": 2}])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_give_an_error_and_never_a_token(bad: float, settings: dict[str, Any]) -> None:
    for choose in (native_choose(), sampling_choose):
        decoder = Overflowing(make("modern"), 3)
        decoder.bad, decoder.choose = bad, choose  # type: ignore[misc,method-assign]
        steps = []
        with pytest.raises(NotFinite, match="not finite"):
            steps.extend(generate(decoder, [1], sampling=Sampling(**settings), num_samples=3, max_new_tokens=5))
        assert all(0 <= step.token < V for step in steps)


def native_choose() -> Any:
    """The native decoder's choice, or the plain one where there is no compiler."""
    return NativeDecoder(weights_of(make("modern")), 1).choose if available() else sampling_choose


def test_a_prompt_whose_logits_are_not_finite_is_not_scored() -> None:
    model: Any = make("modern")
    with torch.no_grad():
        model.output_weight.fill_(3e38)
    engine = Engine(TorchDecoder(model, 1))
    engine.submit(GenerationRequest([1, 2, 3], max_new_tokens=2, alternatives=3, score_prompt=True))
    with pytest.raises(NotFinite), np.errstate(over="ignore", invalid="ignore"):
        engine.step()


def test_samples_come_in_order_the_first_one_streaming() -> None:
    steps = [
        Step(s, 0, text, stop_reason="length" if text == "." else None) for s, text in [(0, "a"), (1, "x"), (0, "b"), (1, "."), (0, ".")]
    ]
    assert [(number, step.text) for number, step in in_order(steps, 2)] == [(0, "a"), (0, "b"), (0, "."), (1, "x"), (1, ".")]


def test_distinct_n() -> None:
    assert distinct("a b a b", 1) == 0.5
    assert distinct("a b a b", 2) == pytest.approx(2 / 3)
    assert distinct("", 1) == 1


def test_generate_takes_a_torch_model_of_any_architecture() -> None:
    model = build_model(ClassicConfig(block_size=T, n_layer=1, n_head=2, n_embd=8), V, 0).eval()
    again = decoder_of(model, engine="torch")
    assert tokens(generate(model, [1], max_new_tokens=12, seed=1), 1) == tokens(generate(again, [1], max_new_tokens=12, seed=1), 1)


class _Letters:
    def encode(self, text: str) -> list[int]:
        if not text.isalpha():
            raise UsageError("unknown")
        return [ord(c) - 97 for c in text]


def test_an_empty_prompt_is_a_line_break_or_the_first_token() -> None:
    assert prompt_ids(_Letters(), "ab") == [0, 1]
    assert prompt_ids(_Letters(), "") == [0]
