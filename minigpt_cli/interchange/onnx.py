"""Export a run as one ONNX file, which onnxruntime runs in Python, JavaScript, C#, Java and C++.

The graph is the textbook's forward pass, traced by torch. Its inputs are `input_ids` (B, T) and, for each layer, the keys and values
(B, K, S, D) of the tokens before them, `past_key_values.N.key` and `.value`; its outputs are `logits` (B, T, V) and the keys and values
(B, K, S + T, D) with the new ones, `present.N.key` and `.value`: names that other programs know from Hugging Face's ONNX models. B, T and
S (from 0) may have any size in each call. A mixture of experts computes all of them for each token, and sums those that it chose.
The file's metadata has the tokenizer and the block size.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigpt_cli.checkpoints import Loaded
from minigpt_cli.errors import MissingExtra, UsageError
from minigpt_cli.escaping import one_line
from minigpt_cli.interchange.huggingface import Exported
from minigpt_cli.models.contract import build_model
from minigpt_cli.models.layers import swiglu
from minigpt_cli.models.moe import Experts
from minigpt_cli.models.transformer import Transformer
from minigpt_cli.storage import atomic_io

_LARGEST = (2 << 30) - (64 << 20)  # bytes of weights; a protocol buffer ends at 2 GiB


def export(loaded: Loaded, out: Path, dtype: str = "f32") -> Exported:
    """Write the file `out`. Raises UsageError, before writing, for what cannot be a graph with a cache or does not fit in a file."""
    if dtype != "f32":  # the only number format so far
        raise UsageError(f"--format onnx has no --dtype {dtype}: f32")
    if out.suffix != ".onnx":
        raise UsageError(f"--out {out} does not end in .onnx: name a file")
    atomic_io.check_parent(out)
    _check_library()
    model = _textbook(loaded)
    n_bytes = sum(4 * p.numel() for p in model.parameters())
    if n_bytes > _LARGEST:
        raise UsageError(f"an ONNX file holds up to 2 GiB and these weights are {atomic_io.size(n_bytes)}: export with --format hf")
    atomic_io.check_space(out.parent, 2 * n_bytes, "free some space or choose another --out")
    graph = _graph(model)
    facts = {"tokenizer.json": loaded.tokenizer.to_json(), "block_size": str(model.config.block_size), "run": one_line(loaded.record.name)}
    for key, value in facts.items():
        graph.metadata_props.add(key=key, value=value)
    atomic_io.write_atomic(out, graph.SerializeToString())
    return Exported(out, [out.name], f"an ONNX graph ({atomic_io.size(out.stat().st_size)}, {loaded.config.model.arch})")


def _check_library() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtra("the ONNX format", "onnx") from None


def _textbook(loaded: Loaded) -> Transformer:
    """The model in plain formulas of fixed shapes. Raises UsageError for one without a cache."""
    config = loaded.config.model
    model = build_model(config, loaded.tokenizer.vocab_size).eval()
    if not isinstance(model, Transformer) or model.new_cache(1, 1) is None:
        raise UsageError(f"--format onnx writes models that keep keys and values, and --arch {config.arch} keeps none")
    for block in model.blocks:
        if isinstance(experts := getattr(block, "moe", None), Experts):
            block.moe = _AllExperts(experts)
    model.load_state_dict({name.replace(".moe.", ".moe.experts."): tensor for name, tensor in loaded.model.state_dict().items()})
    return model


class _AllExperts(nn.Module):
    """What Experts computes, without a loop over the tokens that chose each: the shapes are those of the input."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c, E = self.experts.config, self.experts.config.n_experts
        probs = self.experts.route(x)  # (B, T, E)
        chosen = (probs + self.experts.balance_bias).topk(c.moe_top_k, dim=-1).indices  # (B, T, k)
        weights = probs.gather(-1, chosen)
        if c.moe_norm_topk:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = torch.zeros_like(probs).scatter(-1, chosen, weights)  # (B, T, E), 0 for those not chosen
        hidden = torch.einsum("btc,efc->btef", x, self.experts.gate_up.view(E, -1, x.size(-1)))
        outputs = torch.einsum("btef,ecf->btec", swiglu(hidden), self.experts.down.view(E, x.size(-1), -1))
        return (outputs * weights[..., None]).sum(2), x.new_zeros(())


class _GrowingCache:
    """Keys and values as tensors that grow, as a graph needs them."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.keys, self.values = list(keys), list(values)
        self.length = keys[0].size(2)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As KVCache.extend."""
        self.keys[layer] = torch.cat((self.keys[layer], k), dim=2)
        self.values[layer] = torch.cat((self.values[layer], v), dim=2)
        return self.keys[layer], self.values[layer]


class _Step(nn.Module):
    """The model as a function of ids and of the keys and values before them."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        cache: Any = _GrowingCache(past[0::2], past[1::2])
        logits = self.model(ids, cache).logits
        return logits, [tensor for pair in zip(cache.keys, cache.values, strict=True) for tensor in pair]


def _graph(model: Transformer) -> Any:
    """The onnx.ModelProto of `model`, without the file names and lines that torch adds to each node."""
    c = model.config
    names = [f"{layer}.{part}" for layer in range(c.n_layer) for part in ("key", "value")]
    batch, tokens, past = torch.export.Dim("batch"), torch.export.Dim("tokens"), torch.export.Dim("past")
    example = (torch.zeros(2, 3, dtype=torch.int64), [torch.zeros(2, c.kv_heads, 5, model.head_size) for _ in names])
    with _quiet():
        program = torch.onnx.export(
            _Step(model).eval(),
            example,
            dynamo=True,
            verbose=False,
            input_names=["input_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=({0: batch, 1: tokens}, [{0: batch, 2: past} for _ in names]),
        )
    assert program is not None  # None only from the older exporter
    graph = program.model_proto
    for node in graph.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on its own exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
