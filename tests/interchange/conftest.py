"""Small runs to export and import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt_cli import checkpoints
from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Best, Corpus, RunRecord, SplitRecord, now
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization.bpe import ByteTokenizer
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.contract import Tokenizer, TrainingText
from minigpt_cli.tokenization.pretrained import load_tokenizer

TEXT = "Where are  you, old friend? né à Zürich\n\tdon't — 漢字 🙂 1234 , end . "
SIZES: dict[str, Any] = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32}

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"arch": "classic", **SIZES},
    "gpt2-relu-bias": {"arch": "classic", "activation": "relu", "bias": True, **SIZES},
    "gpt2-tanh-tied": {"arch": "classic", "activation": "gelu_tanh", "bias": True, "tie_weights": True, **SIZES},
    "gpt2-wide": {"arch": "classic", "ffn_mult": 5.5, **SIZES},
    "llama": {"arch": "modern", "qk_norm": False, "n_kv_head": 2, **SIZES},
    "llama-tied": {"arch": "modern", "qk_norm": False, "tie_weights": True, **SIZES},
    "qwen3": {"arch": "modern", "rope_theta": 5000.0, "rms_norm_eps": 1e-5, **SIZES},
    "mixtral": {"arch": "moe", "moe_norm_topk": True, "qk_norm": False, **SIZES},
    "qwen3_moe": {"arch": "moe", "n_kv_head": 2, **SIZES},
    "qwen3_moe-norm": {"arch": "moe", "moe_norm_topk": True, **SIZES},
    "qwen2_moe": {"arch": "moe", "qk_norm": False, "moe_top_k": 1, **SIZES},
}


def bpe_tokenizer(vocab_size: int = 290) -> Tokenizer:
    """A small BPE."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([TEXT, "the cat sat on the mat, the friend of the old friend"] * 3, trainer)
    return load_tokenizer(backend.to_str(), "bpe")


def tokenizer(kind: str, text: str = TEXT) -> Tokenizer:
    """A tokenizer by name."""
    if kind == "char":
        return CharTokenizer.build(DataConfig(), TrainingText.of(text))
    return ByteTokenizer() if kind == "byte" else bpe_tokenizer()


def random_state(config: Any, vocab_size: int) -> dict[str, torch.Tensor]:
    """Weights large enough for clear decisions."""
    state = build_model(config, vocab_size, 0).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if "balance_bias" not in name:
            tensor.normal_(0, 0.3, generator=generator).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return dict(state)


MakeRun = Callable[..., Run]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `family` runs once for each family of models: its Hugging Face name, perhaps with a variant."""
    if "family" in metafunc.fixturenames and not any("family" in str(m.args[0]) for m in metafunc.definition.iter_markers("parametrize")):
        metafunc.parametrize("family", MODELS)


@pytest.fixture
def text() -> str:
    """What the small tokenizers know: spaces, accents, Chinese, an emoji."""
    return TEXT


@pytest.fixture
def make_tokenizer() -> Callable[..., Tokenizer]:
    """make_tokenizer(kind, text)."""
    return tokenizer


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run(name, family or settings, tokenizer): a run directory with random weights and a plausible record."""
    store = RunStore(tmp_path / "runs")

    def make(name: str = "demo", model: dict[str, Any] | str = "qwen3", kind: str | Tokenizer = "char") -> Run:
        words = tokenizer(kind) if isinstance(kind, str) else kind
        config = RunConfig.model_validate({"model": MODELS[model] if isinstance(model, str) else model, "data": {"tokenizer": words.name}})
        run = store.create(name)
        run.write_config(config)
        run.write_tokenizer(words.to_json())
        state = random_state(config.model, words.vocab_size)
        split = SplitRecord(sha256="0" * 64, n_tokens=10, n_chars=10, n_bytes=10)
        corpus = Corpus(label="text.txt", sha256="1" * 64, splits={"train": split, "val": split})
        best = Best(step=7, nats_per_token=1.5, nats_per_char=1.5, ci95=(1.4, 1.6), whole_split=True)
        record = RunRecord(
            name=name, status="finished", created_at=now(), arch=config.model.arch, tokenizer=words.name, best=best, stop_step=9,
            corpus=corpus, vocab_size=words.vocab_size, n_params=sum(t.numel() for t in state.values()),
        )  # fmt: skip
        checkpoints.save(run, record, last=state, resume={}, resume_state={}, best=state)
        return run

    return make
