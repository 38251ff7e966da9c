"""A run's model and tokenizer as a JSON document that display/pages/model.js and tokenizer.js compute with.

Weights are float16, or int8 with one float32 factor for each row of a matrix; vectors are always float16. `rounded` is a model with the
same weights as the page's, to measure what the rounding costs.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from minigpt_cli.accel.install import install
from minigpt_cli.checkpoints import Loaded
from minigpt_cli.data.parts import masked_after
from minigpt_cli.errors import UsageError
from minigpt_cli.models.contract import build_model
from minigpt_cli.tokenization.contract import added_tokens

FORMATS = ("f16", "int8")
F16_PARAMS = 4_000_000  # the most that a page holds in float16
MOST_PARAMS = 32_000_000  # and at all: a page of 43 MB
_LARGEST = float(torch.finfo(torch.float16).max)
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def packed(loaded: Loaded, weights: str) -> dict[str, Any]:
    """The document: configuration, tensors with their names, and the tokenizer. Raises UsageError for what the page cannot compute."""
    if weights not in FORMATS:
        raise UsageError(f"--format html has no --dtype {weights}: {', '.join(FORMATS)}")
    config, document_tokenizer = _config(loaded), packed_tokenizer(loaded)
    if (n := n_params(loaded)) > MOST_PARAMS:
        raise UsageError(f"{n:,} parameters are too many for a page, which holds {MOST_PARAMS:,}: use --format hf or gguf")
    tensors, content = [], []
    for name, tensor in loaded.model.state_dict().items():
        kind = _format(tensor, weights)
        tensors.append([name, list(tensor.shape), kind])
        content.append(b"".join(part.tobytes() for part in _parts(name, tensor, kind)))
    return {
        "config": config,
        "tensors": tensors,
        "weights": base64.b64encode(b"".join(content)).decode("ascii"),
        "tokenizer": document_tokenizer,
    }


def n_params(loaded: Loaded) -> int:
    """How many parameters the model has."""
    return sum(p.numel() for p in loaded.model.parameters())


def rounded(loaded: Loaded, weights: str) -> nn.Module:
    """The model with the weights that its page has in the format `weights`, as float32."""
    state = {name: torch.from_numpy(_values(name, t, _format(t, weights))) for name, t in loaded.model.state_dict().items()}
    model = build_model(loaded.config.model, loaded.tokenizer.vocab_size)
    model.load_state_dict(state)
    if (end := masked_after(loaded.config.data, loaded.tokenizer)) is not None:
        model.end_of_text = end  # type: ignore[assignment]
    return install(model.eval())


def _format(tensor: Tensor, weights: str) -> str:
    return weights if tensor.dim() == 2 else "f16"


def _parts(name: str, tensor: Tensor, kind: str) -> Iterator[npt.NDArray[Any]]:
    """What stands in the document, in this order."""
    values = tensor.detach().float().cpu().numpy()
    if kind == "f16":
        if (largest := float(np.abs(values).max(initial=0))) > _LARGEST:
            raise UsageError(f"the tensor {name} holds {largest:g}, more than the {_LARGEST:g} of float16: use --format hf")
        yield values.astype("<f2")
        return
    factors = np.abs(values).max(axis=1) / np.float32(127)
    yield factors.astype("<f4")
    yield np.rint(values / np.where(factors > 0, factors, 1)[:, None]).astype(np.int8)


def _values(name: str, tensor: Tensor, kind: str) -> npt.NDArray[np.float32]:
    """What the page reads, in float32."""
    parts = list(_parts(name, tensor, kind))
    if kind == "f16":
        return parts[0].astype(np.float32)
    factors, steps = parts
    return steps.astype(np.float32) * factors[:, None]  # type: ignore[no-any-return]


def _config(loaded: Loaded) -> dict[str, Any]:
    """The settings that forward() of model.js reads."""
    c: Any = loaded.config.model
    if c.decodes_as not in ("classic", "modern", "moe"):
        raise UsageError(f"a page computes classic, modern and moe, not --arch {c.arch}")
    modern = c.decodes_as != "classic"
    return {
        **{name: getattr(c, name) for name in ("n_layer", "n_head", "n_embd", "block_size")},
        "n_kv_head": c.kv_heads,
        "rms_norm": modern,
        "eps": c.rms_norm_eps if modern else 1e-5,
        "rope_theta": c.rope_theta if modern else 0,
        "activation": None if modern else c.activation,
        "n_experts": c.n_experts if c.decodes_as == "moe" else 0,
        "moe_top_k": getattr(c, "moe_top_k", 0),
        "moe_norm_topk": getattr(c, "moe_norm_topk", False),
        "end_of_text": masked_after(loaded.config.data, loaded.tokenizer),
    }


def packed_tokenizer(loaded: Loaded) -> dict[str, Any]:
    """What tokenizer.js reads. Raises UsageError for a tokenizer that it does not know."""
    tokenizer, data = loaded.tokenizer, loaded.config.data
    spec = json.loads(tokenizer.to_json())
    model = spec["model"]
    kind = "char" if tokenizer.name == "char" else "byte" if tokenizer.name == "byte" else "bpe"
    if kind == "bpe" and not (
        model["type"] == "BPE" and spec["pre_tokenizer"] == _BYTE_LEVEL and spec["normalizer"] is None and not model.get("ignore_merges")
    ):
        raise UsageError(f"a page cannot cut text as the tokenizer {tokenizer.name} does: train with --tokenizer char, byte, bpe or gpt2")
    return {
        "kind": kind,
        "tokens": [token.decode("latin-1") for token in tokenizer.token_bytes()],
        "added": added_tokens(tokenizer),
        "merges": _merges(model) if kind == "bpe" else [],
        "lowercase": data.lowercase,
        "nfc": data.normalize == "nfc",
    }


def _merges(model: dict[str, Any]) -> list[int]:
    """Three ids for each merge: left, right, and both together."""
    ids = model["vocab"]
    return [ids[token] for left, right in model["merges"] for token in (left, right, left + right)]
