"""minigpt train --sweep … --seeds auto: more seeds of every recipe, until the best and the next are told apart or the last look is over."""

from __future__ import annotations

from collections.abc import Sequence

from minigpt_cli.commands.group_result import verdict
from minigpt_cli.commands.sweeping import Group, GroupResults, run_sweep, sweep_id
from minigpt_cli.display import console
from minigpt_cli.errors import UsageError
from minigpt_cli.evaluation.seeds import LOOKS


def run_until_settled(group: Group, name: str | None, sweeps: Sequence[str]) -> GroupResults:
    """Train the grid with as many seeds as the verdict takes. Raises UsageError before the first run starts."""
    if not sweeps:
        raise UsageError("--seeds auto adds seeds until recipes are told apart: name them, as in --sweep lr=1e-3,3e-3")
    if any(sweep.partition("=")[0].strip() == "seed" for sweep in sweeps):
        raise UsageError("--sweep seed=… and --seeds auto both vary the seed: use one")
    name = name or sweep_id(group, None, sweeps, "auto")
    for look, n_seeds in enumerate(LOOKS, 1):
        results = run_sweep(group, name, sweeps, n_seeds)
        pair = None if results.signal_number is not None else verdict(group, results, len(LOOKS))
        if pair is None or pair.verdict != "indistinguishable" or look == len(LOOKS):
            break
        console.notice(f"{n_seeds} seeds of each do not tell {pair.a} and {pair.b} apart yet: training {LOOKS[look] - n_seeds} more")
    return results
