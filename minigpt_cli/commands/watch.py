"""minigpt runs watch: look on while runs train, from another terminal, without slowing them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from minigpt_cli.commands.options import JsonFlag, OptionalRunArguments, RunsDir
from minigpt_cli.commands.run_fields import find_readable
from minigpt_cli.display import console
from minigpt_cli.display.watching import Observed, show_live
from minigpt_cli.escaping import one_line
from minigpt_cli.events import Started, Stopped, StopReason
from minigpt_cli.runstore.store import Run, RunStore


def watch(
    run: OptionalRunArguments = None,
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="How often to look.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", metavar="", help="Show the present state and exit.")] = False,
    json: JsonFlag = False,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs watch                     the newest run, until it ends
      minigpt runs watch modern-1 moe-1      two at once
      minigpt runs watch modern-1 --once     where it is now

    Shows the live view of runs that train, or have trained, from another terminal. Off a terminal: a line per evaluation.
    """
    store = RunStore(runs_dir)
    chosen = find_readable(store, run or ["latest"])
    if not run and not json:
        console.notice(f"watching {chosen[0].name}")
    if json or not console.is_terminal(sys.stdout):
        _lines(chosen, every, once=once, json=json)
    else:
        show_live((_observe(chosen) for _ in _looks(every, once=once)), several=len(chosen) > 1)


def _looks(every: float, *, once: bool) -> Iterator[None]:
    yield
    while not once:
        time.sleep(every)
        yield


def _observe(runs: list[Run]) -> list[Observed]:
    """What the files of each run say now."""
    return [
        Observed(_started(run), list(run.metrics()), _stopped(run), run.config.eval.time_limit, run.status)
        for run in (run.refresh() for run in runs)
    ]


def _started(run: Run) -> Started:
    record, compute = run.record, run.config.compute
    splits = record.corpus.splits if record.corpus else {}
    return Started(
        run=run.name,
        step=0,
        arch=record.arch or run.config.model.arch,
        n_params=record.n_params,
        n_active_params=record.n_active_params,
        vocab_size=record.vocab_size,
        train_tokens=splits["train"].n_tokens if "train" in splits else 0,
        val_tokens=splits["val"].n_tokens if "val" in splits else 0,
        max_steps=run.config.optim.max_steps,
        device=compute.device,
        precision=compute.precision,
        attention=compute.attention,
        compiled=compute.compile == "on",
    )


def _stopped(run: Run) -> Stopped | None:
    """How the run ended, or None while it trains."""
    status, record = run.status, run.record
    if status == "running":
        return None
    best = record.best
    return Stopped(
        run=run.name,
        step=record.stop_step,
        stop_reason=StopReason.FAILED if status in ("crashed", "failed") else record.stop_reason or StopReason.FAILED,
        best_step=best.step if best else None,
        best_val_loss=best.nats_per_token if best else None,
        best_nats_per_char=best.nats_per_char if best else None,
        elapsed_s=record.elapsed_s,
        tokens_seen=record.tokens_seen,
    )


def _lines(runs: list[Run], every: float, *, once: bool, json: bool) -> None:
    """Print each evaluation as it comes: JSON events, or lines that begin with the run's name if there are several."""
    from minigpt_cli.display.training_screen import evaluation_line

    seen = {run.name: 0 for run in runs}
    for _ in _looks(every, once=once):
        observed = _observe(runs)
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
                    console.notice(f"{stopped.run}: {stopped.stop_reason} at step {stopped.step:,}")
            return
