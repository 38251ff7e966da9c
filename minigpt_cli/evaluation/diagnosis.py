"""What is wrong with a run, if anything, from its record, metrics, kept score and baselines. No torch.

Each rule looks for one fault in the `Symptoms` of a run. Its thresholds, and how often it was right on runs with known faults, are in
diagnosis.json, which tests/benchmarks/doctor.py writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from minigpt_cli.config import MoEConfig, RunConfig
from minigpt_cli.evaluation.baselines import Baselines
from minigpt_cli.evaluation.evaluate_run import kept_score
from minigpt_cli.evaluation.scores import Score
from minigpt_cli.events import Evaluated, StopReason
from minigpt_cli.runstore.directory import Run

FEW = 4  # evaluations: with fewer a curve says nothing
NEAR, FAR = 2, 8  # tokens before a character: little context, and enough to be of use
_WORSE = 0.1  # nats per character above a model that knows nothing: the training did that
_MUON_LR, _ADAMW_LR = 0.03, 3e-3  # that suit models 64 wide
_ENDED = (StopReason.EARLY_STOPPING, StopReason.TIME_LIMIT, StopReason.PLATEAU, StopReason.INTERRUPTED_KEYBOARD, StopReason.TERMINATED)

Thresholds = dict[str, float]


@dataclass(frozen=True)
class Symptoms:
    """Everything that a diagnosis is made from. Losses in nats per character; None: not known."""

    stop_reason: str
    stop_step: int
    max_steps: int
    uniform: float  # the loss of a model that knows nothing
    train: list[float | None]  # at each evaluation
    val: list[float | None]
    steps: list[int]
    epochs: list[float]  # how often the training text has been read
    rate: float  # the peak learning rate as a multiple of what suits this optimizer and width
    tokens_per_param: float  # of training text
    leak: float | None  # share of the validation text that stands in the training text
    noise: float | None  # half the 95 % interval of one evaluation if its characters were independent, so at least that
    measured: int  # tokens that one evaluation reads
    pairs: float | None  # the loss of counted character pairs
    xz: float | None  # what xz needs for the validation text after the training text, as a share of what it needs without
    context: float | None  # how much less a character costs with many tokens before it than with few
    block_size: int
    least_expert: float | None  # largest of the last three evaluations, as a share of an even load

    @property
    def last_train(self) -> float:
        return next((loss for loss in reversed(self.train) if loss is not None), math.inf)

    @property
    def last_val(self) -> float:
        return next((loss for loss in reversed(self.val) if loss is not None), math.inf)

    @property
    def curve(self) -> list[tuple[int, float, float, float]]:
        """Step, epochs, training and validation loss of every evaluation with finite losses."""
        rows = zip(self.steps, self.epochs, self.train, self.val, strict=True)
        return [(step, epochs, train, val) for step, epochs, train, val in rows if train is not None and val is not None]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    finding: str
    evidence: str  # one sentence with figures and units
    right: int  # known cases in which this finding was right
    of: int  # known cases in which it was made

    @property
    def is_sure(self) -> bool:
        return self.of >= 3 and self.right >= 0.9 * self.of


# ---- what a run shows


def symptoms_of(run: Run, baselines: Baselines | None = None) -> Symptoms:
    """The symptoms of a run. Raises RunDamaged if its files cannot be read."""
    record, config, evaluations = run.record, run.config, list(run.metrics())
    splits = record.corpus.splits if record.corpus else {}
    train, val = splits.get("train"), splits.get("val")
    chars_per_token = val.n_chars / max(1, val.n_tokens) if val else 1.0
    block = config.model.block_size

    def read(e: Evaluated) -> int:
        """The tokens that the run itself has read; `tokens_seen` has those of its teachers too."""
        return e.step * config.step_tokens(record.world_size) if record.teacher else e.tokens_seen

    sampled = config.eval.eval_iters * config.optim.batch_size * block
    whole = val.n_tokens if val else 0
    measured = min(sampled, whole) if sampled and whole else sampled or whole
    score = kept_score(run)
    return Symptoms(
        stop_reason=str(record.stop_reason or ""),
        stop_step=record.stop_step,
        max_steps=config.optim.max_steps,
        uniform=math.log(max(2, record.vocab_size)) / chars_per_token,
        train=[None if e.train_loss is None else e.train_loss / chars_per_token for e in evaluations],
        val=[e.nats_per_char for e in evaluations],
        steps=[e.step for e in evaluations],
        epochs=[read(e) / max(1, train.n_tokens) if train else 0.0 for e in evaluations],
        rate=_rate(config),
        tokens_per_param=(train.n_tokens if train else 0) / max(1, record.n_params),
        leak=record.corpus.leak.share if record.corpus and record.corpus.leak else None,
        noise=1.96 * float(score.char_nats.std()) / math.sqrt(max(1.0, measured * chars_per_token)) if score else None,
        measured=measured,
        pairs=baselines.bigram if baselines else None,
        xz=baselines.xz / baselines.xz_alone if baselines and baselines.xz_alone else None,
        context=_context(score, block),
        block_size=block,
        least_expert=_least_expert(evaluations) if isinstance(config.model, MoEConfig) else None,
    )


def usual_rates(config: RunConfig) -> dict[str, float]:
    """The learning rates that suit the optimizer and the width of the model."""
    adamw = _ADAMW_LR * math.sqrt(64 / max(1, getattr(config.model, "n_embd", 64)))
    return {"muon_lr": _MUON_LR, "lr": 2 * adamw} if config.optim.optimizer == "muon" else {"lr": adamw}


def _rate(config: RunConfig) -> float:
    usual, optim = usual_rates(config), config.optim
    if not config.model.is_sized:
        return 1.0  # a table of counts learns at almost any rate
    return optim.muon_lr / usual["muon_lr"] if "muon_lr" in usual else optim.lr / usual["lr"]


def _context(score: Score | None, block_size: int) -> float | None:
    """How much a character's loss falls from little context to enough; 0 where the window has no room for enough."""
    if block_size <= FAR:
        return 0.0
    if score is None:
        return None
    near, far = score.char_position <= NEAR, score.char_position > FAR
    return float(score.char_nats[near].mean() - score.char_nats[far].mean()) if near.any() and far.any() else None


def _least_expert(evaluations: list[Evaluated]) -> float | None:
    """The load of the least used expert, as a share of an even load: of the last three evaluations the largest."""
    loads = [e.expert_load for e in evaluations if e.expert_load][-3:]
    return max(min(min(layer) * len(layer) for layer in load) for load in loads) if len(loads) == 3 else None


# ---- what that means


def diagnose(shown: Symptoms, thresholds: Thresholds | None = None) -> list[Finding]:
    """What is wrong with a run, the surest explanation first; empty for a healthy one."""
    known = _known()
    limits = known["thresholds"] if thresholds is None else thresholds
    found = [(name, evidence) for name, rule in RULES.items() if (evidence := rule(shown, limits))]
    if found and found[0][0] in _ALONE:  # the other figures mean nothing then
        found = found[:1]
    return [Finding(name, evidence, *known["hit_rates"].get(name, (0, 0))) for name, evidence in found]


def too_little_to_say(shown: Symptoms) -> str:
    """Why a run without findings may not be healthy: what a diagnosis needs is missing. "" where it is not."""
    if len(shown.curve) < FEW:
        return f"nothing is found, but {len(shown.curve)} evaluations are too few to see a curve"
    return "" if shown.pairs is not None else "nothing is found, but its text is missing, so character pairs cannot be counted"


def _diverged(s: Symptoms, t: Thresholds) -> str:
    if s.stop_reason == StopReason.DIVERGED:
        return f"training ended at step {s.stop_step:,} because losses were no longer finite"
    if s.train and s.last_train > s.uniform + _WORSE:
        return f"the training loss ended at {s.last_train:.2f} nats per character, and knowing nothing costs {s.uniform:.2f}"
    if (worst := max((loss for loss in s.train if loss is not None), default=0.0)) > t["blown_up"] * s.uniform:
        return f"the training loss went up to {worst:.2f} nats per character, and knowing nothing costs {s.uniform:.2f}"
    return ""


def _leak(s: Symptoms, t: Thresholds) -> str:
    if s.leak is not None and s.leak > t["leak"]:
        return f"{s.leak:.0%} of the validation text stands word for word in the training text"
    if s.xz is not None and s.xz < t["xz"] and not _noisy(s, t):  # of a few lines xz mostly writes its header
        return f"after the training text xz needs {s.xz:.0%} of the bytes for the validation text that it needs without"
    return ""


def _noisy(s: Symptoms, t: Thresholds) -> str:
    if s.noise is None or s.noise <= t["noise"]:
        return ""
    return f"an evaluation reads {s.measured:,} tokens, so its loss is uncertain by ±{s.noise:.2f} nats per character or more"


def _experts(s: Symptoms, t: Thresholds) -> str:
    if s.least_expert is None or s.least_expert >= t["expert"]:
        return ""
    return f"an expert got at most {s.least_expert:.0%} of an even share of the tokens at each of the last three evaluations"


def _unlike(s: Symptoms, t: Thresholds) -> str:
    early = [(epochs, val - train) for _, epochs, train, val in s.curve if epochs <= 1]
    if not early or early[-1][1] <= max(t["gap"], s.noise or 0.0):
        return ""
    epochs, gap = early[-1]
    return (
        f"validation costs {gap:.2f} nats per character more than training after {epochs:.1f} times over the text, too soon for overfitting"
    )


def _rise(s: Symptoms, t: Thresholds) -> tuple[int, float] | None:
    """The best step and how far validation rose after it while training fell; None if it did not."""
    if len(s.curve) < FEW:
        return None
    step, _, train, best = min(s.curve, key=lambda row: row[3])
    return (step, s.last_val - best) if s.last_val - best > t["rise"] and s.last_train < train else None


def _little_text(s: Symptoms, t: Thresholds) -> str:
    if (rise := _rise(s, t)) is None or s.tokens_per_param >= t["tokens_per_param"]:
        return ""
    per = f"{s.tokens_per_param:.3f} tokens of text for each parameter, read {s.epochs[-1]:.0f} times"
    return f"{per}: validation rose by {rise[1]:.2f} nats per character after step {rise[0]:,}"


def _overfitting(s: Symptoms, t: Thresholds) -> str:
    if (rise := _rise(s, t)) is None or s.tokens_per_param < t["tokens_per_param"]:
        return ""
    noise = "" if s.noise is None else f" (one evaluation: ±{s.noise:.2f})"
    return f"validation rose by {rise[1]:.2f} nats per character after step {rise[0]:,}{noise} while the training loss fell"


def _unlearned(s: Symptoms, t: Thresholds) -> bool:
    """Whether the training loss ended little below that of character pairs."""
    return len(s.curve) >= FEW and s.pairs is not None and s.last_train > s.pairs - t["unlearned"]


def _rate_high(s: Symptoms, t: Thresholds) -> str:
    worst, low = 0.0, math.inf
    for _, _, train, _ in s.curve:
        low = min(low, train)
        worst = max(worst, train - low)
    if worst > t["train_rise"]:
        return f"the training loss rose by {worst:.2f} nats per character during training"
    if s.rate > t["rate_high"] and _unlearned(s, t):
        return f"the rate is {s.rate:.0f} times what suits this model, and the training loss ended at {_beside_pairs(s)}"
    return ""


def _beside_pairs(s: Symptoms) -> str:
    return f"{s.last_train:.2f} nats per character; counted character pairs reach {s.pairs:.2f}"


def _rate_low(s: Symptoms, t: Thresholds) -> str:
    if s.rate < t["rate_low"] and _unlearned(s, t):
        return f"the rate is {s.rate:.2g} times what suits this model, and the training loss ended at {_beside_pairs(s)}"
    if s.stop_reason in _ENDED and s.stop_step < 0.9 * s.max_steps and len(s.curve) > 1:
        before = s.curve[-1 - max(1, len(s.curve) // 4)]
        if (fall := before[3] - s.last_val) > t["fall"]:
            falling = f"validation fell by {fall:.2f} nats per character in the last {s.stop_step - before[0]:,} steps"
            return f"training ended at step {s.stop_step:,} of {s.max_steps:,}, and {falling}"
    return ""


def _context_unused(s: Symptoms, t: Thresholds) -> str:
    if len(s.curve) < FEW or s.context is None or s.context >= t["context"] or s.pairs is None or s.last_val > s.pairs + t["near_pairs"]:
        return ""
    if s.block_size <= FAR:
        gain = f"the window holds {s.block_size} tokens"
    else:
        gain = f"more than {FAR} tokens before a character save {s.context:.2f} nats over at most {NEAR}"
    return f"{gain}, and the loss is {s.last_val:.2f} nats per character beside {s.pairs:.2f} of counted character pairs"


RULES: dict[str, Callable[[Symptoms, Thresholds], str]] = {
    "diverged": _diverged,
    "leak between splits": _leak,
    "validation unlike training": _unlike,
    "evaluation too noisy": _noisy,
    "rate too high": _rate_high,
    "rate too low or stopped early": _rate_low,
    "too little text": _little_text,
    "overfitting": _overfitting,
    "context unused": _context_unused,
    "dead experts": _experts,
}
"""The evidence for each fault, or "". The first that finds something is what a run is said to have."""
_ALONE = ("diverged", "evaluation too noisy")


@cache
def _known() -> dict[str, Any]:
    """The content of diagnosis.json."""
    return dict(json.loads((files("minigpt_cli.evaluation") / "diagnosis.json").read_text(encoding="utf-8")))


def to_json(shown: Symptoms) -> dict[str, Any]:
    """Symptoms as JSON, with four digits after the point."""

    def short(value: Any) -> Any:
        return [short(item) for item in value] if isinstance(value, list) else round(value, 4) if isinstance(value, float) else value

    return {name: short(value) for name, value in asdict(shown).items()}


def faults_of(symptoms: list[Symptoms], thresholds: Thresholds) -> Iterator[str]:
    """The fault that each run is said to have first, or "healthy"."""
    for shown in symptoms:
        yield next((finding.finding for finding in diagnose(shown, thresholds)), "healthy")
