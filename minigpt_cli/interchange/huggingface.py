"""Export a run as a Hugging Face directory, which AutoModelForCausalLM and AutoTokenizer open, and read such a directory.

hf_weights.py has the names and shapes; this file writes and reads the files. transformers is never imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt_cli.checkpoints import Loaded
from minigpt_cli.config import ModelConfig
from minigpt_cli.data.chat import END, TEMPLATE
from minigpt_cli.data.opening import opening_of
from minigpt_cli.errors import UsageError
from minigpt_cli.interchange import pytorch
from minigpt_cli.interchange.folders import new_folder
from minigpt_cli.interchange.gguf_vocabulary import END_TOKENS
from minigpt_cli.interchange.hf_weights import from_hf, model_config, to_hf
from minigpt_cli.interchange.model_card import hf_card
from minigpt_cli.storage import atomic_io, safetensors
from minigpt_cli.tokenization.contract import Tokenizer
from minigpt_cli.tokenization.pretrained import load_tokenizer, tokenizer_file

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    out: Path
    files: list[str]
    architecture: str
    notices: list[str] = field(default_factory=list)
    address: str = ""  # on the hub, if it was pushed


def export(loaded: Loaded, out: Path, dtype: str = "f32", repo: str = "") -> Exported:
    """Write `out/` with weights, config, tokenizer and model card, which says how to open it: from `repo` of the hub, else from `out`.
    Raises UsageError, before writing, for what the format lacks."""
    if dtype not in DTYPES:
        raise UsageError(f"--format hf has no --dtype {dtype}: {', '.join(DTYPES)}")
    config, tensors = to_hf(loaded.config.model, loaded.model.state_dict())
    tokenizer_json = loaded.tokenizer.to_json()
    prompt = opening_of(loaded.record, loaded.tokenizer).raw
    config |= _end(tokenizer_json) | {"dtype": str(DTYPES[dtype]).removeprefix("torch.")}
    files = {
        "config.json": _json(config),
        "generation_config.json": _json({"do_sample": True, "temperature": 0.9, "top_k": 50, "max_new_tokens": 200} | _end(tokenizer_json)),
        "tokenizer.json": tokenizer_json,
        "tokenizer_config.json": _json(_tokenizer_config(tokenizer_json, loaded.config.model.block_size)),
        "README.md": hf_card(loaded, config["model_type"], repo or out.name, prompt),
    }
    weights = {name: tensor.detach().to("cpu", DTYPES[dtype]) for name, tensor in tensors.items()}
    atomic_io.check_space(out, 2 * sum(t.numel() * t.element_size() for t in weights.values()))
    with new_folder(out) as folder:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        with atomic_io.staged(folder / "model.safetensors") as (fd, temporary):
            safetensors.write(fd, weights, {"format": "pt"})
        atomic_io.replace(temporary, folder / "model.safetensors")
    return Exported(out, sorted([*files, "model.safetensors"]), config["model_type"])


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def end_tokens(tokenizer_json: str) -> dict[str, int]:
    """The special tokens of a tokenizer.json that end a text, and their ids; generation stops at the first."""
    added = {t["content"]: t["id"] for t in json.loads(tokenizer_json).get("added_tokens") or [] if t.get("special")}
    return {token: added[token] for token in END_TOKENS if token in added}


def _end(tokenizer_json: str) -> dict[str, Any]:
    first = next(iter(end_tokens(tokenizer_json).values()), None)
    return {} if first is None else {"eos_token_id": first, "pad_token_id": first}


def _tokenizer_config(tokenizer_json: str, block_size: int) -> dict[str, Any]:
    """What AutoTokenizer needs to use tokenizer.json as it is, and to change nothing in what it decodes."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {"model_max_length": block_size}
    ends = list(end_tokens(tokenizer_json))
    if END in ends:
        config["chat_template"] = TEMPLATE
    return config | ({"eos_token": ends[0], "pad_token": ends[0]} if ends else {})


# ---- reading


@dataclass(frozen=True)
class Foreign:
    """A model of another program, with our names."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer | None
    notes: list[str] = field(default_factory=list)


def read(folder: Path) -> Foreign:
    """The model in a Hugging Face directory. Raises UsageError or RunDamaged."""
    theirs = _read_config(folder)
    tensors, notes = read_weights(folder)
    with _readable(folder):
        config, ours = from_hf(theirs, {name: tensor.float() for name, tensor in tensors.items()})
    return Foreign(config, ours, read_tokenizer(folder), notes)


def check_config(folder: Path) -> None:
    """Raise UsageError unless config.json in `folder` names a model that can be read."""
    with _readable(folder):
        model_config(_read_config(folder), has_bias=False)


def _read_config(folder: Path) -> dict[str, Any]:
    theirs = atomic_io.read_json((folder / "config.json").resolve())  # the hub's own cache holds links to its files
    if not isinstance(theirs, dict):
        raise UsageError(f"{folder / 'config.json'} is not a table")
    return theirs


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn what a wrong config.json raises into a UsageError."""
    try:
        yield
    # A setting is missing or of the wrong kind (pydantic's error is a ValueError), or tensors have shapes that cannot be concatenated.
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = atomic_io.one_line(repr(error), 150)
        raise UsageError(f"{folder / 'config.json'} is not a configuration that can be read: {reason}") from error


def read_weights(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors of a directory: one safetensors file, several with an index, else a pickle."""
    if (index := folder / "model.safetensors.index.json").is_file():
        content = atomic_io.read_json(index.resolve(), 64 << 20)
        table = content.get("weight_map") if isinstance(content, dict) else None
        listed = list(table.values()) if isinstance(table, dict) else []
        if not listed or any(not isinstance(n, str) or Path(n).name != n for n in listed):
            raise UsageError(f"{index} does not name files in its own folder")
        names = sorted(set(listed))
        sources = [pytorch.read(folder / name) for name in names]
        return {name: t for source in sources for name, t in source.tensors.items()}, [f"read {len(names)} files of weights"]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            source = pytorch.read(folder / name)
            return source.tensors, source.notes
    raise UsageError(f"{folder} holds no model.safetensors: is the download complete?")


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a directory: tokenizer.json, GPT-2's older vocab.json and merges.txt, or tokenizer.model; None without them."""
    return load_tokenizer(folder) if tokenizer_file(folder) else None
