"""What a run writes like, and what to type next about it: for the end of a training and for reports."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from minigpt_cli.display import console, format
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.events import StopReason
from minigpt_cli.runstore.store import Run, resolve_runs_dir

if TYPE_CHECKING:
    from minigpt_cli.data.opening import Opening

_TOKENS = 200


def sample_of(run: Run) -> str:
    """A sample under the run's own seed, of a run that learned to chat a question and its answer; empty, with a warning, where the weights
    cannot be read."""
    if not run.record.files:
        return ""
    from minigpt_cli.data.chat import TOKENS
    from minigpt_cli.data.opening import opening_of
    from minigpt_cli.generation.engine import Request
    from minigpt_cli.generation.open_run import open_model

    try:
        loaded = open_model(run)
        opening = opening_of(run.record, loaded.tokenizer)
        asked = opening.raw if opening.chat else ""
        stop = TOKENS if opening.chat else loaded.ends
        request = Request(loaded.prompt_ids(asked), max_new_tokens=_TOKENS, seed=run.config.seed, stop=stop)
        text = "".join(step.text for step in loaded.steps(request)).strip("\n")
        return f"{opening.text}\n{text}" if opening.chat else text
    except MiniGPTError as error:
        console.warn(f"no sample of {run.name}: {error}")
        return ""


def next_commands(run: Run, stop_reason: StopReason | None = None) -> list[str]:
    """What a person is likely to type now: commands that work as they are, with a prompt that the run knows."""
    name, where = format.quoted(run.name), _elsewhere(run)
    commands = []
    if stop_reason is not None and (stop_reason.signal_number or stop_reason is StopReason.TIME_LIMIT):
        without_limit = (
            " --time-limit 0" if stop_reason is StopReason.TIME_LIMIT else ""
        )  # which counts all the time that the run ever took
        commands.append(f"minigpt train --resume {name}{without_limit}{where}")
    if run.record.best is not None:
        commands += [generate_command(run), f"minigpt eval {name}{where}", f"minigpt runs leaderboard{where}"]
    return commands or [f"minigpt runs list{where}"]


def generate_command(run: Run) -> str:
    """The command that lets this run write."""
    command, opening = f"minigpt generate {format.quoted(run.name)}", _opening(run)
    if opening.chat:
        command += " --chat"
    if opening.text:
        command += f" --prompt {format.quoted(opening.text)}"
    return command + _elsewhere(run)


def _opening(run: Run) -> Opening:
    from minigpt_cli.data.opening import Opening, opening_of
    from minigpt_cli.tokenization.pretrained import load_tokenizer

    try:
        return opening_of(run.record, load_tokenizer(run.file("tokenizer.json")))
    except MiniGPTError:
        return Opening("")


def _elsewhere(run: Run) -> str:
    """The flag that finds the run again, where it is not where runs are looked for without it."""
    folder = run.dir.parent
    return "" if os.path.abspath(folder) == os.path.abspath(resolve_runs_dir()) else f" --runs-dir {format.quoted(str(folder))}"
