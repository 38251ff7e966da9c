"""With a document mask no token sees an earlier document of its window; without it every earlier token is seen."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import CASES, V, build, gradients, masked, tokens
from torch import Tensor

from minigpt_cli.accel import kernels
from minigpt_cli.accel.install import install
from minigpt_cli.models.attention import document_begins
from minigpt_cli.training import grad_checkpoint

END = V - 1
ATTENDING = [(arch, variant) for arch, variant in CASES if arch != "bigram"]
every_attention = pytest.mark.parametrize(("arch", "variant"), ATTENDING, ids=[f"{a}-{'-'.join(v) or 'default'}" for a, v in ATTENDING])


every_path = pytest.mark.parametrize("path", ["formulas", "plain", "sdpa"])


def documents() -> Tensor:
    """Two windows of 40 tokens, (2, 40): documents of several lengths, and a single one."""
    ids = tokens(2, 40) % END
    ids[0, [0, 13, 14, 29]] = END
    return ids


def test_documents_begin_at_the_end_of_the_one_before() -> None:
    ids = torch.tensor([[3, 1, END, 4, 4, END], [END, END, 2, 2, 2, 2]])
    assert document_begins(ids, END).tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 1, 1, 1, 1]]


@every_path
@every_attention
@torch.no_grad()
def test_an_earlier_document_changes_no_later_logit(arch: str, variant: dict[str, object], path: str) -> None:
    model, ids = build(arch, {**variant, "block_size": 40}, path), documents()
    changed = ids.clone()
    changed[0, 1:13] = (changed[0, 1:13] + 3) % END
    seen = (model(changed).logits - model(ids).logits)[0].abs().amax(-1)
    assert (seen[13:] > 1e-6).any()  # attention goes across documents
    masked(model, END)
    hidden = (model(changed).logits - model(ids).logits)[0].abs().amax(-1)
    assert (hidden[1:13] > 1e-6).all()
    assert hidden[0] == 0
    assert torch.equal(hidden[13:], torch.zeros(27))


@every_path
@every_attention
def test_a_window_of_one_document_gives_the_same_bits(arch: str, variant: dict[str, object], path: str) -> None:
    model, ids = build(arch, {**variant, "block_size": 40}, path), documents()[1:]
    without = gradients(model, ids)
    with_mask = gradients(masked(model, END), ids)
    close = 1e-6 if path == "sdpa" else 0.0  # torch's fused attention has another kernel for a given mask
    assert without.keys() == with_mask.keys()
    assert all((without[name] - with_mask[name]).abs().max() <= close for name in without)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_compiled_it_is_the_same(arch: str) -> None:
    model, ids = masked(build(arch, {"block_size": 40}, "plain"), END), documents()
    expected = gradients(model, ids)
    model.forward = torch.compile(model.forward)  # type: ignore[method-assign]
    found = gradients(model, ids)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("arch", "variant"), [case for case in ATTENDING if case[0] != "classic"])  # whose positions are the window's
def test_each_document_is_computed_as_if_it_were_alone(arch: str, variant: dict[str, object]) -> None:
    model, ids = masked(build(arch, {**variant, "block_size": 40}, "plain"), END), documents()
    whole = model(ids).logits[0]
    for start, end in ((0, 13), (13, 14), (14, 29), (29, 40)):
        torch.testing.assert_close(model(ids[:1, start:end]).logits[0], whole[start:end], atol=2e-4, rtol=1e-4)


@every_attention
@pytest.mark.parametrize("path", ["plain", "sdpa"])
def test_installed_equals_plain(arch: str, variant: dict[str, object], path: str) -> None:
    still = {**variant, "dropout": 0.0} if "dropout" in variant else variant
    plain = masked(build(arch, {**still, "block_size": 96}, "formulas"), END).train()
    fast = install(copy.deepcopy(plain), path)
    ids = tokens(3, 97)
    expected, found = gradients(plain, ids), gradients(fast, ids)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.skipif(kernels.library() is None, reason="no C compiler")
@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_in_bfloat16_it_differs_by_rounding(arch: str) -> None:
    ids = tokens(3, 65)
    model = masked(build(arch, {"n_head": 2, "n_embd": 64, "block_size": 64}, "plain"), END)
    exact = gradients(model, ids)
    model.compute_dtype = torch.bfloat16  # type: ignore[assignment]
    found = gradients(model, ids)
    for name in exact:
        assert (found[name] - exact[name]).norm() < 0.1 * exact[name].norm() + 1e-4, name


@every_attention
def test_recomputing_activations_changes_no_gradient(arch: str, variant: dict[str, object]) -> None:
    model = masked(build(arch, {**variant, "block_size": 40, "dropout": 0.0}, "plain"), END).train()
    again = copy.deepcopy(model)
    grad_checkpoint.install(again)
    expected, found = gradients(model, documents()), gradients(again, documents())
    assert all(torch.equal(expected[name], found[name]) for name in expected)
