"""What became of a bet: each function measures this learner's own runs and names one of the bet's options. No torch at module level.

Where two things are compared, the verdict is that of `minigpt compare` (evaluation/comparison.py), so a difference within the noise is
"cannot be told". The figures go into the text that is said after the bet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigpt_cli.course.progress import Progress
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.evaluation.baselines import Baselines
from minigpt_cli.evaluation.comparison import Pair, Side, compare_pairs
from minigpt_cli.evaluation.eval_target import Target
from minigpt_cli.evaluation.evaluate_run import baselines_of, evaluate_run
from minigpt_cli.evaluation.inside import PartCost, look
from minigpt_cli.evaluation.recipes import by_recipe
from minigpt_cli.evaluation.scores import Score
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

TIE = "tie"


@dataclass(frozen=True)
class Outcome:
    """The option that happened, and measured figures for the text about it."""

    option: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """The learner's runs by their parts."""

    store: RunStore
    progress: Progress

    def run(self, part: str) -> Run:
        """The run of a part. Raises MiniGPTError if there is none."""
        return self.runs(part)[0]

    def runs(self, part: str) -> list[Run]:
        """The runs of a part. Raises MiniGPTError if there are none."""
        if not (names := self.progress.run_names(part)):
            raise MiniGPTError(f"no run was made for this: {part}")
        return [self.store.find(name) for name in names]

    def score(self, part: str, ckpt: str = "best") -> Score:
        """The score of a part's run on its validation text."""
        return evaluate_run(self.run(part), Target(ckpt=ckpt)).score

    def baselines(self, part: str) -> Baselines:
        """The baselines beside that score."""
        run = self.run(part)
        found = baselines_of(run, evaluate_run(run).score)
        if found is None:
            raise MiniGPTError(f"the text of {run.name} is no longer there")
        return found


def counting(m: Measured) -> Outcome:
    """Whether counted pairs beat the learner on the characters of the guessing game."""
    from minigpt_cli.course import guessing

    game = m.progress.last("guessed", "guess")
    if game is None or "context" not in game.data:
        raise MiniGPTError("the guessing game was not played")
    pairs = guessing.model_data(m.run("pairs"), game.data)
    found = guessing.difference(np.array(pairs["nats"]), np.array(game.data["nats"]))
    option = TIE if found.low <= 0 <= found.high else "pairs" if found.mean < 0 else "you"
    return Outcome(option, {"you": game.data["nats_per_char"], "pairs": pairs["nats_per_char"], "n": pairs["n_chars"]})


def baseline(m: Measured) -> Outcome:
    """The best baseline that the learner's model is clearly better than; a tie where its interval holds one."""
    score, beside = m.score("mine"), m.baselines("mine")
    low, high = score.ci95
    figures = {"mine": score.nats_per_char, "pairs": beside.bigram, "xz": beside.xz, "steps": m.run("mine").record.stop_step}
    if any(low <= value <= high for value in (beside.bigram, beside.xz)):
        return Outcome(TIE, figures)
    return Outcome("low" if low > beside.bigram else "pairs" if low > beside.xz else "xz", figures)


def temperature(m: Measured) -> Outcome:
    """At which temperature the model is least surprised by what it writes itself."""
    from minigpt_cli.generation import samples
    from minigpt_cli.generation.engine import GenerationRequest
    from minigpt_cli.generation.open_run import open_model
    from minigpt_cli.generation.sampling import Sampling

    loaded = open_model(m.run("mine"))
    nats = {}
    for name, value in {"cold": 0.3, "one": 1.0, "hot": 2.0}.items():
        request = GenerationRequest(loaded.prompt_ids(""), Sampling(temperature=value, top_k=0), 400, 1, seed=1, score=True)
        [sample] = samples.collect(loaded.steps(request), 1)
        nats[name] = sample.nats_per_char or 0.0
    return Outcome(min(nats, key=lambda name: nats[name]), nats)


def reciting(m: Measured) -> Outcome:
    """Where the loss on unseen text ended, after a training on a short text: below its best, equal, or above."""
    run, best, last = m.run("parrot"), m.score("parrot"), m.score("parrot", "last")
    pair = _pair(("last", last), ("best", best))
    option = "rose" if pair.verdict == "b_better" else "fell" if pair.verdict == "a_better" else TIE
    train = [event.train_loss for event in run.metrics() if event.train_loss is not None]
    if option == TIE and last.nats_per_char == best.nats_per_char:
        option = "fell"  # the last step was the best
    figures = {"best": best.nats_per_char, "last": last.nats_per_char, "best_step": run.record.best.step if run.record.best else 0}
    return Outcome(option, figures | {"train": train[-1] if train else float("nan"), "uniform": m.baselines("parrot").uniform})


def cheating(m: Measured) -> Outcome:
    """Whether the model that sees the answer has a lower loss."""
    return _against_mine(m, "cheat")


def order(m: Measured) -> Outcome:
    """How much is lost without positions: nothing measurable, a part, or as much as everything but pairs."""
    found, pairs = _against_mine(m, "order"), m.baselines("order").bigram
    low, high = m.score("order").ci95
    figures = found.figures | {"pairs": pairs}
    if found.option in ("better", TIE):
        return Outcome("same", figures)
    return Outcome("between" if high < pairs else "pairs" if low > pairs else TIE, figures)


def costliest(m: Measured) -> Outcome:
    """The kind of the single part that costs most when it is taken out: positions, a head or an MLP. Layers hold several parts."""
    found = look(m.run("mine"))
    best: dict[str, PartCost] = {}
    for part in sorted(found.parts, key=lambda part: part.delta_nats_per_char):
        best[part.part.split()[0]] = part
    kinds = sorted((best[kind] for kind in ("positions", "head", "mlp") if kind in best), key=lambda part: -part.delta_nats_per_char)
    first, second = kinds[0], kinds[1]
    figures: dict[str, Any] = {part.part.split()[0]: part.delta_nats_per_char for part in kinds}
    figures |= {"first": first.part, "second": second.part}
    apart = first.measurable and first.ci95[0] > second.ci95[1]
    return Outcome(first.part.split()[0] if apart else TIE, figures)


def recipes(m: Measured) -> Outcome:
    """Whether two recipes differ by more than the luck of their seeds."""
    a, b = _recipes(m)
    [pair] = compare_pairs([a, b])
    better, worse = (a, b) if pair.test.mean < 0 else (b, a)
    spread = max(max(s.nats_per_char for s in side.scores) - min(s.nats_per_char for s in side.scores) for side in (a, b))
    figures = {"better": better.name, "worse": worse.name, "difference": abs(pair.test.mean), "spread": spread}
    return Outcome(TIE if pair.verdict == "indistinguishable" else "recipe", figures)


def seeds(m: Measured) -> Outcome:
    """Whether any two runs of one recipe differ measurably, although only the seed differs."""
    better = min(_recipes(m), key=lambda side: side.group.mean)
    pairs = compare_pairs([Side(f"seed {i}", (score,)) for i, score in enumerate(better.scores, 1)])
    measurable = [pair for pair in pairs if pair.verdict != "indistinguishable"]
    largest = max(pairs, key=lambda pair: (pair in measurable, abs(pair.test.mean)))
    return Outcome("differ" if measurable else TIE, {"recipe": better.name, "difference": abs(largest.test.mean), "n": len(measurable)})


def _recipes(m: Measured) -> tuple[Side, Side]:
    groups = by_recipe(m.runs("seeds"))
    sides = [Side(run_group[0].record.arch, tuple(evaluate_run(run).score for run in run_group)) for run_group in groups]
    if len(sides) != 2:
        raise MiniGPTError("the runs of two recipes are no longer all there")
    if sides[0].name == sides[1].name:
        sides = [Side(f"{side.name} {i}", side.scores) for i, side in enumerate(sides, 1)]
    return sides[0], sides[1]


def _against_mine(m: Measured, part: str) -> Outcome:
    """Whether the run of a part is better or worse than the learner's model."""
    pair = _pair((part, m.score(part)), ("mine", m.score("mine")))
    option = {"a_better": "better", "b_better": "worse", "indistinguishable": TIE}[pair.verdict]
    return Outcome(option, {part: m.score(part).nats_per_char, "mine": m.score("mine").nats_per_char, "difference": abs(pair.test.mean)})


def _pair(a: tuple[str, Score], b: tuple[str, Score]) -> Pair:
    [pair] = compare_pairs([Side(a[0], (a[1],)), Side(b[0], (b[1],))])
    return pair


OUTCOMES: dict[str, tuple[Callable[[Measured], Outcome], tuple[str, ...]]] = {
    "counting": (counting, ("pairs", "you", TIE)),
    "baseline": (baseline, ("low", "pairs", "xz", TIE)),
    "temperature": (temperature, ("cold", "one", "hot")),
    "reciting": (reciting, ("fell", "rose", TIE)),
    "cheating": (cheating, ("better", "worse", TIE)),
    "order": (order, ("same", "between", "pairs", TIE)),
    "costliest": (costliest, ("positions", "head", "mlp", TIE)),
    "recipes": (recipes, ("recipe", TIE)),
    "seeds": (seeds, ("differ", TIE)),
}
"""What measures an outcome, and all options that it may name."""
