"""Trained runs in other programs: logits and greedy text of transformers and llama.cpp against ours. Prints JSON.

    python tests/benchmarks/partners.py TEXT [--steps 300]

Trains one small run of each family, exports it in every format and number type, and compares the continuation of one prompt,
character by character, and nats per character of a text under transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minigpt_cli import checkpoints
from minigpt_cli.checkpoints import Loaded
from minigpt_cli.cli import run as minigpt
from minigpt_cli.interchange import gguf, huggingface
from minigpt_cli.runstore.store import RunStore

RUNS = {
    "classic-char": ["--arch", "classic"],
    "modern-char": [],
    "modern-bpe": ["--tokenizer", "bpe"],
    "llama-byte": ["--no-qk-norm", "--n-kv-head", "1", "--tokenizer", "byte"],
    "moe-char": ["--arch", "moe"],
    "moe-mixtral": ["--arch", "moe", "--moe-norm-topk", "--no-qk-norm"],
    "moe-qwen2": ["--arch", "moe", "--no-qk-norm"],
}
SHAPE = ["--block-size", "128", "--n-layer", "2", "--n-embd", "96", "--n-head", "3", "--batch-size", "16", "--eval-iters", "2"]
PROMPT = "ROMEO:\n"
NEW = 100  # tokens, all within the block


def greedy(loaded: Loaded) -> str:
    """Our continuation, by full recomputation."""
    ids = torch.tensor([loaded.tokenizer.encode(PROMPT).tolist()])
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(NEW):
            ids = torch.cat([ids, loaded.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return loaded.tokenizer.decode(ids[0, start:].numpy())


def same(ours: str, theirs: str) -> int:
    """Characters until the two differ."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


def transformers_result(loaded: Loaded, folder: Path, text: str) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    huggingface.export(loaded, folder)
    model, words = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    block = loaded.config.model.block_size
    ids = torch.tensor(words(text).input_ids[: 20 * block]).view(-1, block)
    with torch.no_grad():
        theirs, ours = model(ids).logits, loaded.model(ids).logits
        prompt = words(PROMPT, return_tensors="pt").input_ids
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    expected = greedy(loaded)
    return {
        "same_ids": words(text).input_ids == loaded.tokenizer.encode(text).tolist(),
        "largest_logit_difference": float((theirs - ours).abs().max()),
        "same_characters": same(expected, words.decode(out[0, prompt.shape[1] :])),
        "of": len(expected),
    }


def llama_result(loaded: Loaded, folder: Path, dtype: str, text: str) -> dict[str, Any]:
    import llama_cpp

    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def plain() -> Any:  # weights repacked for AMX crash q8_0 on some virtual machines
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = plain
    exported = gguf.export(loaded, folder, dtype)
    file = next(folder.glob("*.gguf"))
    llama = llama_cpp.Llama(str(file), n_ctx=256, verbose=False, n_threads=1)
    llama_cpp.llama_cpp.llama_model_default_params = defaults
    answer = llama(PROMPT, max_tokens=NEW, temperature=0.0, repeat_penalty=1.0)["choices"][0]["text"]
    expected = greedy(loaded)
    return {
        "architecture": exported.architecture,
        "megabytes": round(file.stat().st_size / 1e6, 2),
        "same_ids": llama.tokenize(text.encode()) == loaded.tokenizer.encode(text).tolist(),
        "same_characters": same(expected.replace("\N{REPLACEMENT CHARACTER}", ""), answer),
        "of": len(expected),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", default="300")
    arguments = parser.parse_args()
    text = arguments.text.read_text("utf-8")[:20_000]
    results: dict[str, Any] = {"torch": torch.__version__, "numpy": np.__version__, "steps": int(arguments.steps), "runs": {}}
    with tempfile.TemporaryDirectory() as home:
        store = RunStore(Path(home) / "runs")
        for name, flags in RUNS.items():
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                common = ["--runs-dir", str(store.dir), "--max-steps", arguments.steps, "--seed", "1", *SHAPE]
                code = minigpt(["train", str(arguments.text), "--name", name, *common, *flags])
            assert code == 0, name
            loaded = checkpoints.load(store.find(name))
            row: dict[str, Any] = {"nats_per_char": round(loaded.record.best.nats_per_char, 4) if loaded.record.best else None}
            row["transformers"] = transformers_result(loaded, Path(home) / f"{name}-hf", text)
            for dtype in gguf.DTYPES:
                row[f"llama.cpp {dtype}"] = llama_result(loaded, Path(home) / f"{name}-{dtype}", dtype, text[:2000])
            results["runs"][name] = row
            print(json.dumps({name: row}), flush=True)


if __name__ == "__main__":
    main()
