"""minigpt generate -i: a prompt loop. Ctrl-C ends the present text, Ctrl-D or /quit ends the loop."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace

from minigpt_cli.commands.generate import new_seed
from minigpt_cli.display import console
from minigpt_cli.display.generation import TextStreamer, line_reader
from minigpt_cli.errors import MiniGPTError, UsageError, unknown_name
from minigpt_cli.generation import samples
from minigpt_cli.generation.engine import Engine, GenerationRequest
from minigpt_cli.generation.open_run import LoadedModel, open_model
from minigpt_cli.generation.sampling import STYLES, Sampling, style, with_setting
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

HELP = f"""\
Type the beginning of a text; \\n in it is a line break. Ctrl-C ends the present text.
/set NAME VALUE   {", ".join(field.name for field in fields(Sampling))} or max_new_tokens
/style NAME       {", ".join(STYLES)}
/seed [N]         the seed of the next texts; without N: a new one for each text
/run NAME         write with another run
/show             the settings
/quit             end the loop"""


@dataclass
class PromptLoop:
    """The settings of the loop, and its commands."""

    store: RunStore
    sampling: Sampling
    max_new_tokens: int
    seed: int | None
    stop: Sequence[str]
    ckpt: str
    engine: str
    model: LoadedModel = field(init=False)
    decoding: Engine = field(init=False)

    def run(self, run: Run) -> None:
        """Read prompts and write their continuations with `run` until the end of input."""
        self._open(run)
        for notice in self.model.notices:
            console.warn(notice)
        console.notice(f"{self.model.run}, step {self.model.step}; /help lists the commands, Ctrl-D ends the loop")
        read = line_reader(list(_COMMANDS))
        while True:
            try:
                line = read()
            except EOFError:
                return
            except KeyboardInterrupt:  # at the prompt: start with an empty line again
                continue
            try:
                if line.startswith("/"):
                    if not self._command(line):
                        return
                elif line:
                    self._write(line.replace("\\n", "\n"))
            except MiniGPTError as error:
                console.error(str(error))

    def _open(self, run: Run) -> None:
        self.model = open_model(run, run.checkpoint or self.ckpt, self.engine)
        self.decoding = self.model.new_engine()

    def _write(self, prompt: str) -> None:
        seed = new_seed() if self.seed is None else self.seed
        ids, ends = self.model.prompt_ids(prompt), self.model.ends
        out = TextStreamer()
        steps = samples.run(self.decoding, GenerationRequest(ids, self.sampling, self.max_new_tokens, 1, seed, self.stop, ends))
        try:
            out.prompt(prompt)
            with suppress(KeyboardInterrupt):
                for step in steps:
                    out.text(step.text)
        finally:
            steps.close()
            out.end()

    def _command(self, line: str) -> bool:
        """Run one command; returns whether the loop goes on."""
        try:
            name, *arguments = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"{line!r}: {error}") from None
        if name in ("/quit", "/exit"):
            return False
        if name not in _COMMANDS:
            raise unknown_name("command", name, _COMMANDS)
        _COMMANDS[name](self, arguments)
        return True

    def _set(self, arguments: Sequence[str]) -> None:
        if len(arguments) != 2:
            raise UsageError("/set takes a name and a value, like /set temperature 0.7")
        name, value = arguments
        if name.replace("-", "_") == "max_new_tokens":
            if not value.isdecimal() or not int(value):
                raise UsageError(f"max_new_tokens {value!r} is not a whole number from 1 up")
            self.max_new_tokens = int(value)
        else:
            self.sampling = with_setting(self.sampling, name, value)

    def _style(self, arguments: Sequence[str]) -> None:
        if len(arguments) != 1:
            raise UsageError(f"/style takes one of {', '.join(STYLES)}")
        chosen = style(arguments[0])
        self.sampling = replace(self.sampling, temperature=chosen.temperature, top_k=chosen.top_k)

    def _seed(self, arguments: Sequence[str]) -> None:
        if arguments and not arguments[0].isdecimal():
            raise UsageError(f"seed {arguments[0]!r} is not a whole number from 0 up")
        self.seed = int(arguments[0]) if arguments else None

    def _run(self, arguments: Sequence[str]) -> None:
        if len(arguments) != 1:
            raise UsageError("/run takes the name of a run")
        self._open(self.store.find(arguments[0]))
        console.notice(f"{self.model.run}, step {self.model.step}")

    def _show(self, arguments: Sequence[str]) -> None:
        seed = "new for each text" if self.seed is None else self.seed
        shown = {"run": self.model.run, **vars(self.sampling), "max_new_tokens": self.max_new_tokens, "seed": seed}
        for name, value in shown.items():
            console.notice(f"{name} {value}")

    def _help(self, arguments: Sequence[str]) -> None:
        for line in HELP.splitlines():
            console.notice(line)


_COMMANDS: dict[str, Callable[[PromptLoop, Sequence[str]], None]] = {
    "/set": PromptLoop._set, "/style": PromptLoop._style, "/seed": PromptLoop._seed, "/run": PromptLoop._run,
    "/show": PromptLoop._show, "/help": PromptLoop._help,
}  # fmt: skip
