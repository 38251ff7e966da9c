"""Weights for decoding: every architecture as one stack of matrices, in NumPy, without torch.

Products of weights that training keeps separate are computed here once, in float64, so that a step has less work. The result is
the same function:
- A norm's gain (and bias) goes into the matrix that reads the norm; attention's 1/sqrt(D) goes into the queries.
- LayerNorm subtracts the mean over channels. Everything that writes into the residual stream is centred instead, so the
  mean is always zero and LayerNorm is RMSNorm (Ashkboos et al. 2024, "SliceGPT", section 3).
So all transformers here are: RMSNorm without gain, attention, RMSNorm without gain, feed-forward.
Shapes: C channels, H query heads, K key/value heads, D head size, F hidden width, E experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt_cli.config import ARCHITECTURES
from minigpt_cli.errors import UsageError
from minigpt_cli.generation.sampling import NotFinite
from minigpt_cli.storage.safetensors import is_finite

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One block. Matrices are (outputs, inputs)."""

    qkv: Array  # ((H + 2K) D, C)
    qkv_bias: Array | None
    qk_gain: Array | None  # (H + K, D): gains of normed queries and keys
    out: Array  # (C, H D)
    out_bias: Array | None
    router: Array | None  # (E, C)
    router_bias: Array | None  # (E,) added to probabilities for the choice alone
    up: Array  # (E, F, C), or (E, 2F, C) with the gate first
    up_bias: Array | None  # (1, F)
    down: Array  # (E, C, F)
    down_bias: Array | None  # (C,)


@dataclass(frozen=True)
class DecoderWeights:
    """Everything that a decoder needs of a model."""

    config: Any  # the (pydantic) config of the model
    vocab_size: int
    block_size: int
    n_embd: int
    n_head: int
    n_kv_head: int
    norm_eps: float
    qk_norm: bool
    rope_theta: float  # 0: learned positions
    activation: str  # gelu, gelu_tanh, relu, swiglu
    moe_top_k: int
    moe_norm_topk: bool
    embedding: Array  # (V, C); for bigram (V, V), the table of logits
    positions: Array | None  # (block_size, C)
    layers: tuple[Layer, ...]
    head: Array  # (V, C)
    head_bias: Array | None  # (V,)

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def hidden(self) -> int:
        """F, the width of a feed-forward (of one expert)."""
        return int(self.layers[0].down.shape[2])

    @property
    def n_experts(self) -> int:
        return int(self.layers[0].down.shape[0])

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the float32 matrices that one token reads."""
        used = min(self.moe_top_k, self.n_experts) / self.n_experts if self.layers else 1
        layers = sum(layer.qkv.nbytes + layer.out.nbytes + used * (layer.up.nbytes + layer.down.nbytes) for layer in self.layers)
        return int(layers + self.head.nbytes)


DECODED: dict[str, type] = {arch: config for arch, config in ARCHITECTURES.items() if config.decodes_as == arch}
"""What an architecture can be decoded as, and the configuration whose settings that reads."""


def check_declared_weights(config: Any, vocab_size: int, found: Mapping[str, Sequence[int]]) -> None:
    """Raise UsageError where `config` declares to be decoded as another architecture and the shapes `found` are not that one's."""
    if config.decodes_as == config.arch:
        return
    expected = expected_shapes(config, vocab_size)
    shapes = {name: tuple(shape) for name, shape in found.items()}
    if shapes != expected:
        wrong = min(name for name, _ in shapes.items() ^ expected.items())
        says = f"--arch {config.arch} declares decodes_as = {config.decodes_as!r} in config.py"
        raise UsageError(f"{says} but its tensors are not those of {config.decodes_as}: see {wrong}, or remove decodes_as")


def decoder_weights(config: Any, tensors: Mapping[str, npt.NDArray[Any]]) -> DecoderWeights:
    """The weights of a model with this (pydantic) config and these weights, named as its state dict names them. Raises NotFinite where
    products of weights are not finite."""
    if config.decodes_as == "bigram":
        return _bigram(config, tensors)
    classic = config.decodes_as == "classic"
    w = {name: np.asarray(value, dtype=np.float64) for name, value in tensors.items()}
    embedding = w["token_embedding.weight"]
    head, head_bias = _after_norm(embedding if config.tie_weights else w["head.weight"], None, w, "final_norm")
    return DecoderWeights(
        config=config,
        vocab_size=len(embedding),
        block_size=config.block_size,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_kv_head=config.kv_heads,
        norm_eps=1e-5 if classic else config.rms_norm_eps,
        qk_norm=not classic and config.qk_norm,
        rope_theta=0.0 if classic else config.rope_theta,
        activation=config.activation if classic else "swiglu",
        moe_top_k=config.moe_top_k if config.decodes_as == "moe" else 1,
        moe_norm_topk=config.decodes_as == "moe" and config.moe_norm_topk,
        embedding=_f32(_centred_columns(embedding) if classic else embedding),
        positions=_f32(_centred_columns(w["position_embedding.weight"])) if classic else None,
        layers=tuple(_layer(config, w, f"blocks.{i}.", classic) for i in range(config.n_layer)),
        head=_f32(head),
        head_bias=_optional(head_bias),
    )


def _bigram(config: Any, tensors: Mapping[str, npt.NDArray[Any]]) -> DecoderWeights:
    table = _f32(np.asarray(tensors["table"]))
    return DecoderWeights(
        config, len(table), config.block_size, 0, 1, 1, 0.0, False, 0.0, "", 1, False, table, None, (), table[:0], None,
    )  # fmt: skip


def _layer(config: Any, w: Mapping[str, Any], at: str, classic: bool) -> Layer:
    heads, D = config.n_head, config.n_embd // config.n_head
    qkv, qkv_bias = _after_norm(w[at + "attention.qkv.weight"], w.get(at + "attention.qkv.bias"), w, at + "norm1")
    gain = None
    if at + "attention.q_norm.weight" in w:
        kv_heads = config.kv_heads
        gain = np.concatenate(
            (np.tile(w[at + "attention.q_norm.weight"] * D**-0.5, (heads, 1)), np.tile(w[at + "attention.k_norm.weight"], (kv_heads, 1)))
        )
    else:
        scale = np.ones(len(qkv))
        scale[: heads * D] = D**-0.5
        qkv, qkv_bias = qkv * scale[:, None], None if qkv_bias is None else qkv_bias * scale
    out, out_bias = w[at + "attention.out.weight"], w.get(at + "attention.out.bias")
    router = router_bias = up_bias = down_bias = None
    if config.decodes_as == "moe":
        router, _ = _after_norm(w[at + "moe.router.weight"], None, w, at + "norm2")
        router_bias = w.get(at + "moe.balance_bias")
        up, _ = _after_norm(w[at + "moe.gate_up"], None, w, at + "norm2")
        up, down = up.reshape(config.n_experts, -1, config.n_embd), w[at + "moe.down"].reshape(config.n_experts, config.n_embd, -1)
    else:
        name = "mlp.up" if classic else "mlp.gate_up"
        up, up_bias = _after_norm(w[f"{at}{name}.weight"], w.get(f"{at}{name}.bias"), w, at + "norm2")
        up, up_bias = up[None], None if up_bias is None else up_bias[None]
        down, down_bias = w[at + "mlp.down.weight"][None], w.get(at + "mlp.down.bias")
    if classic:  # outputs are the rows: centre what is written into the residual stream
        out, down = out - out.mean(0), down - down.mean(1, keepdims=True)
        out_bias, down_bias = (None if b is None else b - b.mean() for b in (out_bias, down_bias))
    arrays = (qkv, qkv_bias, gain, out, out_bias, router, router_bias, up, up_bias, down, down_bias)
    return Layer(*(_optional(a) for a in arrays))  # type: ignore[arg-type]


def _after_norm(matrix: Any, bias: Any, w: Mapping[str, Any], norm: str) -> tuple[Any, Any]:
    """Matrix and bias that read the bare norm as the given ones read the norm with its gain and bias."""
    if (shift := w.get(norm + ".bias")) is not None:
        bias = matrix @ shift + (0.0 if bias is None else bias)
    return matrix * w[norm + ".weight"], bias


def _centred_columns(rows: Any) -> Any:
    return rows - rows.mean(1, keepdims=True)


def _f32(array: Any) -> Array:
    with np.errstate(over="ignore"):
        result: Array = np.ascontiguousarray(array, dtype=np.float32)
    if not is_finite(result):
        raise NotFinite
    return result


def _optional(array: Any) -> Array | None:
    return None if array is None else _f32(array)


def expected_shapes(config: Any, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model that `config` describes, as its state dict has them."""
    if config.decodes_as == "bigram":
        return {"table": (vocab_size, vocab_size)}
    classic, C = config.decodes_as == "classic", config.n_embd
    bias = classic and config.bias
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (vocab_size, C)}
    if classic:
        shapes["position_embedding.weight"] = (config.block_size, C)
    if not config.tie_weights:
        shapes["head.weight"] = (vocab_size, C)
    for i in range(config.n_layer):
        for name, shape in _layer_shapes(config, classic).items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            if bias:
                shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
        if config.decodes_as == "moe":
            E, F = config.n_experts, config.hidden
            shapes |= {f"blocks.{i}.moe.gate_up": (E * 2 * F, C), f"blocks.{i}.moe.down": (E * C, F)}
            if config.moe_balance == "bias":
                shapes[f"blocks.{i}.moe.balance_bias"] = (E,)
    shapes["final_norm.weight"] = (C,)
    if bias:
        shapes["final_norm.bias"] = (C,)
    return shapes


def _layer_shapes(config: Any, classic: bool) -> dict[str, tuple[int, ...]]:
    C, D = config.n_embd, config.n_embd // config.n_head
    kv_heads = config.kv_heads
    shapes: dict[str, tuple[int, ...]] = {"norm1": (C,), "norm2": (C,)}
    shapes |= {"attention.qkv": ((config.n_head + 2 * kv_heads) * D, C), "attention.out": (C, C)}
    if classic:
        return shapes | {"mlp.up": (config.hidden, C), "mlp.down": (C, config.hidden)}
    if config.qk_norm:
        shapes |= {"attention.q_norm": (D,), "attention.k_norm": (D,)}
    if config.decodes_as == "moe":
        return shapes | {"moe.router": (config.n_experts, C)}
    F = config.hidden
    return shapes | {"mlp.gate_up": (2 * F, C), "mlp.down": (C, F)}
