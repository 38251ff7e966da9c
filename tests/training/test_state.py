"""Laws of one training step: a refused step changes nothing, the source of random numbers, and compilation happens once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt_cli.config import RunConfig
from minigpt_cli.training.state import TrainingState

V, T, B = 11, 8, 4


# torch asks tensors for .grad while it compiles and hides the warning, unless warnings are errors.
pytestmark = [pytest.mark.usefixtures("quick_compile"), pytest.mark.filterwarnings("ignore:The .grad attribute")]


def state(arch: str = "modern", **changes: Any) -> TrainingState:
    model: dict[str, Any] = {"arch": arch, "block_size": T}
    model |= {} if arch == "bigram" else {"n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.2}
    plain: dict[str, Any] = {
        "model": model,
        "optim": {"batch_size": B, "max_steps": 100, "warmup_steps": 0},
        "compute": {"device": "cpu", "precision": "fp32", "attention": "plain", "compile": "off", "threads": 1},
    }
    for name, value in changes.items():
        section, _, field = name.partition("__")
        plain[section][field] = value
    return TrainingState(RunConfig.model_validate(plain), V, torch.device("cpu"))


def windows(length: int = T) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    def batch(step: int, micro: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(V, (B, length + 1), generator=torch.Generator().manual_seed(100 * step + micro))
        return ids[:, :-1], ids[:, 1:]

    return batch


def tensors(made: TrainingState) -> dict[str, Tensor]:
    """All that a step may change, but for generators and counters of refusals."""
    found = {**made.weights(), **made.resume_tensors()}
    return {n: t for n, t in found.items() if not n.startswith(("generator.", "refused"))}


@pytest.mark.parametrize("waits", [True, False], ids=["on a CPU", "without looking"])
def test_a_refused_step_changes_nothing(waits: bool) -> None:
    made = state("moe", model__moe_balance="bias", model__n_experts=3, optim__ema=0.9)
    for number in range(3):
        made.step(number, windows())
    before = tensors(made)
    assert any("balance_bias" in name for name in before)
    assert any(name.startswith("average.") for name in before)
    made.step(3, windows())  # routes tokens; what it changed is taken back
    made.load_resume_tensors(before, {**made.resume_tensors(), **before})
    for parameter in made.model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    if not waits:
        made.device = torch.device("mps")  # where numbers are not read before they are used
    made._apply(4, torch.ones(()))
    after = tensors(made)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert made.refused_in_a_row == 1


def test_both_ways_of_averaging_agree() -> None:
    found = []
    for device in ("cpu", "mps"):
        made = state(optim__ema=0.9)
        made.step(0, windows())
        for parameter in made.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        made.device = torch.device(device)
        made._apply(1, torch.zeros(()))
        found.append(dict(made.average))
    for name, average in found[0].items():
        torch.testing.assert_close(average, found[1][name])


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_masks_depend_on_the_seed_alone(compiled: str, attention: str) -> None:
    losses = []
    for elsewhere in (1, 2):
        torch.manual_seed(elsewhere)
        made = state("classic", compute__compile=compiled, compute__attention=attention)
        losses.append([made.step(number, windows()).loss.item() for number in range(2)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_compiled_and_checkpointed_training_learns_with_the_same_masks(attention: str, quick_compile: Callable[[str], None]) -> None:
    """Checkpointing computes blocks twice: with other masks the second time, the gradient would be another."""
    quick_compile("aot_eager")
    gradients = []
    for checkpointed in (False, True):
        made = state("classic", compute__compile="on", compute__attention=attention, compute__grad_checkpoint=checkpointed)
        seen: list[Tensor] = []
        made.optimizer.step = lambda *_, made=made, seen=seen: seen.extend(p.grad.clone() for p in made.model.parameters())  # type: ignore[method-assign, misc]
        made.step(0, windows())
        gradients.append(seen)
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_a_compiled_mixture_is_compiled_only_in_its_first_step() -> None:
    made = state("moe", compute__compile="on", model__n_experts=3)
    for number in range(12):  # in each, other numbers of tokens for each expert
        made.step(number, windows())
    assert not made.recompiled


def test_compiled_float32_training_equals_the_formulas(quick_compile: Callable[[str], None]) -> None:
    quick_compile("aot_eager")
    losses = [[state(compute__compile=way, model__dropout=0.0).step(0, windows()).loss.item()] for way in ("off", "on")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_compilation_in_a_later_step_is_noticed() -> None:
    made = state("bigram", compute__compile="on")
    made.step(0, windows())
    made.step(1, windows())
    assert not made.recompiled
    made.step(2, windows(T - 1))  # as of an architecture whose shapes depend on the text
    assert made.recompiled


def test_every_run_of_a_process_is_compiled() -> None:
    """After eight compilations of one function torch gives up without a word, and a resumed run would not be the same."""
    graphs = torch._dynamo.utils.counters["stats"]
    for _ in range(10):
        before = graphs["unique_graphs"]
        state("bigram", compute__compile="on").step(0, windows())
        assert graphs["unique_graphs"] > before


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_teacher_takes_its_share_of_the_loss_and_the_loss_that_is_told_is_that_of_the_text(share: float) -> None:
    plain = state(model__dropout=0.0)
    config = plain.config.changed(distil={"teachers": 1, "teacher_share": share})
    teacher = state(model__dropout=0.0, optim__max_steps=7).model.requires_grad_(True)
    torch.nn.init.normal_(teacher.get_parameter("head.weight"), generator=torch.Generator().manual_seed(1))
    made = TrainingState(config, V, torch.device("cpu"), teacher=teacher)
    x, y = windows()(0, 0)
    y = y.clone()
    y[0, :3] = -100  # not counted, as the questions of a chat
    nats, aux_loss = made._loss(made.model, x, y, *made._expected(x))
    text = torch.nn.functional.cross_entropy(made.model(x).logits.flatten(0, 1), y.flatten())
    apart = -(teacher(x).logits.softmax(-1) * made.model(x).logits.log_softmax(-1)).sum(-1)[y >= 0].mean()
    assert nats.item() == pytest.approx(text.item(), abs=1e-6)
    assert (nats + aux_loss).item() == pytest.approx((1 - share) * text.item() + share * apart.item(), abs=1e-5)
    told = made.step(0, lambda step, micro: (x, y)).loss
    assert told.item() == pytest.approx(text.item(), abs=1e-6)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
