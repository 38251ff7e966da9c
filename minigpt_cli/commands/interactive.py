"""minigpt generate -i: a prompt loop. Ctrl-C ends the text being written, Ctrl-D or /quit ends the loop."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace

from minigpt_cli.commands.generate import new_seed
from minigpt_cli.display import console
from minigpt_cli.display.generation import TextStreamer, line_reader
from minigpt_cli.errors import MiniGPTError, UsageError, unknown_name
from minigpt_cli.generation import samples
from minigpt_cli.generation.engine import Engine, Request
from minigpt_cli.generation.open_run import LoadedModel, open_model
from minigpt_cli.generation.sampling import STYLES, Sampling, style, with_setting
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

HELP = f"""\
Type the beginning of a text; \\n in it is a line break. Ctrl-C ends what is being written.
/set NAME VALUE   {", ".join(field.name for field in fields(Sampling))} or max_new_tokens
/style NAME       {", ".join(STYLES)}
/seed [N]         the seed of the texts to come; without N: a new one for each
/run NAME         write with another run
/show             the settings
/quit             leave"""


@dataclass
class _State:
    """What the loop knows."""

    store: RunStore
    writer: LoadedModel
    decoding: Engine
    sampling: Sampling
    max_new_tokens: int
    seed: int | None
    stop: Sequence[str]
    ckpt: str
    engine: str


def loop(
    store: RunStore, run: Run, sampling: Sampling, *, max_new_tokens: int, ckpt: str, engine: str, seed: int | None, stop: Sequence[str]
) -> None:
    """Read prompts and write their continuations until the end of input."""
    writer = open_model(run, ckpt, engine)
    for notice in writer.notices:
        console.warn(notice)
    state = _State(store, writer, _decoding(writer), sampling, max_new_tokens, seed, stop, ckpt, engine)
    console.notice(f"{writer.run}, step {writer.step}; /help lists the commands, Ctrl-D leaves")
    read = line_reader(list(COMMANDS))
    while True:
        try:
            line = read()
        except EOFError:
            return
        except KeyboardInterrupt:  # at the prompt: begin the line anew
            continue
        try:
            if line.startswith("/"):
                if not _command(state, line):
                    return
            elif line:
                _write(state, line.replace("\\n", "\n"))
        except MiniGPTError as error:
            console.error(str(error))


def _decoding(writer: LoadedModel) -> Engine:
    return Engine(writer.decoder(), writer.token_bytes)


def _write(state: _State, prompt: str) -> None:
    seed = new_seed() if state.seed is None else state.seed
    ids = state.writer.prompt_ids(prompt)
    out = TextStreamer()
    steps = samples.run(state.decoding, Request(ids, state.sampling, state.max_new_tokens, 1, seed, (*state.stop, *state.writer.ends)))
    try:
        out.prompt(prompt)
        with suppress(KeyboardInterrupt):
            for step in steps:
                out.text(step.text)
    finally:
        steps.close()
        out.end()


def _command(state: _State, line: str) -> bool:
    """Obey one command; whether the loop goes on."""
    try:
        name, *arguments = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{line!r}: {error}") from None
    if name in ("/quit", "/exit"):
        return False
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    COMMANDS[name](state, arguments)
    return True


def _set(state: _State, arguments: Sequence[str]) -> None:
    if len(arguments) != 2:
        raise UsageError("/set takes a name and a value, like /set temperature 0.7")
    name, value = arguments
    if name.replace("-", "_") == "max_new_tokens":
        if not value.isdecimal() or not int(value):
            raise UsageError(f"max_new_tokens {value!r} is not a whole number from 1 up")
        state.max_new_tokens = int(value)
    else:
        state.sampling = with_setting(state.sampling, name, value)


def _style(state: _State, arguments: Sequence[str]) -> None:
    if len(arguments) != 1:
        raise UsageError(f"/style takes one of {', '.join(STYLES)}")
    chosen = style(arguments[0])
    state.sampling = replace(state.sampling, temperature=chosen.temperature, top_k=chosen.top_k)


def _seed(state: _State, arguments: Sequence[str]) -> None:
    if arguments and not arguments[0].isdecimal():
        raise UsageError(f"seed {arguments[0]!r} is not a whole number from 0 up")
    state.seed = int(arguments[0]) if arguments else None


def _run(state: _State, arguments: Sequence[str]) -> None:
    if len(arguments) != 1:
        raise UsageError("/run takes the name of a run")
    found = state.store.find(arguments[0])
    state.writer = open_model(found, found.checkpoint or state.ckpt, state.engine)
    state.decoding = _decoding(state.writer)
    console.notice(f"{state.writer.run}, step {state.writer.step}")


def _show(state: _State, arguments: Sequence[str]) -> None:
    settings = [(field.name, getattr(state.sampling, field.name)) for field in fields(Sampling)]
    settings += [("max_new_tokens", state.max_new_tokens), ("seed", "new for each text" if state.seed is None else state.seed)]
    console.notice(f"run {state.writer.run}")
    for name, value in settings:
        console.notice(f"{name} {value}")


def _help(state: _State, arguments: Sequence[str]) -> None:
    for line in HELP.splitlines():
        console.notice(line)


COMMANDS: dict[str, Callable[[_State, Sequence[str]], None]] = {
    "/set": _set, "/style": _style, "/seed": _seed, "/run": _run, "/show": _show, "/help": _help,
}  # fmt: skip
