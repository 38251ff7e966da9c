"""What runs wrote while they were trained, below a slider through the steps; samples.js shows the chosen step and marks it on the chart."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minigpt_cli.display.format import quoted
from minigpt_cli.display.pages.page import Markup, in_columns, tag
from minigpt_cli.events import Sampled
from minigpt_cli.runstore.weights import thinned

_MOST = 300  # steps that the slider has


@dataclass(frozen=True)
class Written:
    """The samples of one run."""

    run: str
    samples: Sequence[Sampled]  # oldest first
    kept: Sequence[int]  # the steps whose weights are kept


def sampled_steps(runs: Sequence[Written]) -> list[int]:
    """The steps of the slider: those at which a run wrote a sample, evenly thinned if they are very many."""
    return thinned(sorted({sample.step for run in runs for sample in run.samples}), _MOST, None)


def samples_with_slider(runs: Sequence[Written]) -> Markup:
    """The slider at the last step, and below it what each run wrote then; empty if no run has a sample."""
    if not (steps := sampled_steps(runs)):
        return Markup()
    slider = tag("input", id="step", type="range", min="0", max=str(len(steps) - 1), value=str(len(steps) - 1))
    label = tag("label", "Step ", tag("output", f"{steps[-1]:,}", id="step_shown"), slider, class_="slider")
    return tag("div", label, in_columns(_paper(run) for run in runs if run.samples), class_="written")


def _paper(run: Written) -> Markup:
    last = run.samples[-1]
    text = tag("div", tag("span", last.prompt, class_="dim"), tag("span", last.text), class_="paper", role="region", aria_label=run.run)
    return tag("div", tag("p", f"{run.run} ", tag("span", class_="hint"), class_="dim"), text)


def slider_data(runs: Sequence[Written], *, reload_s: float = 0.0) -> dict[str, Any]:
    """What samples.js shows: for every step of the slider the newest sample of each run so far, as an index into its samples. With
    `reload_s` the page loads itself again after so many seconds."""
    steps = sampled_steps(runs)
    written = [run for run in runs if run.samples]
    return {
        "steps": steps,
        "reload_s": reload_s,
        "runs": [
            {
                "name": quoted(run.run),  # as it is typed
                "kept": list(run.kept),
                "samples": [{"step": sample.step, "prompt": sample.prompt, "text": sample.text} for sample in run.samples],
                "newest": [bisect_right([sample.step for sample in run.samples], step) - 1 for step in steps],
            }
            for run in written
        ],
    }
