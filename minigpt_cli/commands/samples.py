"""A sample of a run and the commands to type next, for the end of a training and for reports."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from minigpt_cli.display import console, format
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.escaping import unix_lines
from minigpt_cli.events import StopReason
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import resolve_runs_dir

if TYPE_CHECKING:
    from minigpt_cli.data.opening import Opening


def sample_of(run: Run) -> str:
    """A sample with the run's own seed; a question and its answer if the run was trained on chats. Empty, with a warning, if the weights
    cannot be read."""
    if not run.record.files:
        return ""
    from minigpt_cli.data.opening import opening_of
    from minigpt_cli.generation.open_run import open_model, sample_pieces

    try:
        loaded = open_model(run)
        opening = opening_of(run.record, loaded.tokenizer)
        text = unix_lines("".join(sample_pieces(loaded, opening))).strip("\n")
        return f"{opening.text}\n{text}" if opening.chat else text
    except MiniGPTError as error:
        console.warn(f"no sample of {run.name}: {error}")
        return ""


def next_commands(run: Run, stop_reason: StopReason | None = None) -> list[str]:
    """Useful next commands, which work unchanged: the prompt is one that the run's tokenizer knows."""
    name, runs_dir = format.quoted(run.name), runs_dir_flag(run)
    commands = []
    if run.is_teacher and not (learner := Run(run.dir.parent)).record.files:
        commands.append(resume_command(learner))
    elif stop_reason is not None and (stop_reason.signal_number or stop_reason is StopReason.TIME_LIMIT):
        commands.append(resume_command(run, stop_reason))
    if run.record.best is not None:
        commands += [generate_command(run), f"minigpt eval {name}{runs_dir}", f"minigpt runs leaderboard{runs_dir}"]
    return commands or [f"minigpt runs list{runs_dir}"]


def resume_command(run: Run, stop_reason: StopReason | None = None) -> str:
    """The command that continues this run, past what ended it."""
    further = {
        StopReason.MAX_STEPS: f" --max-steps {2 * run.config.optim.max_steps}",
        StopReason.EARLY_STOPPING: " --patience 0",
        StopReason.TARGET_LOSS: " --target-loss 0",
        StopReason.TIME_LIMIT: " --time-limit 0",  # the limit counts all sessions of the run, so a resumed run would stop at once
    }.get(stop_reason or StopReason.PRUNED, "")
    return f"minigpt train --resume {format.quoted(run.name)}{further}{runs_dir_flag(run)}"


def generate_command(run: Run) -> str:
    """The command that generates text with this run."""
    command, opening = f"minigpt generate {format.quoted(run.name)}", _opening(run)
    if opening.chat:
        command += " --chat"
    if opening.text:
        command += f" --prompt {format.quoted(opening.text)}"
    return command + runs_dir_flag(run)


def _opening(run: Run) -> Opening:
    from minigpt_cli.data.opening import Opening, opening_of
    from minigpt_cli.tokenization.pretrained import load_tokenizer

    try:
        return opening_of(run.record, load_tokenizer(run.file("tokenizer.json")))
    except MiniGPTError:
        return Opening("")


def runs_dir_flag(run: Run) -> str:
    """The flag --runs-dir, if the run is not in the default folder."""
    folder = run.dir.parents[run.name.count("/")]  # NAME/teacher is in the folder of NAME
    return "" if os.path.abspath(folder) == os.path.abspath(resolve_runs_dir()) else f" --runs-dir {format.quoted(str(folder))}"
