"""Looking inside (models/plain.py): recorded values are those of the fast model, and a missing part breaks its own law alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from architectures import T, V, build, gradients, loss_of, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from minigpt_cli.accel.install import install
from minigpt_cli.config import REMOVABLE, PlainConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.generation.engine import Engine, GenerationRequest
from minigpt_cli.generation.samples import run
from minigpt_cli.generation.sampling import Sampling
from minigpt_cli.generation.select_decoder import decoder_of
from minigpt_cli.models.contract import build_model
from minigpt_cli.models.plain import mean_values, opened, removable

TRANSFORMERS = ("classic", "modern", "moe")


# ---- the values are those of the fast model


@st.composite
def variants(draw: st.DrawFn) -> tuple[str, dict[str, object]]:
    """An architecture and any of its settings."""
    arch = draw(st.sampled_from(TRANSFORMERS))
    found: dict[str, object] = {"n_layer": draw(st.integers(1, 3)), "tie_weights": draw(st.booleans())}
    if arch == "classic":
        return arch, found | {"bias": draw(st.booleans()), "activation": draw(st.sampled_from(["gelu", "gelu_tanh", "relu"]))}
    found |= {"n_kv_head": draw(st.sampled_from([0, 1, 2])), "qk_norm": draw(st.booleans()), "zero_init": False}
    if arch == "moe":
        experts = draw(st.integers(2, 4))
        k = draw(st.integers(1, experts))
        balance = draw(st.sampled_from(["aux", "bias", "none"]))
        found |= {"n_experts": experts, "moe_top_k": k, "moe_norm_topk": k > 1 and draw(st.booleans()), "moe_balance": balance}
    return arch, found


@given(variants(), st.integers(0, 2**16))
@settings(max_examples=25)
def test_an_opened_model_has_the_logits_and_gradients_of_the_fast_one(variant: tuple[str, dict[str, object]], seed: int) -> None:
    fast = build(*variant, "plain", seed)
    ids, found = tokens(2, T + 1, seed=seed), {}
    logits, expected = fast(ids[:, :-1]).logits, gradients(fast, ids)
    with opened(fast, watch=found):
        torch.testing.assert_close(fast(ids[:, :-1]).logits, logits, atol=1e-4, rtol=1e-4)
        for name, gradient in gradients(fast, ids).items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["final"] @ fast.output_weight.T, logits, atol=1e-4, rtol=1e-4)


@given(st.integers(0, 2**16))
@settings(max_examples=5)
def test_a_plain_model_takes_the_weights_of_a_modern_one_and_writes_its_text(seed: int) -> None:
    modern = build("modern", {}, "plain", seed)
    plain = build_model(PlainConfig(**modern.config.model_dump(exclude={"arch"})), V).eval()
    plain.load_state_dict(modern.state_dict())
    request = GenerationRequest(tokens(3, seed=seed).tolist(), Sampling(temperature=0), max_new_tokens=64)
    texts = [[step.token for step in run(Engine(decoder_of(model)), request)] for model in (modern, plain)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("arch", TRANSFORMERS)
@torch.no_grad()
def test_recorded_values_add_up_to_the_stream(arch: str) -> None:
    model, found = build(arch, {"n_kv_head": 2}, "plain"), {}
    with opened(model, watch=found):
        model(tokens(2, T))
    before, after = found["stream.0.before"], found["stream.1.before"]
    torch.testing.assert_close(before + found["0.attention_out"] + found["0.mlp_out"], after)
    weights, v = found["0.weights"], found["0.v"]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, T))
    repeated = v.repeat_interleave(4 // v.size(1), dim=1)
    torch.testing.assert_close((weights @ repeated).transpose(1, 2), found["0.head_out"])
    if arch == "moe":
        torch.testing.assert_close(found["0.router"].sum(-1), torch.ones(2 * T))


@pytest.mark.parametrize("arch", TRANSFORMERS)
@torch.no_grad()
def test_a_model_is_as_before_once_it_is_closed_also_after_an_error(arch: str) -> None:
    model = build(arch, {}, "plain")
    kinds, logits = [type(module) for module in model.modules()], model(tokens(2, T)).logits
    with pytest.raises(ZeroDivisionError), opened(model, without=REMOVABLE, watch={}):
        raise ZeroDivisionError
    with pytest.raises(KeyError), opened(model, without=["mask", "mlp 1"], means={}):
        pass
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(model(tokens(2, T)).logits, logits)


# ---- every part that is left out breaks its own law and no other


def watched(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """What is recorded while the model, with the parts that it lacks, reads ids."""
    found: dict[str, Tensor] = {}
    with opened(model, watch=found):
        found["logits"] = model(ids).logits
    return found


def future_tokens_do_not_change_past_logits(model: nn.Module) -> bool:
    ids = tokens(1, T)
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % V
    return torch.allclose(model(ids).logits[:, :-1], model(changed).logits[:, :-1], atol=1e-5)


def attention_depends_on_the_order_of_the_past(model: nn.Module) -> bool:
    ids, order = torch.arange(T)[None], [*range(T - 2, -1, -1), T - 1]
    straight, turned = watched(model, ids)["0.weights"], watched(model, ids[:, order])["0.weights"]
    return not torch.allclose(straight[:, :, -1][..., order], turned[:, :, -1], atol=1e-5)


def the_past_changes_the_next_logits(model: nn.Module) -> bool:
    ids = tokens(1, T)
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % V
    return not torch.allclose(model(ids).logits[:, -1], model(changed).logits[:, -1], atol=1e-5)


def feed_forwards_change_the_logits(model: nn.Module) -> bool:
    before = model(tokens(1, T)).logits
    with scaled(model, ("down", "down.weight", "down.bias"), 0.0):
        return not torch.allclose(model(tokens(1, T)).logits, before, atol=1e-5)


def a_block_that_adds_nothing_lets_the_token_through(model: nn.Module) -> bool:
    with scaled(model, ("down", "down.weight", "down.bias", "out.weight", "out.bias"), 0.0):
        logits = model(torch.tensor([[1, 2]])).logits
    return not torch.allclose(logits[:, 0], logits[:, 1], atol=1e-5)


def the_size_of_the_stream_does_not_matter(model: nn.Module) -> bool:
    with scaled(model, ("down", "down.weight", "down.bias", "out.weight", "out.bias"), 0.0):
        before = model(tokens(1, T)).logits
        with scaled(model, ("embedding.weight",), 3.0):
            return torch.allclose(model(tokens(1, T)).logits, before, atol=1e-3)


def scores_are_divided_by_the_root_of_the_head_size(model: nn.Module) -> bool:
    found = watched(model, tokens(1, T))
    q, k, logs = found["0.q"], found["0.k"].repeat_interleave(4 // found["0.k"].size(1), dim=1), found["0.weights"].log()
    scores = (q @ k.mT) * q.size(-1) ** -0.5
    first_and_second = slice(1, None), slice(0, 2)  # keys 0 and 1, which every later query sees
    steps = scores[..., *first_and_second].diff(dim=-1), logs[..., *first_and_second].diff(dim=-1)
    return torch.allclose(*steps, atol=1e-3)


LAWS: dict[str, Callable[[nn.Module], bool]] = {
    "mask": future_tokens_do_not_change_past_logits,
    "positions": attention_depends_on_the_order_of_the_past,
    "attention": the_past_changes_the_next_logits,
    "mlp": feed_forwards_change_the_logits,
    "residual": a_block_that_adds_nothing_lets_the_token_through,
    "norm": the_size_of_the_stream_does_not_matter,
    "scale": scores_are_divided_by_the_root_of_the_head_size,
}


class scaled:
    """Parameters whose names end in one of `endings`, times a factor, within a block."""

    def __init__(self, model: nn.Module, endings: tuple[str, ...], factor: float) -> None:
        self.parameters = [p for name, p in model.named_parameters() if name.endswith(endings)]
        self.factor, self.before = factor, [p.clone() for p in self.parameters]

    def __enter__(self) -> None:
        for p in self.parameters:
            p.mul_(self.factor)

    def __exit__(self, *_: object) -> None:
        for p, before in zip(self.parameters, self.before, strict=True):
            p.copy_(before)


@pytest.mark.parametrize("arch", TRANSFORMERS)
@pytest.mark.parametrize("part", REMOVABLE)
@torch.no_grad()
def test_a_part_that_is_left_out_breaks_its_own_law_alone(arch: str, part: str) -> None:
    model = build(arch, {}, "plain", seed=1)
    assert all(law(model) for law in LAWS.values())
    with opened(model, without={part}):
        assert {name for name, law in LAWS.items() if not law(model)} == {part}
    assert all(law(model) for law in LAWS.values())


@pytest.mark.parametrize("part", REMOVABLE)
@torch.no_grad()
def test_a_plain_model_lacks_what_its_configuration_leaves_out(part: str) -> None:
    modern = build("modern", {}, "plain", seed=1)
    plain = build_model(PlainConfig(**modern.config.model_dump(exclude={"arch"}), without=part), V).eval()
    plain.load_state_dict(modern.state_dict())
    assert {name for name, law in LAWS.items() if not law(install(copy.deepcopy(plain)))} == {part}
    with opened(modern, without={part}):
        torch.testing.assert_close(plain(tokens(2, T)).logits, modern(tokens(2, T)).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("part", REMOVABLE)
def test_a_model_without_a_part_can_be_trained(part: str) -> None:
    model = build("plain", {"without": part, "n_layer": 1}, "plain").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        losses.append(loss := loss_of(model, tokens(4, T + 1)))
        for p, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):  # as in training
            p.grad = gradient
        optimizer.step()
    assert losses[-1] < losses[0]


def test_a_model_without_a_residual_stream_does_not_begin_at_zero() -> None:
    for config, same in (
        (PlainConfig(), True),
        (PlainConfig(without="residual"), False),
        (PlainConfig(without="residual", zero_init=True), True),
    ):
        logits = build_model(config, V, seed=0)(torch.arange(T)[None]).logits[0]
        assert torch.allclose(logits, logits[:1], atol=1e-6) == same, config


def test_a_model_without_a_mask_writes_from_its_whole_window() -> None:
    model = build("plain", {"without": "mask"}, "plain")
    request = GenerationRequest(tokens(3).tolist(), Sampling(temperature=0), max_new_tokens=T - 3)
    written = tokens(3).tolist()
    with torch.no_grad():
        for _ in range(T - 3):
            written.append(int(model(torch.tensor([written])).logits[0, -1].argmax()))
    assert [step.token for step in run(Engine(decoder_of(model)), request)] == written[3:]
    longer = GenerationRequest(tokens(3).tolist(), Sampling(temperature=0), max_new_tokens=3 * T)
    assert len(list(run(Engine(decoder_of(model)), longer))) == 3 * T


@pytest.mark.parametrize("without", ["mask+ mask", "eyes", "mask,norm", "head 0.0"])
def test_an_unknown_part_is_refused_by_name(without: str) -> None:
    with pytest.raises(ValueError, match="is no part: join some of mask, positions"):
        PlainConfig(without=without)


# ---- means in place of an output


def sample(arch: str) -> Iterator[tuple[nn.Module, Tensor, dict[str, Tensor]]]:
    for path in ("formulas", "plain"):
        model, ids = build(arch, {}, path, seed=1), tokens(3, T)
        yield model, ids, watched(model, ids)


@pytest.mark.parametrize("arch", TRANSFORMERS)
@torch.no_grad()
def test_every_removable_part_matters_and_a_layer_is_both_of_its_parts(arch: str) -> None:
    for model, ids, found in sample(arch):
        means = mean_values(found)
        for part in removable(model):
            with opened(model, without={part}, means=means):
                assert not torch.allclose(model(ids).logits, found["logits"], atol=1e-4), part
        after: dict[str, Tensor] = {}
        with opened(model, without={"layer 0"}, means=means, watch=after):
            model(ids)
        added = found["0.attention_out"].mean((0, 1)) + found["0.mlp_out"].mean((0, 1))
        torch.testing.assert_close(after["stream.1.before"], found["stream.0.before"] + added)


@pytest.mark.parametrize("arch", TRANSFORMERS)
@torch.no_grad()
def test_a_head_that_is_not_read_changes_nothing_when_it_is_taken_out(arch: str) -> None:
    for model, ids, found in sample(arch):
        with scaled(model, ("blocks.0.attention.out.weight",), 1.0):
            model.blocks[0].attention.out.weight[:, 8:16] = 0  # the columns of head 1 of 4, in a width of 32
            means = mean_values(watched(model, ids))
            before = model(ids).logits
            with opened(model, without={"head 0.1"}, means=means):
                assert torch.equal(model(ids).logits, before)
            with opened(model, without={"head 0.2"}, means=means):
                assert not torch.allclose(model(ids).logits, before, atol=1e-4)
        assert torch.equal(watched(model, ids)["logits"], found["logits"])


def test_a_part_that_the_model_does_not_have_is_refused() -> None:
    model, message = build("modern", {}, "plain"), r"no part 'head 7.0': choose from mask, .*head 0.0, "
    with pytest.raises(UsageError, match=message), opened(model, without={"head 7.0"}):
        pass
