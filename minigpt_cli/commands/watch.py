"""minigpt runs watch: watch runs that train in another process. It only reads files, so it does not slow them down."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from minigpt_cli.commands.options import JsonFlag, OptionalRunArguments, RunsDir, check_page, option, switch
from minigpt_cli.commands.report import write_report
from minigpt_cli.commands.run_fields import find_readable
from minigpt_cli.display import console
from minigpt_cli.display.live_training import Observed, show_live
from minigpt_cli.escaping import one_line
from minigpt_cli.events import Stopped, StopReason
from minigpt_cli.runstore import replay
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

_RELOAD_S = 5.0  # between two loads of the page


def watch(
    run: OptionalRunArguments = None,
    every: Annotated[float, option("SECONDS", "Seconds between two updates.", min=0.1, max=3600)] = 1.0,
    once: Annotated[bool, switch("--once", "Show the present state and exit.")] = False,
    html: Annotated[Path | None, option("FILE", "Also write a page, which loads itself again until the runs end.")] = None,
    json: JsonFlag = False,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs watch                     the newest run, until it ends
      minigpt runs watch modern-1 moe-1      two at once
      minigpt runs watch modern-1 --once     its present state
      minigpt runs watch --html live.html    a page: drag through its samples

    Shows the live view of runs that another process trains or has trained. Off a terminal: a line per evaluation.
    The page of --html has the curves, and what the model wrote at each step (train --sample-every).
    """
    check_page(html)
    store = RunStore(runs_dir)
    chosen = find_readable(store, run or ["latest"])
    if not run and not json:
        console.notice(f"watching {chosen[0].name}")
    states = _states(chosen, every, once=once, page=html)
    try:
        if json or not console.is_terminal(sys.stdout):
            _lines(chosen, states, once=once, json=json)
        else:
            show_live(states, several=len(chosen) > 1)
    except BaseException:  # Ctrl-C ends watching: the page must not go on loading itself
        if html is not None and html.is_file():
            write_report(html, chosen, store, reload_s=0.0)
        raise
    if html is not None and (once or all(_stopped(run) for run in chosen)):
        write_report(html, chosen, store)
        console.notice(f"wrote {html}")


def _states(runs: list[Run], every: float, *, once: bool, page: Path | None) -> Iterator[list[Observed]]:
    """The present state of the runs, again and again; the page is written where it has changed."""
    seen: object = None
    for _ in _updates(every, once=once):
        observed = _observe(runs)
        state = [(len(one.evaluations), one.sample, one.stopped) for one in observed]
        if page is not None and not once and state != seen:
            seen = state
            write_report(page, runs, RunStore(runs[0].dir.parent), reload_s=_RELOAD_S)
        yield observed


def _updates(every: float, *, once: bool) -> Iterator[None]:
    yield
    while not once:
        time.sleep(every)
        yield


def _observe(runs: list[Run]) -> list[Observed]:
    """The present state of each run, read from its files."""
    return [
        Observed(
            replay.started(run.record, run.config),
            list(run.metrics()),
            max(run.samples(), key=lambda sample: sample.step, default=None),
            _stopped(run),
            run.config.eval.time_limit,
            run.status,
        )
        for run in (run.refresh() for run in runs)
    ]


def _stopped(run: Run) -> Stopped | None:
    """The end of the run; None while it trains."""
    if run.status == "running":
        return None
    reason = None if run.status in ("crashed", "failed") else run.record.stop_reason
    return replay.stopped(run.record, reason or StopReason.FAILED)


def _lines(runs: list[Run], states: Iterator[list[Observed]], *, once: bool, json: bool) -> None:
    """Print each new evaluation: JSON events, or lines that start with the run's name if there are several runs."""
    from minigpt_cli.display.training_screen import REASONS, evaluation_line

    seen = {run.name: 0 for run in runs}
    for observed in states:
        for started, evaluations, *_ in observed:
            for event in evaluations[seen[started.run] :]:
                prefix = f"{one_line(started.run)}  " if len(runs) > 1 else ""
                console.write_event(event) if json else console.write(prefix + evaluation_line(event, started.max_steps))
            seen[started.run] = len(evaluations)
        ended = [entry.stopped for entry in observed if entry.stopped is not None]
        if len(ended) == len(runs) or once:
            for stopped in ended:
                if json:
                    console.write_event(stopped)
                else:
                    console.notice(f"{stopped.run}: {REASONS[stopped.stop_reason]} at step {stopped.step:,}")
            return
