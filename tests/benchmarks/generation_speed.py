"""How fast text is written, against what a person could use instead: medians of interleaved repeats, both sides printed as JSON.

    python tests/benchmarks/generation_speed.py --nanogpt ../nanoGPT

The weights are random, the same on every side, and greedy text is checked to be the same first. Everybody samples with
temperature 0.9 and top-k 50 on the same number of threads. Sides that are not installed are left out. A busy machine makes
every side slower, spinning threads most of all: the load is printed too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SHAPES = {"6x384": (6, 6, 384, 256), "4x128": (4, 4, 128, 64)}
ALPHABET = "\n !$&',-.3:;?" + "".join(chr(c) for c in (*range(65, 91), *range(97, 123)))
Side = Callable[[int], float]  # tokens to write → tokens per second


def build(shape: str) -> Any:
    """A run in memory: random weights whose logits are as decided as a trained model's."""
    import torch

    from minigpt_cli.checkpoints import Loaded
    from minigpt_cli.config import ClassicConfig, RunConfig
    from minigpt_cli.models.contract import build_model
    from minigpt_cli.runstore.records import RunRecord
    from minigpt_cli.tokenization.char import CharTokenizer

    layers, heads, width, block = SHAPES[shape]
    config = ClassicConfig(n_layer=layers, n_head=heads, n_embd=width, block_size=block, tie_weights=True, init_std=0.08)
    tokenizer = CharTokenizer([ord(c) for c in ALPHABET])
    model = build_model(config, tokenizer.vocab_size, 1).eval()
    with torch.no_grad():
        model.output_weight.mul_(2)
    return Loaded(model, tokenizer, RunConfig(model=config), RunRecord(name="random", arch="classic"), 0)


def ours(loaded: Any, threads: int, engine: str = "auto", samples: int = 1) -> tuple[Side, Callable[[int], list[int]]]:
    """minigpt's engine as `generate` runs it, text included."""
    from minigpt_cli.generation.engine import Engine, GenerationRequest
    from minigpt_cli.generation.samples import run
    from minigpt_cli.generation.sampling import Sampling
    from minigpt_cli.generation.select_decoder import decoder_of

    decoding = Engine(decoder_of(loaded.model, samples, engine), loaded.tokenizer.token_bytes())

    def speed(n: int) -> float:
        began = time.perf_counter()
        count = sum(1 for _ in run(decoding, GenerationRequest([1], max_new_tokens=n, num_samples=samples, seed=1)))
        return count / (time.perf_counter() - began)

    def greedy(n: int) -> list[int]:
        return [step.token for step in run(decoding, GenerationRequest([1], Sampling(temperature=0), n))]

    return speed, greedy


def nanogpt(loaded: Any, folder: Path) -> tuple[Side, Callable[[int], list[int]]]:
    """nanoGPT's model.generate."""
    import torch

    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = loaded.model.config
    settings = module.GPTConfig(c.block_size, loaded.model.vocab_size, c.n_layer, c.n_head, c.n_embd, 0.0, False)
    model = module.GPT(settings).eval()
    names = {
        "token_embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "blocks.": "transformer.h.",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    weights = {}
    for name, tensor in loaded.model.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = tensor
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    model.load_state_dict(weights)

    @torch.inference_mode()
    def write(n: int, **options: Any) -> Any:
        return model.generate(torch.tensor([[1]]), n, **options)

    def speed(n: int) -> float:
        began = time.perf_counter()
        write(n, temperature=0.9, top_k=50)
        return n / (time.perf_counter() - began)

    return speed, lambda n: write(n, top_k=1)[0, 1:].tolist()  # type: ignore[no-any-return]


def hugging_face(loaded: Any, folder: Path) -> tuple[Side, Callable[[int], list[int]]]:
    """transformers' generate with its cache."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from minigpt_cli.interchange import huggingface

    logging.set_verbosity_error()
    huggingface.export(loaded, folder / "hf")
    model = AutoModelForCausalLM.from_pretrained(folder / "hf").eval()

    @torch.inference_mode()
    def write(n: int, **options: Any) -> Any:
        ids = torch.tensor([[1]])
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=n, max_new_tokens=n, pad_token_id=0, use_cache=True, **options
        )

    def speed(n: int) -> float:
        began = time.perf_counter()
        write(n, do_sample=True, temperature=0.9, top_k=50)
        return n / (time.perf_counter() - began)

    return speed, lambda n: write(n, do_sample=False)[0, 1:].tolist()  # type: ignore[no-any-return]


def llama_cpp(loaded: Any, folder: Path, dtype: str, threads: int) -> tuple[Side, Callable[[int], list[int]]]:
    """llama.cpp on the GGUF that `runs export` writes."""
    from llama_cpp import Llama

    from minigpt_cli.interchange import gguf

    gguf.export(loaded, folder / f"gguf-{dtype}", dtype)
    path = next((folder / f"gguf-{dtype}").glob("*.gguf"))
    block = loaded.model.config.block_size
    model = Llama(str(path), n_ctx=block, n_threads=threads, n_threads_batch=threads, verbose=False, seed=1)

    def write(n: int, **options: Any) -> list[int]:
        model.reset()
        steps: Iterator[int] = model.generate([1], repeat_penalty=1.0, **options)
        return [token for token, _ in zip(steps, range(n), strict=False)]

    def speed(n: int) -> float:
        began = time.perf_counter()
        write(n, temp=0.9, top_k=50, top_p=1.0, min_p=0.0)
        return n / (time.perf_counter() - began)

    return speed, lambda n: write(n, temp=0.0)


def interleaved(sides: dict[str, Side], tokens: dict[str, int], repeats: int) -> dict[str, float]:
    """The median tokens per second of each side; sides take turns, so that a slow moment of the machine meets all of them."""
    results: dict[str, list[float]] = {name: [] for name in sides}
    for side, speed in sides.items():
        speed(min(16, tokens[side]))
    for _ in range(repeats):
        for side, speed in sides.items():
            results[side].append(speed(tokens[side]))
    return {side: round(statistics.median(values), 1) for side, values in results.items()}


def compare(shape: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everybody's single stream inside the block, beyond it, and our sixteen samples."""
    loaded, block = build(shape), SHAPES[shape][3]
    made: dict[str, tuple[Side, Callable[[int], list[int]]]] = {"minigpt": ours(loaded, options.threads)}
    made |= {f"minigpt {engine}": ours(loaded, options.threads, engine) for engine in ("native-fp32", "native-int8", "torch")}
    if options.nanogpt:
        made["nanogpt"] = nanogpt(loaded, options.nanogpt)
    if importlib.util.find_spec("transformers"):
        made["hugging face"] = hugging_face(loaded, folder / shape)
    if importlib.util.find_spec("llama_cpp"):
        made |= {f"llama.cpp {dtype}": llama_cpp(loaded, folder / shape, dtype, options.threads) for dtype in ("f16", "f32", "q8_0")}
    n = min(40, block - 2)
    expected = made["minigpt"][1](n)
    agree = {name: sum(a == b for a, b in zip(greedy(n), expected, strict=True)) for name, (_, greedy) in made.items()}
    slow = {"nanogpt": 64 if options.quick else block - 2, "hugging face": 64 if options.quick else block - 2}
    inside = interleaved(
        {name: side for name, (side, _) in made.items()}, {name: slow.get(name, block - 2) for name in made}, options.repeats
    )
    result: dict[str, Any] = {"greedy_tokens_that_agree": agree, "of": n, "inside_tokens_per_s": inside}
    names = [name for name in ("minigpt", "nanogpt") if name in made]
    late = {name: beyond(made[name][0], block, 24 if name == "nanogpt" else 6 * block) for name in names}
    result["beyond_tokens_per_s"] = interleaved(late, dict.fromkeys(names, 0), max(3, options.repeats // 2))
    many = {f"{count} samples": ours(loaded, options.threads, samples=count)[0] for count in (1, 16)}
    result["samples_tokens_per_s"] = interleaved(many, dict.fromkeys(many, block - 2), options.repeats)
    result["ratios"] = ratios(result)
    return result


def beyond(side: Side, block: int, more: int) -> Side:
    """Speed of the tokens after the block alone: the time of block + more tokens less that of block tokens."""

    def speed(_: int) -> float:
        inside, both = block / side(block), (block + more) / side(block + more)
        return more / (both - inside)

    return speed


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """What the project promises, as ratios to us."""
    inside, late, many = (result[f"{key}_tokens_per_s"] for key in ("inside", "beyond", "samples"))
    found = {f"inside, against {name}": inside["minigpt"] / value for name, value in inside.items() if not name.startswith("minigpt")}
    if "nanogpt" in late:
        found["beyond, against nanogpt"] = late["minigpt"] / late["nanogpt"]
    found["16 samples against 1"] = many["16 samples"] / many["1 samples"]
    return {name: round(value, 2) for name, value in found.items()}


def first_character(repeats: int, folder: Path) -> dict[str, float]:
    """Seconds from starting `minigpt generate` to its first character, and of importing torch; medians, disk cache warm."""
    from minigpt_cli.cli import run as cli

    text = folder / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 400, "utf-8")
    os.chdir(folder)
    flags = "--name small --n-layer 4 --n-head 4 --n-embd 128 --block-size 64 --batch-size 4 --max-steps 2 --precision fp32 --compile off"
    if cli(["train", str(text), *flags.split()]) != 0:
        raise SystemExit("the small run for the start-up time could not be trained")
    commands = {
        "minigpt generate, to its first character": [sys.executable, "-m", "minigpt_cli", "generate", "small", "--max-new-tokens", "500"],
        "import torch": [sys.executable, "-c", "import torch; print(1)"],
        "python alone": [sys.executable, "-c", "print(1)"],
    }
    results: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                assert process.stdout is not None
                process.stdout.read(1)
                if turn:  # the first one warms the disk cache
                    results[name].append(time.perf_counter() - began)
                process.stdout.read()
    medians = {name: round(statistics.median(values), 3) for name, values in results.items()}
    ours_s, torch_s, _ = medians.values()
    return medians | {"ratio": round(ours_s / torch_s, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=lambda s: Path(s).resolve(), help="a clone of nanoGPT")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--quick", action="store_true", help="fewer tokens of the slow ones")
    parser.add_argument("--no-start", action="store_true", help="leave the start-up time out")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    import torch

    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"torch": torch.__version__, "threads": options.threads, "load_before": os.getloadavg()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report |= {shape: compare(shape, options, folder) for shape in options.shapes.split(",")}
        if not options.no_start:
            report["start_s"] = first_character(options.repeats, folder)
    report["load_after"] = os.getloadavg()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
