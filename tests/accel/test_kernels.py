"""Each operation in C, and its gradient, agrees with autograd's of the plain formula; dropout drops what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from minigpt_cli.accel import attention, experts, kernels
from minigpt_cli.accel.install import cross_entropy
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.models.attention import rotary_angles

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no C compiler")
CPU = torch.device("cpu")
SIDE, KEYS = 16, 4  # queries and keys of attention whose dropout is decided by one number


def attend(heads: Tensor, n_head: int, p: float = 0.0, seed: int = 0) -> Tensor:
    """Attention of `heads` in C, dropping weights with probability p by a mask drawn from `seed`."""
    core = attention.CausalAttention(p).train()
    core.dropout.generator = torch.Generator().manual_seed(seed)
    return core.among(heads, n_head)


def dropout(x: Tensor, p: float, seed: int) -> Tensor:
    return kernels.Dropped.apply(x, kernels.draw_dropout_mask(p, torch.Generator().manual_seed(seed)))


def kept_by(shape: tuple[int, ...], p: float, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
    """Which elements a mask keeps, and the scale of the others."""
    ones = dropout(torch.ones(shape, dtype=dtype), p, seed)
    return (ones != 0).float(), ones.max().item()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def naive_rms_norm(x: Tensor, w: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * w


def naive_layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return naive_rms_norm(centered, w) + b


def naive_swiglu(x: Tensor) -> Tensor:
    half = x.size(-1) // 2
    return x[..., :half] * torch.sigmoid(x[..., :half]) * x[..., half:]


def naive_rotation(x: Tensor, theta: float = 100.0) -> Tensor:
    """Pairs (x[d], x[d + D / 2]) as complex numbers times exp(i position frequency)."""
    T, D = x.size(1), x.size(-1)
    angle = torch.arange(T)[:, None] / theta ** (torch.arange(0, D, 2) / D)  # (T, D / 2)
    turned = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def naive_heads(x: Tensor, w: Tensor | None) -> Tensor:
    first = x[:, :, :3] if w is None else naive_rms_norm(x[:, :, :3], w)
    return torch.cat((naive_rotation(first), x[:, :, 3:]), dim=2)


def naive_attention(heads: Tensor, n_head: int) -> Tensor:
    """One query at a time."""
    B, T, n, D = heads.shape
    share = n_head // ((n - n_head) // 2)
    rows = []
    for t in range(T):
        for h in range(n_head):
            k = heads[:, : t + 1, n_head + h // share]
            v = heads[:, : t + 1, n_head + (n - n_head) // 2 + h // share]
            weights = (k @ heads[:, t, h, :, None]).div(D**0.5).softmax(1)  # (B, t + 1, 1)
            rows.append((weights * v).sum(1))
    return torch.stack(rows, 1).view(B, T, n_head * D)


ANGLES = rotary_angles(0, 40, 64, 100.0, CPU)
PAIRS_OF_TWO = experts.pairs_by_expert(torch.tensor([[2, 1], [0, 1], [2, 0]]), 3, in_c=True)  # experts 0: tokens 1, 2; 1: 0, 1; 2: 0, 2
PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = {
    "rms_norm": (lambda x, w: kernels.Norm.apply(x, w, None, 1e-3, False), naive_rms_norm, [random(2, 300, 16), random(16, seed=1)]),
    "layer_norm": (
        lambda x, w: kernels.Norm.apply(x, w, None, 1e-3, True),
        lambda x, w: naive_layer_norm(x, w, torch.zeros(32)),
        [random(2, 5, 32), random(32, seed=1)],
    ),
    "layer_norm bias": (
        lambda x, w, b: kernels.Norm.apply(x, w, b, 1e-3, True),
        naive_layer_norm,
        [random(3, 200, 48), random(48, seed=1), random(48, seed=2)],
    ),
    "swiglu": (kernels.SwiGLU.apply, naive_swiglu, [random(3, 4, 64)]),
    "gelu": (lambda x: kernels.Gelu.apply(6 * x, False), lambda x: 6 * x * (1 + torch.erf(6 * x / 2**0.5)) / 2, [random(5, 32)]),
    "gelu_tanh": (
        lambda x: kernels.Gelu.apply(6 * x, True),
        lambda x: 3 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (6 * x + 0.044715 * (6 * x) ** 3))),
        [random(5, 32)],
    ),
    "combined wide": (
        lambda y, w: experts.combined(y, w, PAIRS_OF_TWO),
        lambda y, w: torch.stack([w[0, 0] * y[4] + w[0, 1] * y[2], w[1, 0] * y[0] + w[1, 1] * y[3], w[2, 0] * y[5] + w[2, 1] * y[1]]),
        [random(6, 32), random(3, 2, seed=1)],
    ),
    "gather_rows": (
        lambda x: experts.gather_rows(x, PAIRS_OF_TWO),
        lambda x: torch.stack([x[t] for t in (1, 2, 0, 1, 0, 2)]),
        [random(3, 32)],
    ),
    "grouped_linear": (
        lambda x, w: experts.grouped_linear(x, w, [2, 0, 4]),
        lambda x, w: torch.stack([w[0 if i < 2 else 2] @ x[i] for i in range(6)]),
        [random(6, 3), random(3, 5, 3, seed=1)],
    ),
    "wide heads": (
        lambda x, w: kernels.NormAndRotate.apply(x, 3, w, 1e-3, ANGLES),
        naive_heads,
        [random(8, 40, 4, 64), random(3, 64, seed=1)],
    ),
    "wide heads, rotated only": (
        lambda x: kernels.NormAndRotate.apply(x, 3, None, 0.0, ANGLES),
        lambda x: naive_heads(x, None),
        [random(8, 40, 4, 64)],
    ),
    "long attention": (
        lambda x: attend(x, 2),
        lambda x: naive_attention(x, 2),
        [random(2, 150, 6, 16)],
    ),
    "attention": (lambda x: attend(x, 4), lambda x: naive_attention(x, 4), [random(5, 7, 12, 6)]),
    "grouped attention": (
        lambda x: attend(x, 4),
        lambda x: naive_attention(x, 4),
        [random(5, 7, 8, 6)],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_equal_the_plain_formula(name: str) -> None:
    ours, plain, inputs = PAIRS[name]
    expected = plain(*inputs)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    found = ours(*inputs)
    found_grads = torch.autograd.grad((found * weight).sum(), inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-5)  # sums over up to 600 rows
    with torch.no_grad():  # the path of decoding and evaluation
        torch.testing.assert_close(ours(*inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("T", [6, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_attention_equals_the_formula_with_the_same_mask(T: int, dtype: torch.dtype) -> None:
    B, H, K, D, p = 3, 4, 2, 8, 0.4
    heads = random(B, T, H + 2 * K, D).to(dtype).detach().requires_grad_()
    y = attend(heads, H, p, 3)
    mask = kernels.draw_dropout_mask(p, torch.Generator().manual_seed(3))
    padded = -(-T // 32) * 32
    keep = kernels._dropped(torch.ones(B, H, padded // SIDE, padded // KEYS, KEYS, SIDE), mask).ne(0).to(dtype)
    keep, scale = keep.permute(0, 1, 2, 5, 3, 4).reshape(B, H, padded, padded)[:, :, :T, :T], mask.scale
    q, k, v = heads.transpose(1, 2).split((H, K, K), dim=1)
    scores = (q @ k.repeat_interleave(H // K, 1).mT) / D**0.5 + torch.full((T, T), -torch.inf).triu(1).to(dtype)
    dropped = scores.softmax(-1) * keep * scale
    expected = (dropped @ v.repeat_interleave(H // K, 1)).transpose(1, 2).flatten(2)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(torch.autograd.grad(y, heads, weight)[0], torch.autograd.grad(expected, heads, weight)[0], **close)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.2, 0.5, 0.9])
def test_masks_drop_at_the_rate_they_are_asked_for(p: float) -> None:
    masks = [kept_by((100, 100), p, seed) for seed in range(200)]
    kept = torch.stack([keep.mean() for keep, _ in masks])
    # 2 million elements, and a threshold that is rounded at random for each mask
    assert abs(kept.mean().item() - (1 - p)) < 4 * ((p * (1 - p) / 2e6) ** 0.5 + 1 / 256 / 2 / 200**0.5)
    for (_, scale), share in zip(masks, kept, strict=True):  # each is scaled by what it keeps, so that the mean stays
        assert abs(share * scale - 1) < 6 * (p / (1 - p) / 1e4) ** 0.5
    real = [keep.numpy().tobytes() for keep, scale in masks if scale > 1]
    assert len(set(real)) == len(real)


def test_neighbours_and_rows_of_a_mask_are_independent() -> None:
    keep = kept_by((1000, 1000), 0.5, 1)[0] - 0.5
    for a, b in [(keep[:, 1:], keep[:, :-1]), (keep[1:], keep[:-1]), (keep[:, 8:], keep[:, :-8]), (keep[:, 64:], keep[:, :-64])]:
        assert abs((a * b).mean().item() * 4) < 5 / 1e6**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_and_scales_values_and_gradients_alike(dtype: torch.dtype) -> None:
    x = torch.full((5, 13), 3.0, dtype=dtype, requires_grad=True)
    keep, scale = kept_by((5, 13), 0.4, 7, dtype)
    expected = (keep * 3 * scale).to(dtype)
    y = dropout(x, 0.4, 7)
    torch.testing.assert_close(y, expected, rtol=0.01, atol=0)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad * 3, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["rms_norm", "layer_norm bias", "swiglu", "gelu", "gelu_tanh", "gather_rows", "attention", "long attention"]
)
def test_bfloat16_agrees_with_float32(name: str, dtype: torch.dtype) -> None:
    ours, _, inputs = PAIRS[name]
    exact = ours(*inputs)
    typed = [x.detach().to(dtype if x.dim() > 1 else x.dtype).requires_grad_() for x in inputs]  # gains stay float32
    found = ours(*typed)
    assert found.dtype in (dtype, torch.float32)
    assert (found - exact).norm() < (0.02 if dtype == torch.bfloat16 else 1e-6) * exact.norm()
    found.float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == x.dtype for x in typed)


def test_gelu_in_bfloat16_is_that_of_erf_to_its_rounding() -> None:
    x = torch.cat((torch.linspace(-6, 6, 4096), torch.tensor([-20.0, 20.0] * 8))).bfloat16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, expected = kernels.Gelu.apply(x, False), torch.nn.functional.gelu(exact)
    torch.testing.assert_close(y.double(), expected, rtol=0.006, atol=1e-4)
    slopes = [torch.autograd.grad(values.sum(), at)[0].double() for values, at in ((y, x), (expected, exact))]
    torch.testing.assert_close(*slopes, rtol=0.004, atol=3e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("V", [1, 65, 512])
def test_cross_entropy_and_its_gradient_are_those_of_torch(V: int, dtype: torch.dtype) -> None:
    logits = (5 * random(300, V)).detach().to(dtype).requires_grad_()
    targets = torch.randint(V, (300,), generator=torch.Generator().manual_seed(1))
    targets[::7] = -100
    weight = random(300, seed=2).detach()
    for reduction, scale in (("none", weight), ("mean", torch.tensor(3.0))):
        expected = torch.nn.functional.cross_entropy(logits.float(), targets, reduction=reduction)
        found = cross_entropy(logits, targets, reduction)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        grads = [torch.autograd.grad((loss * scale).sum(), logits)[0] for loss in (found, expected)]
        torch.testing.assert_close(*grads, atol=1e-7, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4)


def test_a_target_outside_of_the_vocabulary_is_refused() -> None:
    for target in (-1, 5):
        with pytest.raises(MiniGPTError, match="cross_entropy_forward"):
            cross_entropy(torch.zeros(2, 5), torch.tensor([0, target]))


def test_not_a_number_stays_one() -> None:
    """A loss that is not finite must be noticed, so no kernel may turn it into a number."""
    bad = torch.full((2, 32), float("nan"), requires_grad=True)
    weight = torch.ones(32, requires_grad=True)
    assert kernels.Norm.apply(bad, weight, None, 1e-5, False).isnan().all()
    assert kernels.Norm.apply(bad, weight, None, 1e-5, True).isnan().all()
    assert kernels.Gelu.apply(bad, False).isnan().all()
    assert kernels.Gelu.apply(bad, True).isnan().all()
    assert kernels.SwiGLU.apply(bad).isnan().all()
    assert cross_entropy(bad, torch.tensor([0, 1]), "none").isnan().all()
    assert attend(bad.view(1, 4, 2, 8).repeat(1, 1, 2, 1)[:, :, :3].contiguous(), 1).isnan().all()


@pytest.fixture(params=["vectors", "matrix tiles"])
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each way in which the processor multiplies bfloat16."""
    library = kernels.attention_library()
    assert library is not None
    if library.use_amx(request.param == "matrix tiles") != (request.param == "matrix tiles"):
        pytest.skip("this processor has no matrix tiles")
    yield
    library.use_amx(1)


SIZES = [(2, 32, 2, 2, 32), (3, 96, 4, 2, 32), (1, 128, 3, 3, 32), (2, 64, 2, 1, 64), (2, 45, 4, 2, 24), (1, 1, 1, 1, 2)]


@pytest.mark.parametrize(("B", "T", "H", "K", "D"), SIZES)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_in_bfloat16_equals_float32_with_the_same_mask(B: int, T: int, H: int, K: int, D: int, p: float, products: None) -> None:
    heads = random(B, T, H + 2 * K, D).detach().bfloat16().requires_grad_()
    exact = heads.detach().float().requires_grad_()
    weight = random(B, T, H * D, seed=1).detach()
    y = attend(heads, H, p, 3)
    (grad,) = torch.autograd.grad(y, heads, weight.bfloat16())
    expected = attend(exact, H, p, 3)
    (expected_grad,) = torch.autograd.grad(expected, exact, weight)
    assert (y - expected).norm() <= 0.005 * expected.norm()
    for found, right in zip(grad.split((H, K, K), 2), expected_grad.split((H, K, K), 2), strict=True):
        assert (found - right).norm() <= 0.01 * right.norm() + 0.005 * expected_grad.norm()  # of a single key it is zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_sees_no_future_and_loses_no_nan(dtype: torch.dtype, products: None) -> None:
    heads = random(1, 64, 3, 32).detach().to(dtype)
    before = attend(heads.clone().requires_grad_(), 1)
    heads[:, 40:] = float("nan")
    after = attend(heads.requires_grad_(), 1)
    assert torch.equal(after[:, :32], before[:, :32])
    assert after[:, 40:].isnan().all()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    heads = random(3, 70, 6, 32).detach().bfloat16().requires_grad_()
    threads, found = torch.get_num_threads(), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        y = attend(heads, 2, 0.2, 1)
        found.append((y, torch.autograd.grad(y.sum(), heads)[0]))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("shape", [(64, 2, 4), (4096, 1, 4), (5000, 2, 3)])
def test_pairs_are_sorted_alike_in_c_and_in_torch(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    N, k, E = shape
    monkeypatch.setattr(experts, "PAD", 1)
    chosen = torch.rand(N, E, generator=torch.Generator().manual_seed(0)).topk(k).indices
    found, plain = experts.pairs_by_expert(chosen, E, in_c=True), experts.pairs_by_expert(chosen, E, in_c=False)
    assert found.counts == plain.counts
    assert torch.equal(found.order, plain.order)
    assert torch.equal(found.back, plain.back)


@pytest.mark.parametrize("shape", [(100, 2, 4), (5000, 1, 4)])
def test_padding_makes_every_group_a_multiple_and_loses_nothing(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    N, k, E = shape
    monkeypatch.setattr(experts, "PAD", 4)
    chosen = torch.randint(E, (N, k), generator=torch.Generator().manual_seed(0))
    pairs = experts.pairs_by_expert(chosen, E, in_c=True)
    assert all(count % 4 == 0 for count in pairs.counts)
    assert sum(pairs.counts) == len(pairs.order) > N * k
    assert torch.equal(pairs.order[pairs.back], torch.arange(N * k))
    expert_of_place = torch.repeat_interleave(torch.arange(E), torch.tensor(pairs.counts))
    assert torch.equal(expert_of_place[pairs.back], chosen.flatten())
