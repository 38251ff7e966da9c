"""How far a plan is from the best of a search that is given the same time.

    python tests/benchmarks/regret.py --texts FOLDER --text emma --seconds 20 >> search.jsonl

Half of the configurations are drawn at random; each of the others is the best so far with one setting changed, the settings that are likely
to matter first, as somebody would search who knows what he does. The search starts without the plan; with `--from-plan` it starts at the
plan, and shows what could be gained by changing it. Each configuration is trained by steps, as many as a quiet machine of two cores takes
in the time: a busy machine changes nothing. Cutting a text into byte pairs costs the time that the planner reckons with.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import planning
import torch

from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.data.encoding import prepared
from minigpt_cli.training import memory, plan
from minigpt_cli.training.law import Training
from minigpt_cli.training.machine import Work
from minigpt_cli.training.vocabularies import cut_s, parts, present

SPACE: dict[str, tuple[Any, ...]] = {  # in the order in which neighbours are tried
    "cut": ("char", 512, 1024, 2048),
    "shape": tuple((layers, width, width // 32) for layers, width in plan.SHAPES[:8]),
    "batch": (4, 8, 16, 32),
    "rates": (0.7, 1.0, 1.4),  # of the planned ones
    "teachers": (0, 1, 2),
    "dropout": (0.0, 0.05, 0.1, 0.2),
    "decay": (0.05, 0.1, 0.2, 0.4),
    "ema": (0.98, 0.99, 0.995),
    "cooldown": (0.4, 0.6, 0.8, 1.0),
    "block": (64, 128, 256),
}
Choice = dict[str, Any]


def neighbours(choice: Choice) -> Iterator[Choice]:
    """The choice with one setting moved to the next value."""
    for by in (1, -1):
        for name, values in SPACE.items():
            place = values.index(choice[name]) + by if choice[name] in values else -1  # a plan may have another
            if 0 <= place < len(values):
                yield choice | {name: values[place]}


def planned(config: RunConfig) -> Choice:
    """The plan as a choice."""
    found = plan.plan(config, (), prepared(config.data, None, lambda step: None), planning.MACHINES["two cores, AVX-512"]).config
    model: Any = found.model
    choice = {
        "cut": found.data.vocab_size if found.data.tokenizer == "bpe" else "char",
        "shape": (model.n_layer, model.n_embd, model.n_head),
    }
    choice |= {"batch": found.optim.batch_size, "rates": 1.0, "dropout": model.dropout, "decay": found.optim.weight_decay}
    choice |= {"teachers": found.distil.teachers, "max_chars": found.data.max_chars}
    return choice | {"ema": found.optim.ema, "cooldown": found.optim.cooldown_frac, "block": model.block_size}


def trained(text: str, config: RunConfig, choice: Choice, rival: tuple[float, ...]) -> dict[str, Any]:
    """The row of a choice."""
    cut, rates = choice["cut"], plan.learning_rates(choice["shape"][1])
    data = config.data
    if cut != "char":  # of a text too large for the time, the smallest part where the plan did not choose another
        whole = prepared(data, None, lambda step: None)
        smallest = min(parts(whole.train.n_chars, whole.val.n_chars, config.optim.time_budget), default=0)
        data = data.model_copy(update={"tokenizer": "bpe", "vocab_size": cut, "max_chars": choice.get("max_chars", smallest)})
    dataset = prepared(data, None, lambda step: None)
    r = planning.row(text, choice["shape"], 0, **{name: value for name, value in choice.items() if name in planning.PLAIN})
    r |= {"tokenizer": data.tokenizer, "vocab_size": data.vocab_size}
    r |= {name: round(choice["rates"] * rate, 5) for name, rate in rates.items()}
    work = Work.of(planning.config_of(r, 1).model, r["batch"], dataset.tokenizer.vocab_size)  # type: ignore[arg-type]
    seconds = plan.TRAINED_SHARE * config.optim.time_budget
    if cut != "char":
        seconds -= cut_s(dataset.train.n_chars, dataset.val.n_chars, cut)
    step_tokens, tokens_per_s = r["batch"] * r["block"], r["batch"] * r["block"] / planning.MACHINES["two cores, AVX-512"].step_s(work)
    chain, model = [seconds * tokens_per_s], None
    if choice["teachers"]:
        taught = planning.config_of(r, 1).changed(distil={"teachers": choice["teachers"]})
        chain = [t.tokens for t, _ in plan._chain(Training.of(taught, present(dataset)), seconds, tokens_per_s, taught.distil.teacher_time)]
    for number, tokens in enumerate(chain):
        r["tokens"] = int(tokens / step_tokens) * step_tokens
        found, model = planning.train_taught(r, dataset, rival if number == len(chain) - 1 else (), model)
    return {**planning.flat(r), **found, "gain": planning.gain(data)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--text", choices=planning.TEXTS, required=True)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--configurations", type=int, default=24)
    parser.add_argument("--from-plan", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    memory.available = lambda device: 16 << 30
    where = planning.TEXTS[given.text]
    config = RunConfig(data=DataConfig(**{**where, "source": str(given.texts / where["source"])})).changed(
        optim={"time_budget": given.seconds}
    )
    rng, tried, best = random.Random(given.seed), [planned(config)], None
    for number in range(given.configurations + 1):
        choice = tried[0]
        if number:
            choice = {name: rng.choice(values) for name, values in SPACE.items()}
            if best and (given.from_plan or number > given.configurations // 2):
                choice = next((c for c in neighbours(best["choice"]) if c not in tried), choice)
            tried.append(choice)
        rival = (*best["watched"], best["best"]) if best else ()
        found = {"plan": not number, "choice": choice, **trained(given.text, config, choice, rival)}
        print(json.dumps(found), flush=True)
        if (number or given.from_plan) and (best is None or found["best"] < best["best"]):
            best = found


if __name__ == "__main__":
    main()
