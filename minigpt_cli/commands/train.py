"""minigpt train: resolve the configuration, train, show, and say what to type next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt_cli.commands.config_flags import Resolved, layer_lines, override, resolve, with_settings
from minigpt_cli.commands.options import JsonFlag, RunsDir, SourceArgument, complete_preset, complete_run
from minigpt_cli.display import console
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore import RunStore

if TYPE_CHECKING:
    from minigpt_cli.commands.running import Outcome


@with_settings(leave_out=("source",))
def train(
    source: SourceArgument = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Start from a named recipe.", autocompletion=complete_preset, show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings from a TOML file, or from a run's config.json.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The run's name; default: its architecture and a number.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Continue a run from its last save; --max-steps and evaluation settings may change.",
            autocompletion=complete_run,
        ),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", metavar="", help="Show every setting and where it came from, and exit.")
    ] = False,
    runs_dir: RunsDir = None,
    json: JsonFlag = False,
    *,
    settings: dict[str, Any],
) -> None:
    """\b
    Examples:
      minigpt train                                a small model, three minutes
      minigpt train notes.txt --time-budget 10m    your own text, ten minutes
      minigpt train tinyshakespeare --arch moe     a mixture of experts
      minigpt train --preset nanogpt-cpu --seed 1  a named recipe
      minigpt train --resume latest                go on where it stopped
      minigpt train --lr 1e-3 --print-config       what would be used, and why

    Trains a model on a text and keeps it in a run directory: the best weights, the last ones, and everything to go on from.
    Settings come from the defaults, then --preset, then --config, then MINIGPT_<NAME>, then flags; 0 switches a setting off.
    """
    store = RunStore(runs_dir)
    if resume is not None:
        if source is not None or preset is not None or config is not None or name is not None:
            raise UsageError("--resume continues a run as it was: leave out SOURCE, --preset, --config and --name")
        _resume(resume, store, settings, json=json)
        return
    resolved = resolve(settings if source is None else {**settings, "source": source}, preset=preset, file=config)
    if print_config:
        _print_config(resolved, json=json)
        return
    from minigpt_cli.commands.running import Request, train_new

    _finish(train_new(Request(resolved.config, store, name, preset, json=json, notices=resolved.notices)), json=json)


def _resume(wanted: str, store: RunStore, settings: dict[str, Any], *, json: bool) -> None:
    from minigpt_cli.commands.running import train_on

    run = store.find(wanted)
    if wanted != run.name and not json:
        console.notice(f"resuming {run.name}")
    _finish(train_on(run, store, lambda saved: override(saved, settings), json=json), json=json)


def _print_config(resolved: Resolved, *, json: bool) -> None:
    from minigpt_cli.display.tables import print_settings

    for notice in resolved.notices:
        console.notice(notice)
    if json:
        values = resolved.config.model_dump(mode="json")
        console.write_json({"config": values, "sources": resolved.sources})
    else:
        print_settings(layer_lines(resolved))


def _finish(outcome: Outcome, *, json: bool) -> None:
    """Show the end of a run, and exit as the signal that ended it asks."""
    from minigpt_cli.display.ending import print_ending

    if outcome.is_writer and not json:
        print_ending(outcome.run, outcome.stopped)
    if outcome.signal_number is not None:
        raise typer.Exit(128 + outcome.signal_number)
