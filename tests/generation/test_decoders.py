"""Every decoder computes what the model's own forward computes, cached or not, alone or in a batch."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from minigpt_cli.config import ARCHITECTURES, BigramConfig, ClassicConfig, ModernConfig, MoEConfig
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.generation.decoders import c
from minigpt_cli.generation.decoders.c import NativeDecoder, available, library
from minigpt_cli.generation.decoders.c_model import quantised
from minigpt_cli.generation.decoders.contract import Decoder
from minigpt_cli.generation.decoders.torch import TorchDecoder
from minigpt_cli.generation.decoders.weights import decoder_weights, expected_shapes
from minigpt_cli.generation.sampling import NotFinite, Sampling, choose
from minigpt_cli.generation.select_decoder import decoder_of, slots_for
from minigpt_cli.models.attention import CausalAttention
from minigpt_cli.models.contract import build_model
from minigpt_cli.storage import native_build

from .recompute import RecomputingDecoder

V, T = 11, 8
SMALL: dict[str, Any] = {"block_size": T, "n_layer": 2, "n_head": 2, "n_embd": 16, "init_std": 0.4}
MODERN = SMALL | {"zero_init": False}
CONFIGS = {
    "bigram": BigramConfig(block_size=T),
    "classic": ClassicConfig(**SMALL),
    "classic-bias-tied": ClassicConfig(**SMALL, bias=True, tie_weights=True),
    "classic-relu": ClassicConfig(**SMALL, activation="relu", bias=True),
    "classic-tanh": ClassicConfig(**SMALL, activation="gelu_tanh"),
    "classic-odd-head": ClassicConfig(**SMALL | {"n_embd": 10}),
    "classic-narrow": ClassicConfig(**SMALL, ffn_mult=1.3, bias=True),
    "modern": ModernConfig(**MODERN),
    "modern-gqa": ModernConfig(**MODERN | {"n_head": 4}, n_kv_head=2, qk_norm=False, tie_weights=True),
    "modern-wide-head": ModernConfig(**MODERN | {"n_embd": 80}),  # whole vectors of channels and some more
    "moe": MoEConfig(**MODERN),
    "moe-top1-bias": MoEConfig(**MODERN, n_experts=5, moe_top_k=1, moe_balance="bias", qk_norm=False),
    "moe-renormalised": MoEConfig(**MODERN, n_experts=3, moe_top_k=2, moe_norm_topk=True),
}
native = pytest.mark.skipif(not available(), reason="no C compiler to build the native decoder with")


def make(name: str, seed: int = 0) -> torch.nn.Module:
    """A model whose gains and biases are random too, so that nothing hides."""
    model = build_model(CONFIGS[name], V, seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
        for key, buffer in model.named_buffers():
            if key in model.state_dict():  # the balance bias of an expert's choice, where it is kept
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model


def weights_of(model: Any) -> Any:
    return decoder_weights(model.config, {name: t.detach().numpy() for name, t in model.state_dict().items()})


def native32_of(model: Any, slots: int) -> Decoder:
    return decoder_of(model, slots, "native-fp32")


DECODERS = [
    pytest.param(native32_of, id="native", marks=native),
    pytest.param(TorchDecoder, id="torch"),
]
MakeDecoder = Callable[[Any, int], Decoder]


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def reference(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def test_every_known_architecture_is_tested() -> None:
    assert {config.arch for config in CONFIGS.values()} == {arch for arch, config in ARCHITECTURES.items() if config.decodes_as}


def test_expected_shapes_are_those_of_the_model(model: Any) -> None:
    assert expected_shapes(model.config, V) == {name: tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("make_decoder", DECODERS)
@pytest.mark.parametrize("prefix", [1, 3, T])
def test_cached_logits_equal_those_of_forward(model: Any, make_decoder: MakeDecoder, prefix: int) -> None:
    ids = np.random.default_rng(0).integers(0, V, T).tolist()
    expected = reference(model, ids)
    decoder = make_decoder(model, 2)
    found = [decoder.extend(1, ids[:prefix], 0).copy()]
    found += [decoder.step([ids[i]], [1], [i])[0].copy() for i in range(prefix, T)]
    np.testing.assert_allclose(found, expected[prefix - 1 :], atol=2e-5)


@pytest.mark.parametrize("make_decoder", DECODERS)
def test_slots_do_not_see_each_other(model: Any, make_decoder: MakeDecoder) -> None:
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, V, T).tolist() for _ in range(3)]
    begun = [5, 2, 3]
    decoder = make_decoder(model, 3)
    for slot, (ids, n) in enumerate(zip(texts, begun, strict=True)):
        decoder.extend(slot, ids[:n], 0)
    order = [2, 0, 1]  # rows in any order, positions apart
    for k in range(3):
        logits = decoder.step([texts[s][begun[s] + k] for s in order], order, [begun[s] + k for s in order])
        for row, s in enumerate(order):
            np.testing.assert_allclose(logits[row], reference(model, texts[s][: begun[s] + k + 1])[-1], atol=2e-5)


@pytest.mark.parametrize("make_decoder", DECODERS)
def test_a_copied_slot_is_independent(model: Any, make_decoder: MakeDecoder) -> None:
    decoder = make_decoder(model, 2)
    decoder.extend(0, [1, 2, 3], 0)
    decoder.copy(0, 1, 3)
    logits = decoder.step([4, 5], [0, 1], [3, 3])
    np.testing.assert_allclose(logits[0], reference(model, [1, 2, 3, 4])[-1], atol=2e-5)
    np.testing.assert_allclose(logits[1], reference(model, [1, 2, 3, 5])[-1], atol=2e-5)


@pytest.mark.parametrize("make_decoder", DECODERS)
def test_a_slot_can_be_used_again(model: Any, make_decoder: MakeDecoder) -> None:
    decoder = make_decoder(model, 1)
    decoder.extend(0, [7] * T, 0)
    np.testing.assert_allclose(decoder.extend(0, [3, 4], 0), reference(model, [3, 4])[-1], atol=2e-5)


@pytest.mark.parametrize("make_decoder", DECODERS)
@pytest.mark.parametrize("name", ["modern", "modern-gqa", "moe"])
def test_beyond_the_block_each_token_sees_the_window_before_it(name: str, make_decoder: MakeDecoder) -> None:
    """The reference is the model run on everything with attention masked to a band as wide as the block."""
    model: Any = make(name)
    ids = np.random.default_rng(2).integers(0, V, 3 * T).tolist()
    decoder = make_decoder(model, 1)
    decoder.extend(0, ids[: T - 2], 0)
    for i in range(T - 2, len(ids)):
        logits = decoder.step([ids[i]], [0], [i])[0]
    for module in model.modules():
        if isinstance(module, CausalAttention):
            module.forward = _banded
    np.testing.assert_allclose(logits, reference(model, ids)[-1], atol=1e-4)


def _banded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, begins: None) -> torch.Tensor:
    n, groups = q.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    ahead = torch.arange(n)[:, None] - torch.arange(n)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill((ahead < 0) | (ahead >= T), float("-inf"))
    return scores.softmax(-1) @ v


@native
@pytest.mark.parametrize(("bits", "by_bytes"), [(32, False), (16, False), (16, True), (8, False), (8, True)])
@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "bigram"])
def test_native_results_are_bit_equal_with_any_batch_cut_and_threads(name: str, bits: int, by_bytes: bool) -> None:
    """With and without the processor's products of bytes, where it has them."""
    weights = weights_of(make(name))
    ids = np.random.default_rng(3).integers(0, V, T).tolist()
    alone = NativeDecoder(weights, 1, bits=bits, threads=1, by_bytes=by_bytes)
    expected = [alone.extend(0, ids[:1], 0).copy(), *(alone.step([ids[i]], [0], [i])[0].copy() for i in range(1, T))]
    for threads in (1, 2):
        decoder = NativeDecoder(weights, 18, bits=bits, threads=threads, by_bytes=by_bytes)
        for cut in range(1, T + 1):
            assert np.array_equal(decoder.extend(0, ids[:cut], 0), expected[cut - 1])
            for i in range(cut, T):
                assert np.array_equal(decoder.extend(0, [ids[i]], i), expected[i])
        for rows in (2, 5, 6, 7, 9, 16, 18):
            for s in range(rows):
                decoder.extend(s, ids[: T - 2], 0)
            for i in (T - 2, T - 1):
                logits = decoder.step([ids[i]] * rows, list(range(rows)), [i] * rows)
                assert all(np.array_equal(row, expected[i]) for row in logits)


@native
@pytest.mark.parametrize("by_bytes", [False, True])
@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "bigram"])
def test_16_bit_weights_stay_near_and_exact_logits_are_float32(name: str, by_bytes: bool) -> None:
    model = make(name)
    ids = np.random.default_rng(4).integers(0, V, T).tolist()
    decoder, expected = NativeDecoder(weights_of(model), 1, bits=16, by_bytes=by_bytes), reference(model, ids)[-1]
    assert np.abs(decoder.extend(0, ids, 0) - expected).max() < 1e-3 * np.abs(expected).max() + 1e-4
    np.testing.assert_allclose(decoder.exact(ids), expected, atol=2e-5)


@pytest.mark.parametrize("bits", [8, 16])
def test_quantised_rows_differ_by_at_most_half_a_level(bits: int) -> None:
    matrix = np.random.default_rng(5).normal(size=(7, 33)).astype(np.float32)
    matrix[3] = 0
    numbers, scale = quantised(matrix, bits)
    assert scale is not None
    assert numbers.itemsize == bits // 8
    assert (np.abs(numbers * scale[:, None] - matrix) <= 0.5001 * scale[:, None]).all()


def test_without_the_library_torch_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    native_build.forget()
    monkeypatch.setenv("MINIGPT_NATIVE", "0")
    try:
        assert isinstance(decoder_of(make("classic")), TorchDecoder)
    finally:
        monkeypatch.undo()
        native_build.forget()


def test_the_recomputing_decoder_is_the_model_itself() -> None:
    model = make("classic")
    decoder = RecomputingDecoder(model, 1)
    decoder.extend(0, [1, 2], 0)
    np.testing.assert_array_equal(decoder.step([3], [0], [2])[0], reference(model, [1, 2, 3])[-1])


@native
@pytest.mark.parametrize("name", ["classic", "modern"])
@pytest.mark.parametrize(
    ("ids", "slots", "positions", "says"),
    [
        ([-1], [0], [0], "token"),
        ([V], [0], [0], "token"),
        ([2**31 - 1], [0], [0], "token"),
        ([1], [-1], [0], "slot"),
        ([1], [3], [0], "slot"),
        ([1, 1, 1], [0, 1, 0], [0, 0, 1], "slot"),  # two threads would write to it
        ([1], [0], [-1], "position"),
        ([1, 1], [0, 1], [0, -(2**31)], "position"),
        ([], [], [], "rows"),
    ],
)
def test_the_native_decoder_checks_every_index(name: str, ids: list[int], slots: list[int], positions: list[int], says: str) -> None:
    decoder = NativeDecoder(weights_of(make(name)), 3, threads=2)
    expected = decoder.extend(0, [1, 2], 0).copy()
    with pytest.raises(MiniGPTError, match=says) as caught:
        decoder.step(ids, slots, positions)
    assert "\n" not in str(caught.value)
    assert np.array_equal(decoder.extend(0, [1, 2], 0), expected)


@native
def test_the_native_decoder_checks_what_it_copies_and_learned_positions() -> None:
    decoder = NativeDecoder(weights_of(make("classic")), 2)
    for source, target, length in ((0, 2, 1), (-1, 0, 1), (0, 1, -1)):
        with pytest.raises(MiniGPTError, match=r"slot|position"):
            decoder.copy(source, target, length)
    decoder.copy(0, 1, 10 * T)  # no more than the window is there
    with pytest.raises(MiniGPTError, match="position"):
        decoder.step([1], [0], [T])


@native
def test_a_model_whose_sizes_do_not_agree_is_refused() -> None:
    weights = weights_of(make("moe"))
    for change in ({"vocab_size": V + 1}, {"n_head": 3}, {"n_embd": 8}, {"moe_top_k": 9}, {"moe_top_k": 0}, {"block_size": 2**31 - 1}):
        with pytest.raises(MiniGPTError, match="do not agree"):
            NativeDecoder(dataclasses.replace(weights, **change), 1)


@native
def test_too_little_memory_is_one_line() -> None:
    weights = dataclasses.replace(weights_of(make("modern")), block_size=1 << 24)
    with pytest.raises(MiniGPTError, match="no memory for the decoder"):
        NativeDecoder(weights, 1 << 22)


@native
def test_a_step_of_another_number_of_threads_may_begin_while_one_is_still_leaving_the_barrier() -> None:
    """The threads of a step may not look at anything that the next step writes."""
    weights = weights_of(make("modern"))
    decoder, alone = NativeDecoder(weights, 1, threads=3), NativeDecoder(weights, 1, threads=1)
    for i in range(300):
        for each, threads in ((decoder, 1 + i % 3), (alone, 1)):
            each._ids[0], each._slots[0], each._positions[0] = i % V, 0, i
            each._call(1, 0, threads)
        assert np.array_equal(decoder._logits[0], alone._logits[0])


@native
def test_a_forked_child_decodes_and_ends_without_the_threads_of_its_parent() -> None:
    decoder = NativeDecoder(weights_of(make("modern")), 1, threads=2)
    expected = decoder.extend(0, [1, 2, 3], 0).copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks in processes with threads
        child = os.fork()
    if child == 0:
        same = np.array_equal(decoder.extend(0, [1, 2, 3], 0), expected)
        decoder.__del__()
        os._exit(0 if same else 1)
    for _ in range(1000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.array_equal(decoder.extend(0, [1, 2, 3], 0), expected)


@native
@pytest.mark.parametrize("seed", range(40))
def test_native_choice_is_that_of_the_small_functions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    decoder = NativeDecoder(weights_of(make("classic")), 1)
    sampling = Sampling(
        temperature=float(rng.choice([0, 0.3, 1, 2.5])), top_k=int(rng.choice([0, 1, 3, V, 50])), top_p=float(rng.choice([1, 0.9, 0.3])),
        min_p=float(rng.choice([0, 0.05, 0.5])), repetition_penalty=float(rng.choice([1, 1.5])),
    )  # fmt: skip
    logits = rng.normal(size=(64, V)).astype(np.float32) * 3
    logits[:10] = np.round(logits[:10])  # ties
    seen, uniforms = rng.random((64, V)) < 0.4, rng.random(64)
    uniforms[:2] = 0, np.nextafter(1, 0)
    ids, margins = decoder.choose(logits, sampling, uniforms, seen)
    expected, expected_margins = choose(logits, sampling, uniforms, seen)
    assert ids.tolist() == expected.tolist()
    np.testing.assert_allclose(margins, expected_margins, rtol=1e-5, atol=1e-9)
    for i in range(20):
        one = slice(i, i + 1)
        assert decoder.choose(logits[one], sampling, uniforms[one], seen[one])[0][0] == ids[i]


@native
@pytest.mark.parametrize("sampling", [
    Sampling(temperature=0), Sampling(temperature=0, repetition_penalty=1.5), Sampling(top_k=1), Sampling(top_k=7, repetition_penalty=2.0),
    Sampling(top_k=50, temperature=0.9), Sampling(top_k=50, top_p=0.8), Sampling(top_k=60, min_p=0.1), Sampling(top_k=2000),
    Sampling(top_k=0),
])  # fmt: skip
def test_native_choice_among_many_tokens_is_that_of_the_small_functions(sampling: Sampling) -> None:
    """Of a large vocabulary C looks closely at few tokens only."""
    large, rng = 5000, np.random.default_rng(5)
    model = build_model(ClassicConfig(**SMALL), large, 0)
    decoder = NativeDecoder(weights_of(model), 1)
    logits = rng.normal(size=(12, large)).astype(np.float32) * 3
    logits[:4] = np.round(logits[:4] * 4) / 4  # many ties
    logits[4] *= 1e-30
    logits[5] += 1e4
    logits[6] = np.sort(logits[6])
    seen, uniforms = rng.random((12, large)) < 0.4, rng.random(12)
    ids, margins = decoder.choose(logits, sampling, uniforms, seen)
    expected, expected_margins = choose(logits, sampling, uniforms, seen)
    assert ids.tolist() == expected.tolist()
    np.testing.assert_allclose(margins, expected_margins, rtol=1e-5, atol=1e-9)


@native
def test_a_logit_that_is_not_finite_is_found_among_many_tokens() -> None:
    logits = np.zeros((1, 3000), np.float32)
    logits[0, 1234] = -np.inf
    decoder = NativeDecoder(weights_of(build_model(ClassicConfig(**SMALL), 3000, 0)), 1)
    with pytest.raises(NotFinite):
        decoder.choose(logits, Sampling(), np.zeros(1))


@native
def test_a_prompt_of_several_calls_has_the_logits_of_its_last_token() -> None:
    model = build_model(ModernConfig(**MODERN | {"block_size": 150}), V, 0)
    ids = np.random.default_rng(6).integers(0, V, 150).tolist()
    decoder = native32_of(model, 1)
    for n in (64, 65, 128, 150):
        np.testing.assert_allclose(decoder.extend(0, ids[:n], 0), reference(model, ids[:n])[-1], atol=2e-5)


@native
def test_the_threads_of_a_prompt_are_those_that_were_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, used = [0.0], []
    monkeypatch.setattr(c, "cores", lambda: 2)
    monkeypatch.setattr(c._Threads, "SMALL", 0)
    decoder = NativeDecoder(weights_of(make("modern")), 1)

    def call(rows: int, first_logits: int, threads: int) -> None:
        used.append(threads)
        clock[0] += 1 / threads

    monkeypatch.setattr(decoder, "_call", call)
    monkeypatch.setattr(c.time, "perf_counter", lambda: clock[0])
    for _ in range(4):
        decoder.extend(0, [1] * T, 0)
    assert used == [1, 2, 2, 2]


def test_a_cache_of_16_bits_leaves_room_for_twice_as_many_slots() -> None:
    config = ClassicConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024)
    assert (slots_for(config, 64, 16), slots_for(config, 64), slots_for(config, 3)) == (28, 14, 3)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "bigram"])
def test_exact_logits_of_the_torch_decoder_are_those_of_one_pass_to_the_bit(name: str) -> None:
    model = make(name)
    decoder = TorchDecoder(model, 1)
    decoder.extend(0, [1, 2, 3], 0)
    np.testing.assert_array_equal(decoder.exact([4, 5, 6, 7]), reference(model, [4, 5, 6, 7])[-1])
    np.testing.assert_allclose(decoder.step([4], [0], [3])[0], reference(model, [1, 2, 3, 4])[-1], atol=2e-5)  # the slot is as it was


@native
def test_c_reads_every_field_of_sampling() -> None:
    """A field that Python has and csrc/sampling.h has not would be ignored, and shift those behind it."""
    lib = library()
    assert lib is not None
    assert lib.mg_sampling_size() == 8 * len(dataclasses.fields(Sampling))


@native
@pytest.mark.parametrize("top_k", [2**32 + 3, 2**63, 2**64 + 3])
def test_a_top_k_that_no_integer_of_c_holds_keeps_every_token(top_k: int) -> None:
    decoder, logits = NativeDecoder(weights_of(make("classic")), 1), np.linspace(1, 0, V, dtype=np.float32)[None]
    almost_one = np.array([np.nextafter(1, 0)])
    assert decoder.choose(logits, Sampling(top_k=top_k), almost_one)[0].tolist() == [V - 1]


def test_a_model_without_a_cache_reads_all_of_its_context() -> None:
    model = make("classic")
    model.new_cache = lambda *_: None
    ids = np.random.default_rng(0).integers(0, V, T).tolist()
    expected = reference(model, ids)
    decoder = TorchDecoder(model, 2)
    np.testing.assert_allclose(decoder.extend(0, ids[:3], 0), expected[2], atol=2e-5)
    decoder.copy(0, 1, 3)
    np.testing.assert_allclose([decoder.step([ids[i]], [1], [i])[0] for i in range(3, T)], expected[3:], atol=2e-5)
    np.testing.assert_allclose(decoder.extend(0, ids[:2], 0), expected[1], atol=2e-5)
