"""minigpt generate -i: a prompt loop, or with --chat a conversation. Ctrl-C ends the present text, Ctrl-D or /quit ends the loop."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from minigpt_cli.commands.generate import check_question, new_seed
from minigpt_cli.data.chat import TOKENS, Message, recent, room
from minigpt_cli.display import console
from minigpt_cli.display.generation import TextStreamer, line_reader
from minigpt_cli.errors import MiniGPTError, UsageError, unknown_name
from minigpt_cli.generation import samples
from minigpt_cli.generation.engine import Engine, GenerationRequest
from minigpt_cli.generation.open_run import LoadedModel, open_model
from minigpt_cli.generation.sampling import STYLES, Sampling, style, with_setting
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage.atomic_io import explained

_HELP = "Type the beginning of a text; \\n in it is a line break. Ctrl-C ends the present text."
_CHAT_HELP = """\
Ask something. The run reads as much of the conversation as fits into its window. Ctrl-C ends the present answer.
/system [TEXT]    what the run is told before the conversation; without a text: nothing
/undo             take back the last question and its answer
/save FILE        add the conversation to a .jsonl file, which minigpt train reads"""
_COMMON_HELP = f"""\
/set NAME VALUE   {", ".join(field.name for field in fields(Sampling))} or max_new_tokens
/style NAME       {", ".join(STYLES)}
/seed [N]         the seed of the next texts; without N: a new one for each text
/run NAME         write with another run, or with NAME@STEP
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
    chat: bool = False
    messages: list[Message] = field(default_factory=list)  # of the conversation, the system's first
    model: LoadedModel = field(init=False)
    decoding: Engine = field(init=False)

    def run(self, run: Run) -> None:
        """Read prompts and write their continuations with `run` until the end of input."""
        self._open(run)
        for notice in self.model.notices:
            console.warn(notice)
        console.notice(f"{self.model.run}, step {self.model.step}; /help lists the commands, Ctrl-D ends the loop")
        read = line_reader(list(self._commands()))
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
                    (self._answer if self.chat else self._continue)(line.replace("\\n", "\n"))
            except MiniGPTError as error:
                console.error(str(error))

    def _open(self, run: Run) -> None:
        model = open_model(run, run.checkpoint or self.ckpt, self.engine)
        if self.chat:
            check_question(model, "")
        self.model, self.decoding = model, model.new_engine()

    def _continue(self, prompt: str) -> None:
        self._write(prompt, prompt, self.model.ends)

    def _answer(self, question: str) -> None:
        """Write the answer to `question`, and keep both."""
        check_question(self.model, question)
        asked: list[Message] = [*self.messages, ("user", question)]
        window = self.model.config.model.block_size
        most = room(window, self.max_new_tokens)
        prompt, left_out = recent(asked, lambda text: len(self.model.text_ids(text)) <= most)
        if left_out:
            console.notice(f"the window of {window} tokens is full: the oldest {left_out} messages are no longer read")
        self.messages = [*asked, ("assistant", self._write("", prompt, TOKENS))]

    def _write(self, shown: str, prompt: str, ends: Sequence[str]) -> str:
        """Write what follows `prompt`, after `shown`; the text that was written, also if Ctrl-C ended it."""
        seed = new_seed() if self.seed is None else self.seed
        request = GenerationRequest(self.model.prompt_ids(prompt), self.sampling, self.max_new_tokens, 1, seed, self.stop, ends)
        out, written = TextStreamer(), ""
        steps = samples.run(self.decoding, request)
        try:
            out.prompt(shown)
            with suppress(KeyboardInterrupt):
                for step in steps:
                    out.text(step.text)
                    written += step.text
        finally:
            steps.close()
            out.end()
        return written

    def _command(self, line: str) -> bool:
        """Run one command; returns whether the loop goes on."""
        try:
            name, *arguments = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"{line!r}: {error}") from None
        if name in ("/quit", "/exit"):
            return False
        known = self._commands()
        if name not in known:
            raise unknown_name("command", name, known)
        known[name](self, arguments)
        return True

    def _commands(self) -> dict[str, Callable[[PromptLoop, Sequence[str]], None]]:
        return _COMMANDS | (_CHAT_COMMANDS if self.chat else {})

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
        for line in f"{_CHAT_HELP if self.chat else _HELP}\n{_COMMON_HELP}".splitlines():
            console.notice(line)

    def _system(self, arguments: Sequence[str]) -> None:
        text = " ".join(arguments)
        check_question(self.model, text)
        self.messages = [*([("system", text)] if text else []), *(m for m in self.messages if m[0] != "system")]
        console.notice(f"the run is told: {text}" if text else "the run is told nothing before the conversation")

    def _undo(self, arguments: Sequence[str]) -> None:
        if not any(role == "user" for role, _ in self.messages):
            raise UsageError("nothing was asked yet, so there is nothing to take back")
        last = max(i for i, (role, _) in enumerate(self.messages) if role == "user")
        console.notice(f"taken back: {self.messages[last][1]}")
        self.messages = self.messages[:last]

    def _save(self, arguments: Sequence[str]) -> None:
        if len(arguments) != 1:
            raise UsageError("/save takes the name of a file, like /save chat.jsonl")
        if not any(role == "assistant" for role, _ in self.messages):
            raise UsageError("there is no answer yet, so there is nothing to save")
        path = Path(arguments[0]).expanduser()
        row = {"messages": [{"role": role, "content": content} for role, content in self.messages]}
        with explained("write"), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        console.notice(f"added the conversation to {path}")


_COMMANDS: dict[str, Callable[[PromptLoop, Sequence[str]], None]] = {
    "/set": PromptLoop._set, "/style": PromptLoop._style, "/seed": PromptLoop._seed, "/run": PromptLoop._run,
    "/show": PromptLoop._show, "/help": PromptLoop._help,
}  # fmt: skip
_CHAT_COMMANDS: dict[str, Callable[[PromptLoop, Sequence[str]], None]] = {
    "/system": PromptLoop._system, "/undo": PromptLoop._undo, "/save": PromptLoop._save,
}  # fmt: skip
