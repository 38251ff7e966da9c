"""Initial weights from a run, a Hugging Face directory or repository, nanoGPT's ckpt.pt, or any .pt or .safetensors file.

Each becomes a `Source`: tensors with our names. `initial_weights` copies them into a new model and reports which fitted. Two
differences are resolved without asking, because they have one right answer: rows of the vocabulary are matched by the text
of their tokens, and learned positions beyond a smaller block are cut off.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt_cli import checkpoints
from minigpt_cli.config import ModelConfig
from minigpt_cli.errors import RunNotFound, UsageError
from minigpt_cli.interchange import hub, huggingface, nanogpt, pytorch
from minigpt_cli.interchange.hf_weights import family, weight_mapping
from minigpt_cli.interchange.new_rows import begin_new_rows
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore, run_at
from minigpt_cli.runstore.weights import weights_of
from minigpt_cli.storage import atomic_io, safetensors
from minigpt_cli.storage.hub import PREFIX
from minigpt_cli.tokenization.contract import Tokenizer

VOCABULARY = ("token_embedding.weight", "head.weight", "table")
POSITIONS = "position_embedding.weight"
_SHOWN = 8  # tokens in a note
_NOTABLE = 1e-4  # nats per token
_PADDING = 512  # at most so many rows round a vocabulary up
_BODIES = ("h.", "wte.", "layers.", "embed_tokens.")  # prefixes of names in files of a model without its head


@dataclass(frozen=True)
class Source:
    """A model from another program or run; what its files do not say is None."""

    label: str  # as it was typed, the run's name, or an address of the hub with its commit
    kind: str  # run, huggingface, nanogpt, tensors
    sha256: str  # of the weights' file, or of the files of a directory
    tensors: dict[str, Tensor]
    config: ModelConfig | None = None
    tokenizer: Tokenizer | None = None
    tokenizer_file: Path | None = None  # its path, for --tokenizer
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """Whether each tensor was loaded; names with shapes as text."""

    label: str
    kind: str
    sha256: str
    loaded: list[tuple[str, str]]
    missing: list[tuple[str, str]]  # ours that the source lacks: they keep their initial values
    unexpected: list[tuple[str, str]]  # the source's that our model lacks
    misshaped: list[tuple[str, str, str]]  # name, theirs, ours
    notes: list[str]

    @property
    def matches(self) -> bool:
        """Whether every tensor was loaded and none is missing."""
        return not (self.missing or self.unexpected or self.misshaped)

    def counts(self) -> str:
        """The four counts on one line."""
        counted: dict[str, Sized] = {
            "loaded": self.loaded,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "wrongly shaped": self.misshaped,
        }
        return ", ".join(f"{len(names)} {what}" for what, names in counted.items())


def initial_weights(
    source: Source, config: ModelConfig, tokenizer: Tokenizer, *, partial: bool = False, seed: int = 1337
) -> tuple[dict[str, Tensor], Report]:
    """A complete state dict for `config`: a new model drawn from `seed` with the source's tensors copied into it; and a report.
    Raises UsageError if nothing matches, or not everything does without `partial`; RunDamaged for weights that are not finite."""
    checkpoints.check_model_fits(config, tokenizer.vocab_size, copies=2)  # one to draw, one to return
    fresh = {name: tensor.clone() for name, tensor in build_model(config, tokenizer.vocab_size, seed).state_dict().items()}
    tensors, notes = _under_our_names(source, config)
    rows = None if source.tokenizer is None else _vocabulary_rows(source.tokenizer, tokenizer)
    tensors, more = adapted(tensors, fresh, source.tokenizer, rows)
    report = _compared(source, tensors, fresh, [*source.notes, *notes, *more])
    if not report.loaded:
        raise UsageError(f"nothing in {source.label} fits --arch {config.arch} of this size: {report.counts()}")
    if not report.matches and not partial:
        first = next(iter([*report.misshaped, *report.missing, *report.unexpected]))
        detail = f"{first[0]} has shape {first[1]} there and {first[2]} here" if len(first) == 3 else f"such as {first[0]} {first[1]}"
        raise UsageError(f"{source.label} does not fit: {report.counts()} ({detail}); use its own settings, or --partial to take what fits")
    weights = fresh | {name: tensors[name].to(fresh[name].dtype) for name, _ in report.loaded}
    safetensors.check_finite(source.label, weights)
    if rows is not None and source.tokenizer is not None and weights.keys() & set(VOCABULARY) <= {name for name, _ in report.loaded}:
        extended = set(rows).issuperset(range(source.tokenizer.vocab_size))
        taken = begin_new_rows(weights, config, torch.tensor(rows), seed, extended=extended)
        if taken > _NOTABLE:
            report.notes.append(f"the new tokens change the score of old text by about {taken:.1g} nats per token")
    return weights, report


def open_source(what: str | Path, store: RunStore | None = None) -> Source:
    """The model at a path, of the run with this name, or of the hub. Raises UsageError, RunNotFound or RunDamaged."""
    if isinstance(what, str) and what.startswith(PREFIX):
        model = hub.fetch(what)
        return replace(directory_source(model.folder), label=model.address)
    path = Path(what).expanduser()
    if (at := run_at(path)) is not None:
        return run_source(at)
    if os.path.isdir(path):
        return directory_source(path)
    if os.path.isfile(path):
        return file_source(path)
    try:
        return run_source((store or RunStore()).find(str(what)))
    except RunNotFound as error:
        raise RunNotFound(
            f"{atomic_io.one_line(str(what), 100)} is neither a file, a Hugging Face directory, nor a run: {error}"
        ) from error


def run_source(run: Run) -> Source:
    """The best weights of a run, or those that its path names."""
    which = run.checkpoint or "best"
    loaded = checkpoints.load(run, which)
    weights = weights_of(run.dir, loaded.record, which).file
    state = dict(loaded.model.state_dict())
    tokenizer_file = run.file("tokenizer.json")
    return Source(loaded.record.name, "run", weights.sha256, state, loaded.config.model, loaded.tokenizer, tokenizer_file, loaded.notices)


def directory_source(folder: Path) -> Source:
    """A Hugging Face directory, or a folder with nanoGPT's ckpt.pt."""
    if (folder / "config.json").is_file():
        found = huggingface.read(folder)
        path = None if found.tokenizer is None else file if (file := folder / "tokenizer.json").is_file() else folder
        return Source(str(folder), "huggingface", _folder_sha256(folder), found.tensors, found.config, found.tokenizer, path, found.notes)
    if (folder / "ckpt.pt").is_file():
        return file_source(folder / "ckpt.pt")
    raise UsageError(f"{folder} is neither a run, a Hugging Face directory (config.json) nor nanoGPT's output (ckpt.pt)")


def file_source(path: Path) -> Source:
    """A .pt or .safetensors file; sizes and tokenizer must be given with it."""
    found = pytorch.read(path)
    sha256 = _file_sha256(path)
    if nanogpt.is_checkpoint(found):
        config, tensors, tokenizer, notes = nanogpt.read(path, found)
        return Source(str(path), "nanogpt", sha256, tensors, config, tokenizer, None, notes)
    beside = huggingface.read_tokenizer(path.parent)
    notes = [*found.notes, f"used the tokenizer in its folder: {path.parent / 'tokenizer.json'}"] if beside else found.notes
    return Source(str(path), "tensors", sha256, found.tensors, None, beside, path.parent / "tokenizer.json" if beside else None, notes)


def _file_sha256(path: Path) -> str:
    with atomic_io.explained("read"), open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _folder_sha256(folder: Path) -> str:
    """One checksum for all files of weights in a directory."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") and p.is_file())
    sums = [_file_sha256(path) for path in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


# ---- fitting


def _under_our_names(source: Source, config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors, renamed to ours where a file has the names of Hugging Face or nanoGPT that `config` maps; and a note."""
    tensors = dict(source.tensors)
    if source.config is not None or config.hugging_face is None or "token_embedding.weight" in tensors:
        return tensors, []
    prefix = {"gpt2": "transformer."}.get(family(config), "model.")
    if not any(name.startswith(prefix) for name in tensors) and any(name.startswith(_BODIES) for name in tensors):
        tensors = {name if name.startswith("lm_head.") else prefix + name: tensor for name, tensor in tensors.items()}
    tensors = {name: t for name, t in tensors.items() if not name.endswith((".attn.bias", ".attn.masked_bias", ".inv_freq"))}
    linear = nanogpt.stores_output_first(tensors)
    mapping = weight_mapping(config)
    renamed = 0
    for rule in mapping.rules:
        if all(name in tensors for name in rule.theirs):
            pieces = [tensors.pop(name) for name in rule.theirs]
            pieces = [piece.T if rule.transpose and not linear else piece for piece in pieces]
            if len({piece.shape[1:] for piece in pieces}) == 1:
                tensors[rule.ours] = torch.cat(pieces).contiguous()
                renamed += 1
    if getattr(config, "tie_weights", False):
        tensors.pop("lm_head.weight", None)
    tensors = {name: t for name, t in tensors.items() if name not in mapping.zeros or t.any()}
    return tensors, [f"renamed {renamed} tensors from {'nanoGPT' if linear else 'Hugging Face'}'s names"] if renamed else []


def adapted(
    tensors: dict[str, Tensor], ours: dict[str, Tensor], theirs_tokenizer: Tokenizer | None, mapped: list[int] | None
) -> tuple[dict[str, Tensor], list[str]]:
    """`tensors` with rows of the vocabulary matched by token text and learned positions cut to a smaller block; and notes."""
    result, notes = dict(tensors), []
    if theirs_tokenizer is not None and mapped is not None:
        rows = torch.tensor(mapped)  # (V,) their id of each of our tokens, -1 if they have none
        known = int((rows >= 0).sum())
        if not known:
            raise UsageError("the two vocabularies have no token in common: choose the --tokenizer that the weights were trained with")
        for name in (n for n in VOCABULARY if n in result and n in ours):
            if result[name].size(0) < theirs_tokenizer.vocab_size:
                continue  # fewer rows than its tokenizer has tokens: reported as wrongly shaped
            result[name] = _rows_by_token(result[name], rows)
            if name == "table":  # the bigram's columns are tokens too
                result[name] = _rows_by_token(result[name].T, rows).T.contiguous()
        notes.append(
            f"vocabulary matched by text: {known} of {len(rows)} tokens are among the {theirs_tokenizer.vocab_size} that were loaded"
        )
        if forgotten := sorted(set(range(theirs_tokenizer.vocab_size)) - set(mapped)):
            tokens = theirs_tokenizer.token_bytes()
            shown = " ".join(repr(tokens[i].decode("utf-8", "replace")) for i in forgotten[:_SHOWN]) + " …" * (len(forgotten) > _SHOWN)
            notes.append(
                f"forgotten: {len(forgotten):,} of their {theirs_tokenizer.vocab_size:,} tokens, which our tokenizer lacks: {shown}"
            )
    notes += _without_padding(result, ours, sure=theirs_tokenizer is not None)
    if POSITIONS in result and POSITIONS in ours and result[POSITIONS].size(0) > ours[POSITIONS].size(0):
        kept, had = ours[POSITIONS].size(0), result[POSITIONS].size(0)
        result[POSITIONS] = result[POSITIONS][:kept].clone()
        notes.append(f"learned positions cut from {had} to --block-size {kept}")
    return result, notes


def _without_padding(tensors: dict[str, Tensor], ours: dict[str, Tensor], sure: bool) -> list[str]:
    """Remove, in place, rows that round a vocabulary up (nanoGPT: 50,304 for GPT-2's 50,257); a note. Unless the tokens are `sure` to be
    the same, rows are removed only if their number looks like rounding."""
    padded = [n for n in VOCABULARY[:2] if n in tensors and n in ours and tensors[n].size(0) > ours[n].size(0)]
    if not sure:
        padded = [n for n in padded if not tensors[n].size(0) % 64 and tensors[n].size(0) - ours[n].size(0) < _PADDING]
    for name in padded:
        tensors[name] = tensors[name][: ours[name].size(0)].clone()
    return [f"left out the rows after the {ours[padded[0]].size(0)} tokens: they are padding"] if padded else []


def _vocabulary_rows(theirs: Tokenizer, ours: Tokenizer) -> list[int] | None:
    """Their id of each of our tokens, -1 if they have none; None if the vocabularies are the same."""
    their_tokens, our_tokens = token_texts(theirs), token_texts(ours)
    if their_tokens == our_tokens:
        return None
    ids = {token: i for i, token in reversed(list(enumerate(their_tokens)))}
    return [ids.get(token, -1) for token in our_tokens]


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each id; a special token, which has none, gets bytes that no other token has."""
    tokens = tokenizer.token_bytes()
    return [token if token else b"\xff" + str(i).encode() for i, token in enumerate(tokens)]


def _rows_by_token(weight: Tensor, rows: Tensor) -> Tensor:
    """Row `rows[i]` of `weight` at i; for an unknown token the mean of all rows."""
    picked = weight[rows.clamp(min=0)].clone()  # (V, ...)
    picked[rows < 0] = weight.float().mean(0).to(weight.dtype)
    return picked


def _compared(source: Source, tensors: dict[str, Tensor], ours: dict[str, Tensor], notes: list[str]) -> Report:
    both = [name for name in ours if name in tensors]
    return Report(
        label=source.label,
        kind=source.kind,
        sha256=source.sha256,
        loaded=[(name, _shape(ours[name])) for name in both if tensors[name].shape == ours[name].shape],
        missing=[(name, _shape(tensor)) for name, tensor in ours.items() if name not in tensors],
        unexpected=[(name, _shape(tensor)) for name, tensor in tensors.items() if name not in ours],
        misshaped=[(name, _shape(tensors[name]), _shape(ours[name])) for name in both if tensors[name].shape != ours[name].shape],
        notes=notes,
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "scalar"


def model_settings(source: Source) -> dict[str, Any]:
    """The model settings of a source, which flags and files of settings can change; empty if it does not say."""
    return source.config.model_dump() if source.config is not None else {}
