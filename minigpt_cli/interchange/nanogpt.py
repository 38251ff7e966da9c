"""Read nanoGPT's ckpt.pt: GPT-2's names, matrices stored output first, the head tied to the embedding.

The characters of its data set are in a meta.pkl, which pickles.py reads as plain data. It is in the checkpoint's folder or in
`data/<dataset>/`, where nanoGPT writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from minigpt_cli.config import ClassicConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.interchange.hf_weights import weight_mapping
from minigpt_cli.interchange.pickles import read_meta
from minigpt_cli.interchange.pytorch import TensorSource
from minigpt_cli.storage import atomic_io
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.contract import Tokenizer

_QKV = "transformer.h.0.attn.c_attn.weight"


def is_checkpoint(found: TensorSource) -> bool:
    """Whether a file is what nanoGPT's train.py saves."""
    return isinstance(found.other.get("model_args"), dict) and "transformer.wte.weight" in found.tensors


def stores_output_first(tensors: dict[str, Tensor]) -> bool:
    """Whether GPT-2's matrices are (out, in) as in nanoGPT, not (in, out) as in Hugging Face's Conv1D."""
    qkv = tensors.get(_QKV)
    return qkv is not None and qkv.ndim == 2 and qkv.size(0) == 3 * qkv.size(1)


def read(path: Path, found: TensorSource) -> tuple[ClassicConfig, dict[str, Tensor], Tokenizer | None, list[str]]:
    """Configuration, tensors with our names, the tokenizer if it is found, and notes."""
    args: dict[str, Any] = found.other["model_args"]
    try:
        sizes = {name: args[name] for name in ("n_layer", "n_head", "n_embd", "block_size")}
        config = ClassicConfig(
            **sizes, bias=bool(args.get("bias", True)), dropout=float(args.get("dropout", 0.0)), activation="gelu", tie_weights=True
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
        raise UsageError(f"the model_args in {path} are not nanoGPT's: {atomic_io.one_line(reason, 120)}") from error
    tensors = {name: t for name, t in found.tensors.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    head, embedding = tensors.pop("lm_head.weight", None), tensors.get("transformer.wte.weight")
    if head is not None and embedding is not None and not (head.shape == embedding.shape and torch.equal(head, embedding)):
        config = config.model_copy(update={"tie_weights": False})
        tensors["lm_head.weight"] = head
    ours: dict[str, Tensor] = {}
    for rule in weight_mapping(config).rules:
        if rule.theirs[0] in tensors:
            ours[rule.ours] = tensors.pop(rule.theirs[0])  # GPT-2 stacks nothing, nanoGPT transposes nothing
    tokenizer, notes = _tokenizer(path, found, config)
    return config, ours | tensors, tokenizer, [*found.notes, *notes]


def _tokenizer(path: Path, found: TensorSource, config: ClassicConfig) -> tuple[Tokenizer | None, list[str]]:
    settings = found.other.get("config")
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    places = [path.parent / "meta.pkl"]
    if isinstance(dataset, str) and Path(dataset).name == dataset:
        places.append(path.parent.parent / "data" / dataset / "meta.pkl")
    for place in places:
        if place.is_file():
            characters = read_meta(place)
            return CharTokenizer([ord(c) for c in characters]), [f"read {len(characters)} characters from {place}"]
    return None, [f"no meta.pkl at {' or '.join(map(str, places))}: name the tokenizer with --tokenizer"]
