"""minigpt runs diagnose: what is wrong with a run, with a command that confirms it and one that mends it."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from minigpt_cli.commands.options import JsonFlag, OptionalRun, RunsDir
from minigpt_cli.commands.samples import resume_command, runs_dir_flag
from minigpt_cli.config import ClassicConfig, ModernConfig, MoEConfig
from minigpt_cli.display import console, format, waiting
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.events import StopReason
from minigpt_cli.runstore.directory import TEACHER, Run
from minigpt_cli.runstore.store import RunStore

_WIDE = 128  # tokens of a window in which much can be seen


def diagnose(run: OptionalRun = None, json: JsonFlag = False, runs_dir: RunsDir = None) -> None:
    """\b
    Examples:
      minigpt runs diagnose
      minigpt runs diagnose modern-1 --json

    Says what is wrong with a run, if anything: evidence, how often such a finding was right on runs with known faults, a command that may
    mend it, and one that shows whether it is so. Reads the record, the metrics and the kept score; no model is run.
    """
    from minigpt_cli.display.diagnosis import print_diagnosis
    from minigpt_cli.evaluation import diagnosis
    from minigpt_cli.evaluation.evaluate_run import baselines_of, kept_score

    chosen = RunStore(runs_dir).find(run or "latest")
    if chosen.name != run and not json:
        console.notice(f"diagnosing {chosen.name}")
    waiting.show("counting the baselines")
    score = kept_score(chosen)
    shown = diagnosis.symptoms_of(chosen, baselines_of(chosen, score) if score else None)
    found = [(finding, *commands_for(finding.finding, chosen)) for finding in diagnosis.diagnose(shown)]
    if json:
        rows = [{**vars(finding), "try": mend, "confirm": confirm} for finding, mend, confirm in found]
        console.write_json({"run": chosen.name, "healthy": not found, "findings": rows})
    else:
        print_diagnosis(chosen.name, found, diagnosis.too_little_to_say(shown))


def sure_finding(run: Run) -> str:
    """What is wrong with a run that just ended, in a line, if it is sure; "" where not. Baselines are not counted for it."""
    from minigpt_cli.evaluation.diagnosis import diagnose as findings_of
    from minigpt_cli.evaluation.diagnosis import symptoms_of

    with suppress(MiniGPTError):
        if better := _better_teacher(run):
            return better
        for finding in findings_of(symptoms_of(run)):
            if finding.is_sure:
                return f"{finding.finding}: {finding.evidence}: minigpt runs diagnose {format.quoted(run.name)}{runs_dir_flag(run)}"
    return ""


def _better_teacher(run: Run) -> str:
    """That the teacher of a run has learned more than it, and how they compare; "" where it has not."""
    best = run.record.best
    if not run.record.teacher or best is None:
        return ""
    teacher = Run(run.file(TEACHER))
    if (taught := teacher.record.best) is None or taught.nats_per_char >= best.nats_per_char:
        return ""
    names = f"{format.quoted(teacher.name)} {format.quoted(run.name)}"
    return f"its teacher has {taught.nats_per_char:.4f}, and there was no time to learn more: minigpt compare {names}{runs_dir_flag(run)}"


def commands_for(finding: str, run: Run) -> tuple[str, str]:
    """The commands that may mend and that confirm a finding; both work as typed."""
    name, folder = format.quoted(run.name), runs_dir_flag(run)
    plot = f"minigpt runs plot {name}{folder}"
    confirm = {
        "leak between splits": f"minigpt eval {name} --memorisation{folder}",
        "evaluation too noisy": f"minigpt eval {name}{folder}",
        "validation unlike training": f"minigpt eval {name} --memorisation{folder}",
        "too little text": f"minigpt eval {name} --memorisation{folder}",
        "context unused": f"minigpt eval {name} --stride 1{folder}",
        "dead experts": f"minigpt runs watch {name}{folder}",
    }.get(finding, plot)
    early = (StopReason.EARLY_STOPPING, StopReason.TIME_LIMIT, StopReason.INTERRUPTED_KEYBOARD, StopReason.TERMINATED)
    if finding == "rate too low or stopped early" and run.record.stop_reason in early:
        return resume_command(run, run.record.stop_reason), confirm
    return _again(run, _changes(finding, run)), confirm


def _again(run: Run, changes: dict[str, Any]) -> str:
    """The command that trains a new run with the settings of this one, but for `changes`."""
    base = f" --init-from {format.quoted(run.record.base.run)}" if run.record.base else ""
    flags = "".join(f" --{name.replace('_', '-')} {f'{value:g}' if isinstance(value, float) else value}" for name, value in changes.items())
    return f"minigpt train{base} --config {format.quoted(str(run.file('config.json')))}{flags}{runs_dir_flag(run)}"


def _changes(finding: str, run: Run) -> dict[str, Any]:
    """The settings that may mend a finding."""
    from minigpt_cli.evaluation.diagnosis import usual_rates

    config, model = run.config, run.config.model
    rates = {name: float(f"{rate:.1g}") for name, rate in usual_rates(config).items()}
    if finding == "diverged":
        rates = {name: min(rate, float(f"{getattr(config.optim, name) / 10:.1g}")) for name, rate in rates.items()}
    if config.optim.min_lr > rates["lr"]:
        rates["min_lr"] = rates["lr"] / 10
    if finding in ("rate too high", "rate too low or stopped early", "diverged"):
        return rates | ({"grad_clip": 1.0} if finding == "diverged" else {})
    if finding == "overfitting" and not (config.distil.teachers or run.record.base):
        return {"teachers": 1}
    regular = {"weight_decay": max(0.3, 2 * config.optim.weight_decay)}
    if isinstance(model, ClassicConfig | ModernConfig):
        regular = {"dropout": min(0.5, max(0.2, 1.5 * model.dropout))} | regular
    if finding == "too little text" and config.data.max_chars:
        return {"max_chars": 0}
    if finding == "too little text" and isinstance(model, ClassicConfig | ModernConfig):
        return regular | {"n_layer": math.ceil(model.n_layer / 2)}
    if finding == "context unused" and not model.is_sized:
        return {"arch": "modern"}
    if finding == "context unused":  # in a window that is wide enough it has yet to learn where to look
        return {"block_size": _WIDE} if model.block_size < _WIDE else {"max_steps": 4 * config.optim.max_steps}
    if finding == "evaluation too noisy":
        return {"eval_iters": 0} if config.eval.eval_iters else {"train_frac": 0.9}
    if finding == "dead experts" and isinstance(model, MoEConfig):
        return {"moe_balance": "aux", "moe_aux_loss_coef": max(0.1, min(10.0, 10 * model.moe_aux_loss_coef))}
    if finding in ("leak between splits", "validation unlike training"):
        return {"documents": "lines"}  # equal lines come into one split, and lines of every part into each
    return regular
