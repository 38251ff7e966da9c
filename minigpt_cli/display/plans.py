"""What `--dry-run` says of a training that has not been started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minigpt_cli.display import console, format


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


def plan_as_json(facts: Mapping[str, Any], notices: Sequence[str]) -> dict[str, Any]:
    """The plan as `--dry-run --json` prints it."""
    return {**facts, "notices": list(notices)}
