"""Runs for pages that hold a model: all architectures and tokenizers, weights that float16 holds, texts that could break a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness import browser
from minigpt_cli import checkpoints
from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Best, Corpus, RunRecord, SplitRecord, now
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization.bpe import BPETokenizer, ByteTokenizer
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.contract import Tokenizer, TrainingText

TEXTS = [
    "a", "\n", "To be, or not to be", "</script><script>x</script>", "<!-- <script> -->", "🙂", "a🙂b 👨‍👩‍👧 c", "漢字",
    "春風 不知 何處去", "né à Zürich", "don't I'll we've", "  two  spaces ", "tab\there\r\nand there", "1234 5.6e-7",
    "\u2028\u2029", "e\u0301 \u00e9", "שלום עולם", "“quoted” — dashed…", "long " * 6, "\\n \\u003c ${x} `y`",
]  # fmt: skip
SIZES: dict[str, Any] = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32}
MODELS: dict[str, dict[str, Any]] = {
    "classic": {"arch": "classic", "bias": True, **SIZES},
    "classic-tied": {"arch": "classic", "activation": "gelu_tanh", "tie_weights": True, **SIZES},
    "classic-relu": {"arch": "classic", "activation": "relu", "ffn_mult": 1.3, **SIZES},
    "modern": {"arch": "modern", **SIZES},
    "modern-grouped": {"arch": "modern", "n_kv_head": 2, "qk_norm": False, "tie_weights": True, **SIZES},
    "moe": {"arch": "moe", **SIZES},
    "moe-top1": {"arch": "moe", "moe_top_k": 1, "moe_balance": "bias", "n_kv_head": 1, **SIZES},
    "moe-norm": {"arch": "moe", "moe_norm_topk": True, **SIZES},
}


def tokenizer(kind: str) -> Tokenizer:
    text = TrainingText(TrainingText.of("".join(TEXTS)).alphabet, 100, lambda: iter(TEXTS))
    if kind == "byte":
        return ByteTokenizer()
    return CharTokenizer.build(DataConfig(), text) if kind == "char" else BPETokenizer.build(DataConfig(vocab_size=300), text)


def make_run(store: RunStore, name: str, model: dict[str, Any], words: Tokenizer, **data: Any) -> Run:
    """A finished run whose weights float16 holds exactly, large enough for clear decisions."""
    config = RunConfig.model_validate({"model": model, "data": {"tokenizer": words.name, **data}})
    generator = torch.Generator().manual_seed(7)
    state = build_model(config.model, words.vocab_size, 0).state_dict()
    for key, tensor in state.items():
        if "balance_bias" in key:
            tensor.copy_(torch.linspace(-0.1, 0.1, len(tensor)))
        else:
            tensor.normal_(0, 0.3, generator=generator).add_(1.0 if "norm" in key and key.endswith("weight") else 0.0)
        tensor.copy_(tensor.half().float())
    run = store.create(name)
    run.write_config(config)
    run.write_tokenizer(words.to_json())
    split = SplitRecord(sha256="0" * 64, n_tokens=10, n_chars=10, n_bytes=10)
    record = RunRecord(
        name=name, status="finished", created_at=now(), arch=config.model.arch, tokenizer=words.name, stop_step=9,
        best=Best(step=7, nats_per_token=1.5, nats_per_char=1.5, whole_split=True), vocab_size=words.vocab_size,
        corpus=Corpus(label="text.txt", sha256="1" * 64, splits={"train": split, "val": split}),
    )  # fmt: skip
    checkpoints.save(run, record, last=state, resume={}, resume_state={}, best=state)
    return run


@contextmanager
def offline(profile: Path) -> Iterator[browser.Page]:
    """A browser without a network, for a person who wants no motion."""
    with browser.browser(profile) as page:
        page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        yield page


def opened(tab: browser.Page, page: Path) -> None:
    """Open a page and wait until its model runs."""
    tab.requests.clear(), tab.complaints.clear()
    tab.open(page.as_uri())
    tab.wait(f"location.href === {page.as_uri()!r} && document.body && document.body.hasAttribute('data-ready')")


def press(tab: browser.Page, key: str, code: int, **more: Any) -> None:
    """One key."""
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)
