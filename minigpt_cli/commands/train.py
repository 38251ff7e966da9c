"""minigpt train: resolve the configuration, train, show the result, and suggest the next commands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from minigpt_cli.commands.config_flags import with_settings
from minigpt_cli.commands.config_sources import Resolved, layer_lines, override
from minigpt_cli.commands.diagnose import sure_finding
from minigpt_cli.commands.help_page import show_everything
from minigpt_cli.commands.init_from import Origin, check_adapters, check_vocabulary
from minigpt_cli.commands.options import (
    JsonFlag,
    RunsDir,
    SourceArguments,
    check_page,
    complete_experiment,
    complete_preset,
    complete_run,
    option,
    switch,
)
from minigpt_cli.commands.planning import is_planned, left_open, measured_plan, parse_size
from minigpt_cli.commands.processes import follow, together
from minigpt_cli.commands.samples import next_commands, resume_command, sample_of
from minigpt_cli.commands.sweeping import Group, GroupResults, run_search, run_sweep, search_id, sweep_id
from minigpt_cli.commands.teaching import check_teachers
from minigpt_cli.commands.train_context import Context, Outcome, outcome_of
from minigpt_cli.commands.train_run import train_new, train_on
from minigpt_cli.config import RunConfig
from minigpt_cli.data.encoding import check_tokenizer, prepared_folder
from minigpt_cli.data.sources.open_source import open_sources
from minigpt_cli.display import console, waiting
from minigpt_cli.errors import UsageError
from minigpt_cli.events import StopReason
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.training.sweeps import parse_choices

_MANY = "Many runs"


@with_settings(leave_out=("source",))
def train(
    sources: SourceArguments = None,
    preset: Annotated[str | None, option("NAME", "Start from a named preset; no name: list them.", autocompletion=complete_preset)] = None,
    config: Annotated[Path | None, option("FILE", "Settings from a TOML file, or from a run's config.json.")] = None,
    name: Annotated[str | None, option("NAME", "The run's name; default: architecture and number.")] = None,
    resume: Annotated[
        str | None,
        option(
            "RUN",
            "Continue a run from its last save; --max-steps (the learning rate then joins that schedule) and evaluation may change.",
            autocompletion=complete_run,
        ),
    ] = None,
    init_from: Annotated[
        str | None,
        option(
            "RUN|PATH|hf:…",
            "Start with the weights of a run, a Hugging Face folder, hf:OWNER/NAME[@REVISION] of its hub, nanoGPT's ckpt.pt, a .pt or "
            ".safetensors; sizes come from there.",
            "--init-from",
            autocompletion=complete_run,
        ),
    ] = None,
    partial: Annotated[bool, switch("--partial", "With --init-from: take the tensors that fit.")] = False,
    merge: Annotated[bool, switch("--merge", "With --lora-rank: at the end also make NAME-merged, which needs no base.")] = False,
    data: Annotated[str | None, option("SOURCE", "Same as SOURCE.")] = None,
    dry_run: Annotated[bool, switch("--dry-run", "Take a few real steps and print what the run would cost; nothing is saved.")] = False,
    size: Annotated[str, option("auto|N", "Parameters of the planned model, such as 800k or 2.7M; auto: as many as are best.")] = "auto",
    experiment: Annotated[
        str | None,
        option(
            "NAME", "A group of runs that answers a question; without a name: list them.", autocompletion=complete_experiment, panel=_MANY
        ),
    ] = None,
    html: Annotated[Path | None, option("FILE", "With --experiment: also write the answer as a page.", panel=_MANY)] = None,
    sweep: Annotated[list[str] | None, option("KEY=A,B,…", "Train a run for each value; several make a grid.", panel=_MANY)] = None,
    seeds: Annotated[str | None, option("N|auto", "Train each with N seeds; auto: until one is best.", panel=_MANY)] = None,
    search: Annotated[list[str] | None, option("KEY=LOW..HIGH[:log]", "Let Optuna search for the best value.", panel=_MANY)] = None,
    trials: Annotated[int, option("N", "Runs of a search, in all its processes.", min=1, panel=_MANY)] = 30,
    jobs: Annotated[int, option("N", "Train so many runs side by side, the cores shared between them.", min=1, max=1024, panel=_MANY)] = 1,
    log: Annotated[list[str] | None, option("tensorboard|trackio|wandb", "Write the numbers there too; may be repeated.")] = None,
    help_all: Annotated[
        bool, typer.Option("--help-all", help="Show every flag and exit.", is_eager=True, callback=show_everything)
    ] = False,
    print_config: Annotated[bool, switch("--print-config", "Show every setting and its source, and exit.")] = False,
    verify_data: Annotated[
        bool, switch("--verify-data", "Read the text and hash the token files again, even where size and time of every file are unchanged.")
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
      minigpt train --preset nanogpt-cpu --seed 1  a named preset
      minigpt train --resume latest                continue a stopped run
      minigpt train new.txt --init-from latest --lora-rank 8   fine-tune
      minigpt train notes.txt --keep-every 500     every 500th step stays
      minigpt train --lr 1e-3 --print-config       what would be used, and why
      minigpt train --sweep lr=1e-3,3e-3 --seeds 3  a grid, three seeds each
      minigpt train --experiment context --jobs 2    what a window buys
      minigpt train --sweep lr=1e-3,1e-2 --seeds auto   until one is better

    Trains a model on a text and keeps it in a run directory: the best weights, the last ones, and everything that --resume needs.
    Settings come from the defaults, then --preset, then --config, then MINIGPT_<NAME>, then flags; 0 switches a setting off.
    Without --preset and --max-steps the model, the batch, the rates and the tokenizer are planned for the time budget; what you give stays.
    """
    with together() as world:
        if world is not None and not world.leads:
            return follow(world)
        store = RunStore(runs_dir)
        context = Context(store, world, json=json, verify_data=verify_data, log=tuple(log or ()), size=parse_size(size))
        if sources and data is not None:
            raise UsageError("SOURCE and --data mean the same: leave one out")
        source = sources or ([data] if data is not None else None)
        if resume is not None:
            excluded: dict[str, object] = {
                "SOURCE": source,
                "--preset": preset,
                "--config": config,
                "--name": name,
                "--init-from": init_from,
            }
            excluded |= {
                "--sweep": sweep,
                "--search": search,
                "--seeds": seeds,
                "--experiment": experiment,
                "--html": html,
                "--dry-run": dry_run,
                "--print-config": print_config,
            }
            excluded |= {"--size": size != "auto", "--jobs": jobs > 1}
            if wrong := [flag for flag, value in excluded.items() if value]:
                raise UsageError(f"--resume continues a run with its own settings: leave out {', '.join(wrong)}")
            return _resume(resume, context, settings, merge=merge)
        settings = settings if source is None else {**settings, "source": source}
        origin = Origin(init_from, store, partial) if init_from is not None else None
        context = replace(context, origin=origin)
        group = Group(context, settings, preset, config)
        if experiment is not None:
            others: dict[str, object] = {"--sweep": sweep, "--search": search, "--init-from": init_from, "--merge": merge}
            others |= {"--size": context.size, "--print-config": print_config}
            if wrong := [flag for flag, value in others.items() if value]:
                raise UsageError(f"--experiment {experiment} chooses the settings of its runs: leave out {', '.join(wrong)}")
            return _experiment(group, experiment, name, seeds, jobs, html, dry_run=dry_run)
        if html is not None:
            raise UsageError("--html is the page of an experiment: add --experiment NAME, or see minigpt runs plot RUN --out page.html")
        resolved = group.resolved()
        if merge:
            _check_mergeable(store, name, resolved.config)
        if print_config:
            return _print_config(context, resolved)
        is_planned(context, resolved)  # an impossible --size is an error before torch is loaded
        _check_sources(resolved)
        if dry_run:
            return _dry_run(context, resolved)
        n_seeds = _parse_seeds(seeds or "1")
        if sweep or search or n_seeds != 1:
            if search and (sweep or n_seeds != 1):
                raise UsageError("--search chooses settings itself: leave out --sweep and --seeds, or use them in a separate command")
            if jobs > 1:
                if n_seeds is None:
                    raise UsageError("--seeds auto decides after each round whether to go on, in one process: leave out --jobs")
                if world is not None:
                    raise UsageError("--jobs trains runs side by side, and torchrun one run in several processes: choose one")
                _side_by_side(group, name, sweep or (), n_seeds, search, trials, jobs)
            if merge:
                raise UsageError("--merge is for one run: leave it out, and merge the best run afterwards with minigpt runs import RUN")
            if n_seeds is None:
                from minigpt_cli.commands.seeds_auto import run_until_settled
                from minigpt_cli.evaluation.seeds import LOOKS

                return _finish_group(group, run_until_settled(group, name, sweep or ()), len(LOOKS))
            results = run_search(group, name, search, trials) if search else run_sweep(group, name, sweep or (), n_seeds)
            return _finish_group(group, results)
        if jobs > 1:
            raise UsageError("--jobs trains several runs side by side: add --sweep, --seeds or --search")
        outcome = outcome_of(train_new(context, resolved, name))
        if merge:
            _merge(outcome, store)
        return _finish(outcome, json=json)


def _experiment(group: Group, name: str, group_name: str | None, seeds: str | None, jobs: int, html: Path | None, *, dry_run: bool) -> None:
    from minigpt_cli.commands.experiments import dry_run_experiment, run_experiment
    from minigpt_cli.experiments.catalog import read_experiment

    experiment = read_experiment(name)
    n_seeds = _parse_seeds(seeds) if seeds else experiment.seeds
    if n_seeds is None:
        raise UsageError(f"--experiment {name} takes a number of seeds, as in --seeds 3")
    check_page(html)
    _check_sources(group.resolved())
    if dry_run:
        dry_run_experiment(group, experiment, n_seeds)
    else:
        run_experiment(group, experiment, group_name, n_seeds, jobs, html)


def _check_sources(resolved: Resolved) -> None:
    """Raise UsageError for a source or a tokenizer that is not there, before torch is loaded."""
    data = resolved.config.data
    open_sources(data)
    if resolved.sources["tokenizer"] == "--tokenizer" and prepared_folder(data) is None:  # token files bring their own
        check_tokenizer(data)


def _parse_seeds(text: str) -> int | None:
    """The number of seeds; None for auto. Raises UsageError."""
    if text == "auto":
        return None
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise UsageError(f"--seeds {text}: give a number of seeds from 1 up, or auto")
    return int(text)


def _side_by_side(
    group: Group, name: str | None, sweeps: Sequence[str], seeds: int, search: Sequence[str] | None, trials: int, jobs: int
) -> None:
    """Train the runs of a group in several processes. What they leave, this process finds finished, or tries once more."""
    from minigpt_cli.commands.jobs import side_by_side

    config = group.resolved().config
    group_id = search_id(group, name, search) if search else sweep_id(group, name, sweeps, seeds)
    total = trials if search else seeds * math.prod(len(parse_choices(text).choices) for text in sweeps)
    side_by_side(jobs, group.context.store, group_id, total, threads=config.compute.threads, json=group.context.json)


def _check_mergeable(store: RunStore, name: str | None, config: RunConfig) -> None:
    from minigpt_cli.interchange.importing import check_mergeable

    check_mergeable(store, name, config)


def _merge(outcome: Outcome, store: RunStore) -> None:
    """Make NAME-merged from a finished run; a run stopped by a signal is merged after it is resumed."""
    if outcome.signal_number is not None:
        console.notice(f"not merged: minigpt train --resume {outcome.run.name} --merge goes on, and merges at the end")
        return
    from minigpt_cli.interchange.importing import merge_run

    console.notice(f"merged into {merge_run(store, outcome.run).name}")


def _dry_run(context: Context, resolved: Resolved) -> None:
    """Measure a few real steps in all processes, and show what the run would cost."""
    from minigpt_cli.display.live_training import print_plan

    check_adapters(resolved.config, context.origin)
    check_vocabulary(resolved, context.origin)
    check_teachers(resolved.config, context.processes().size, started_elsewhere=context.origin is not None)
    plan, why = measured_plan(context, resolved)
    for notice in (*resolved.notices, *why, *plan.notices):
        console.notice(notice)
    facts = {name: value for name, value in plan._asdict().items() if name not in ("config", "notices")}
    facts |= {"max_steps": plan.config.optim.max_steps, "batch_size": plan.config.optim.batch_size, "device": plan.config.compute.device}
    facts["teachers"] = plan.config.distil.teachers
    if context.json:
        console.write_json({"config": plan.config.model_dump(mode="json"), **facts, "why": why, "notices": plan.notices})
    else:
        print_plan(facts)


def _finish_group(group: Group, results: GroupResults, looks: int = 1) -> None:
    """Show what the group found, and exit with the code of their ends."""
    from minigpt_cli.commands.group_result import show_result

    if not group.context.json:
        show_result(group, results, looks)
        console.notice(
            f"group {results.group}: {len(results.scores)} runs, {len(results.failures)} failed; the same command goes on where it stopped"
        )
    if results.signal_number is not None:
        raise typer.Exit(128 + results.signal_number)
    if results.failures:
        raise typer.Exit(1)


def _resume(wanted: str, context: Context, settings: dict[str, Any], *, merge: bool) -> None:
    run = context.store.find(wanted)
    if run.checkpoint is not None and run.checkpoint.isdecimal():
        raise UsageError(f"--resume continues from the last save, and a kept step has weights alone: use --init-from {wanted}")
    context = replace(context, store=RunStore(run.dir.parent))
    if wanted != run.name and not context.json:
        console.notice(f"resuming {run.name}")
    if merge:
        _check_mergeable(context.store, run.name, run.config)
    if not (settings or merge or context.json) and _is_over(run):
        return
    outcome = outcome_of(train_on(context, run, lambda saved: override(saved, settings)))
    if merge:
        _merge(outcome, context.store)
    _finish(outcome, json=context.json)


def _is_over(run: Run) -> bool:
    """Whether nothing is left to do for a run; if so, say how to go on."""
    from minigpt_cli.display.live_training import print_ending
    from minigpt_cli.runstore import replay

    record = run.record
    over = (StopReason.MAX_STEPS, StopReason.EARLY_STOPPING, StopReason.TARGET_LOSS, StopReason.TIME_LIMIT)
    if record.status != "finished" or record.stop_reason not in over or record.best is None or not record.best.whole_split:
        return False
    console.notice(f"run {run.name} is finished; to train it further: {resume_command(run, record.stop_reason)}")
    print_ending(run, replay.stopped(record, record.stop_reason), next_commands(run))
    return True


def _print_config(context: Context, resolved: Resolved) -> None:
    from minigpt_cli.display.tables import print_settings

    for notice in resolved.notices:
        console.notice(notice)
    open_names = {name.rpartition(".")[2] for name in left_open(context, resolved)}
    if context.json:
        values = resolved.config.model_dump(mode="json")
        console.write_json({"config": values, "sources": resolved.sources | dict.fromkeys(open_names, "plan")})
    else:
        lines = layer_lines(resolved)
        print_settings([(panel, n, "auto", "plan") if n in open_names else (panel, n, value, source) for panel, n, value, source in lines])


def _finish(outcome: Outcome, *, json: bool) -> None:
    """Show the result of a run, and exit with the code of the signal that ended it, if any."""
    from minigpt_cli.display.live_training import print_ending

    if not json:
        waiting.show("writing a sample")
        commands = next_commands(outcome.run, outcome.stopped.stop_reason)
        sample = sample_of(outcome.run) if outcome.signal_number is None else ""
        found = sure_finding(outcome.run) if outcome.signal_number is None else ""
        print_ending(outcome.run, outcome.stopped, commands, sample, found)
    if outcome.signal_number is not None:
        raise typer.Exit(128 + outcome.signal_number)
