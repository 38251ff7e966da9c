"""Random recipes: a product of everything that a resumed run is promised to repeat to the bit, in sizes of a fraction of a second."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

ARCHITECTURES = ("bigram", "classic", "modern", "moe")
TRIALS = 3  # of a search: too few for one to be pruned


class Recipe(NamedTuple):
    """A training, as it would be typed; base-ARCH is a run to begin from, TEXT and CHATS stand for the files."""

    flags: list[str]
    features: list[str]  # for counting
    measures: bool = False  # before step 0, so that only the run's own config.json repeats it
    more_steps: int = 0  # the finished run goes on to this step with another command


class _Drawing:
    """Flags so far, and what is special about them."""

    def __init__(self, chance: Random, *features: str) -> None:
        self.chance, self.features = chance, list(features)
        self.flags: list[str] = []
        self.values: dict[str, Any] = {}

    def one_of(self, flag: str, *values: Any, feature: str = "", usual: Any = 0) -> Any:
        """Give the flag one of the values, and count what is not usual."""
        value = self.values[flag] = self.chance.choice(values)
        self.flags += [f"--{flag}={value}"]
        self.features += [feature.format(value)] if feature and value != usual else []
        return value

    def maybe(self, share: float, flag: str, feature: str = "") -> bool:
        """Give a flag without a value now and then."""
        if given := self.chance.random() < share:
            self.flags.append(f"--{flag}")
            self.features += [feature] if feature else []
        return given


def recipe(chance: Random, arch: str, *, compiled: bool = False) -> Recipe:
    """One of the product."""
    draw = _Drawing(chance, arch)
    if arch != "bigram" and chance.random() < 0.2:
        _from_a_base(draw, arch)
    else:
        _new(draw, arch)
    if arch != "bigram":
        draw.one_of("dropout", 0, 0, 0.1, 0.3, feature="dropout")
        draw.maybe(0.3, "grad-checkpoint", "checkpointed gradients")
    _optimizer(draw)
    measures = _computing(draw, arch, compiled)
    if not measures and chance.random() < 0.1 and draw.values["schedule"] != "cosine-plateau":
        draw.features.append("more steps")
        return Recipe(draw.flags, draw.features, more_steps=draw.values["max-steps"] + chance.randint(1, 8))
    return Recipe(draw.flags, draw.features, measures)


def search(chance: Random, arch: str) -> Recipe:
    """A search of `TRIALS` runs."""
    draw = _many(chance, arch, "search")
    return Recipe([*draw.flags, "--search", "lr=1e-3..1e-2:log", "--trials", str(TRIALS)], draw.features)


def sweep(chance: Random, arch: str) -> Recipe:
    """A grid with seeds."""
    draw = _many(chance, arch, "sweep")
    rates, seeds = chance.choice([(1, 2), (2, 1), (2, 2), (3, 1)])
    draw.flags += ["--sweep", "lr=" + ",".join(["1e-3", "3e-3", "1e-2"][:rates]), "--seeds", str(seeds)]
    return Recipe(draw.flags, draw.features)


def _many(chance: Random, arch: str, feature: str) -> _Drawing:
    draw = _Drawing(chance, feature, arch)
    _new(draw, arch)
    _optimizer(draw)
    draw.flags += ["--device=cpu", "--compile=off", "--threads=1", "--precision=fp32", *(["--attention=plain"] if arch != "bigram" else [])]
    return draw


def _from_a_base(draw: _Drawing, arch: str) -> None:
    draw.flags += ["TEXT", f"--init-from=base-{arch}"]
    if draw.chance.random() < 0.75:
        draw.one_of("lora-rank", 2, 4, feature="LoRA")
        draw.one_of("quantize-base", "off", "off", "off", "off", "8", usual="off", feature="quantized base")
    else:
        draw.features.append("other weights")


def _new(draw: _Drawing, arch: str) -> None:
    if draw.chance.random() < 0.15:
        draw.flags += ["CHATS", "--tokenizer=byte"]
        draw.features.append("chats")
    else:
        draw.flags += ["TEXT"]
        if draw.one_of("tokenizer", "char", "char", "byte", "bpe", usual="char", feature="{} tokens") == "bpe":
            draw.flags += ["--vocab-size=270"]
    draw.flags += [f"--arch={arch}"]
    draw.one_of("block-size", 8, 12, 17)
    if arch == "bigram":
        return
    heads = draw.one_of("n-head", 1, 2, 4)
    draw.one_of("n-embd", heads * 4, heads * 8, heads * 10)
    draw.one_of("n-layer", 1, 2)
    draw.maybe(0.2, "tie-weights")
    if arch == "classic":
        draw.maybe(0.3, "bias")
        draw.one_of("activation", "gelu", "gelu_tanh", "relu")
        return
    draw.one_of("n-kv-head", 0, 1)
    draw.maybe(0.2, "no-qk-norm")
    if arch == "moe":
        draw.flags += ["--n-experts=3"]
        draw.one_of("moe-top-k", 1, 2)
        draw.one_of("moe-balance", "aux", "bias", "none", usual="aux", feature="balanced by {}")


def _optimizer(draw: _Drawing) -> None:
    draw.one_of("max-steps", *range(6, 41))
    draw.one_of("seed", *range(10_000))
    draw.one_of("batch-size", 2, 4, 5)
    draw.one_of("optimizer", "muon", "adamw", usual="", feature="{}")
    draw.one_of("schedule", "constant", "linear", "cosine", "wsd", "cosine-plateau", usual="", feature="{}")
    draw.one_of("warmup-steps", 0, 3)
    draw.one_of("ema", 0, 0.9, 0.99, feature="average of weights")
    draw.one_of("grad-accum", 1, 1, 2, 3, usual=1, feature="accumulation")
    draw.one_of("grad-clip", 0, 0, 0.5)
    draw.one_of("sampling", "epoch", "random", usual="epoch", feature="random windows")
    draw.one_of("eval-every", 2, 3, 5, 8)
    draw.one_of("eval-iters", 0, 2)
    draw.one_of("save-every", 0, 1, 2, 3)
    draw.one_of("keep-every", 0, 0, 1, 4, feature="checkpoints over time")
    if draw.one_of("patience", 0, 0, 1, 2, feature="patience"):
        draw.one_of("min-delta", 0, 0.01, 0.1, "auto")
    draw.one_of("target-loss", 0, 0, 0, 0, 0, 2.2, feature="target loss")


def _computing(draw: _Drawing, arch: str, compiled: bool) -> bool:
    """Add on what and how it is computed; whether something of that is measured before step 0."""
    draw.flags += ["--device=cpu", f"--compile={'on' if compiled else 'off'}"]
    draw.features += ["compiled"] if compiled else []
    draw.one_of("threads", *[1] * 24, 2, usual=1, feature="{} threads")
    measures = draw.one_of("precision", *["fp32"] * 5, *["bf16"] * 5, "auto", usual="fp32", feature="{} precision") == "auto"
    if arch != "bigram":
        measures |= draw.one_of("attention", *["plain"] * 6, *["sdpa"] * 5, "auto", usual="plain", feature="{} attention") == "auto"
    if not compiled and draw.chance.random() < 0.01:
        draw.flags = [flag for flag in draw.flags if not flag.startswith(("--max-steps", "--eval-every"))] + ["--time-budget=500ms"]
        draw.features.append("time budget")
        return True
    return measures
