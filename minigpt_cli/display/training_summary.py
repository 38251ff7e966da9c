"""What is said of a training as a whole: the plan of a dry run, and at the end what came out and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minigpt_cli.display import console, format
from minigpt_cli.escaping import one_line, printable
from minigpt_cli.events import Stopped

if TYPE_CHECKING:
    from minigpt_cli.runstore.store import Run

_REASONS = {
    "max_steps": "all steps done",
    "early_stopping": "stopped early: the validation loss no longer improves",
    "interrupted_keyboard": "interrupted from the keyboard, saved",
    "terminated": "terminated, saved",
    "time_limit": "time limit reached, saved",
    "target_loss": "target loss reached",
    "pruned": "given up by the search",
    "plateau": "stopped: the validation loss no longer improves",
}


def print_plan(facts: Mapping[str, Any]) -> None:
    """Print a plan in lines of name and value."""
    active = "" if facts["n_active_params"] == facts["n_params"] else f", {facts['n_active_params']:,} active"
    largest = facts["largest_batch"]
    lines = {
        "parameters": f"{facts['n_params']:,}{active}",
        "speed": f"{facts['step_ms']:.1f} ms a step, {format.count(facts['tokens_per_s'])} tokens/s on {facts['device']}",
        "memory": f"{format.size(facts['peak_bytes'])} at the peak",
        "largest batch": "not known here" if largest is None else f"about {largest:,} (chosen: {facts['batch_size']:,})",
        "steps": f"{facts['max_steps']:,}, {facts['epochs']:.2f} times over the training text",
        "time": f"about {format.duration(facts['estimated_s'])}, evaluations included",
    }
    width = max(map(len, lines))
    console.write("\n".join(f"{name:<{width}}  {value}" for name, value in lines.items()))


def print_ending(run: Run, stopped: Stopped, commands: Sequence[str], sample: str = "") -> None:
    """Print the score with its interval, a sample, and the commands that come next, to stdout."""
    name = one_line(run.name)
    reason = _REASONS.get(stopped.stop_reason, stopped.stop_reason)
    lines = [f"run     {name}: {reason} at step {stopped.step:,}, {format.duration(stopped.elapsed_s)}"]
    best = run.record.best
    if best is not None:
        score = f"{best.nats_per_char:.4f} nats per character"
        if best.ci95:
            score += f" (95 %: {format.interval(best.ci95)})"
        where = "the whole validation text" if best.whole_split else "samples of the validation text"
        lines += [f"best    {score}", f"        {best.nats_per_token:.4f} nats per token, on {where}, at step {best.step:,}"]
    if sample:
        lines += ["sample", *(f"  {line}".rstrip() for line in printable(sample).splitlines())]
    lines += ["next    " + "\n        ".join(map(one_line, commands))]
    console.write("\n".join(lines))
