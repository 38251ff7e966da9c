"""One sitting at the course: reading a line, the commands that begin with a slash, running a command, and writing the journal. No torch."""

from __future__ import annotations

import os
import re
import secrets
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from minigpt_cli.course import checks
from minigpt_cli.course.events import events_of
from minigpt_cli.course.lesson import lesson_named, lessons
from minigpt_cli.course.progress import BUILD, Progress
from minigpt_cli.course.text import shown
from minigpt_cli.display import course as screen
from minigpt_cli.display import waiting
from minigpt_cli.display.course import Screen
from minigpt_cli.display.format import quoted
from minigpt_cli.errors import MiniGPTError, RunNotFound, UsageError, unknown_name
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.journal import Journal, Kind
from minigpt_cli.runstore.store import RunStore

RunCommand = Callable[[Sequence[str]], int]
"""Runs a command line in this process and returns its exit code."""

HELP = """\
Enter runs the command that is shown; any other minigpt command may be typed.
/hint (the third is the command)  /again  /skip  /list  /quit  /goto 4 or a name
A number answers. After /quit, Ctrl-C or Ctrl-D, minigpt --learn continues here."""
_SLASHES = ("/hint", "/again", "/skip", "/goto", "/list", "/quit", "/help")
_WORDS = {"quit": "/quit", "exit": "/quit", "help": "/help", "hint": "/hint", "skip": "/skip", "again": "/again", "list": "/list"}
_COMMANDS = ("train", "generate", "eval", "compare", "runs", "tokenize")


class Moved(Exception):
    """The place has changed, or the step is to be shown again."""


class Left(Exception):
    """The learner ends the session."""

    def __init__(self, code: int = 0) -> None:
        super().__init__()
        self.code = code


class Session:
    """The state of one sitting: the journal and what it says."""

    def __init__(self, command: RunCommand, store: RunStore, journal: Journal) -> None:
        self.command, self.store, self.journal = command, store, journal
        self.progress = Progress(events_of(journal))
        self.hints: Sequence[str] = ()  # of the step that is shown
        self.passed_on: Sequence[str] = ()  # commands with a slash that are not of the session

    def record(self, event: Kind, data: dict[str, object] | None = None) -> None:
        """Write an event of the present step into the journal."""
        place = self.progress.place
        self._append(place.lesson, place.step, event, data)

    def _append(self, lesson: str, step: int, event: Kind, data: dict[str, object] | None = None) -> None:
        made = self.journal.append(lesson, step, event, data)
        self.progress = Progress([*self.progress.events, made])

    def start(self, source: str | None) -> None:
        """Begin the course on this text."""
        self._append(lessons()[0].name, 0, "started", {"text": source, "seed": secrets.randbelow(1 << 31)})

    # ---- reading

    def line(self, prompt: str = "> ", *, raw: bool = False, path: bool = False) -> str:
        """The next line that is not a slash command, without blanks around it unless `raw`; with `path` it may begin with a slash.
        Raises Left and Moved."""
        while True:
            try:
                typed = screen.read(prompt)
                while typed.endswith(" \\") and not (raw or path):  # a command over several lines, pasted as it is shown
                    typed = typed[:-1] + screen.read("... ")
            except EOFError:
                raise Left from None
            except KeyboardInterrupt:
                raise Left(130) from None
            word = typed.strip()
            is_slash = word.startswith("/") and len(word) > 1 and not (path and word.split()[0] not in _SLASHES)
            slash = word if is_slash else "" if raw else _WORDS.get(word.lower(), "")
            if not slash or slash.split()[0] in self.passed_on:
                return typed if raw else slash or word.removeprefix("$ ")
            try:
                self._slash(slash.split())
            except MiniGPTError as error:
                screen.say(str(error))

    def pause(self) -> None:
        """Wait for Enter; a command that is typed runs."""
        self.passed_on = ("/skip",)  # there is nothing to be skipped
        try:
            while (line := self.line("Enter continues: ")) not in ("", "/skip"):
                if not self.ran(line):
                    screen.say("Enter continues, /quit ends.")
        finally:
            self.passed_on = ()

    def choice(self, n: int, prompt: str = "> ") -> int:
        """A number from 1 to n; a command that is typed runs, and then the number is asked for again."""
        while True:
            line = self.line(prompt)
            if line.isdecimal() and 1 <= int(line) <= n:
                return int(line)
            if not self.ran(line):
                screen.say(f"Type a number from 1 to {n}, or /help.")

    def _slash(self, words: Sequence[str]) -> None:
        name = words[0].lower()
        if name not in _SLASHES:
            raise unknown_name("command", name, _SLASHES)
        if not self.progress.is_started and name not in ("/help", "/list", "/quit"):
            raise UsageError("the course begins with a text: type the path of a file, or press Enter for the default text")
        if name == "/help":
            screen.show_rows(HELP.splitlines())
        elif name == "/list":
            self._list()
        elif name == "/quit":
            raise Left
        elif name == "/hint":
            self._hint()
        elif name == "/goto":
            self._go(words[1].lower() if words[1:] else "")
        else:
            if name == "/skip":
                self.record("skipped")
            raise Moved

    def _hint(self) -> None:
        if not self.hints:
            screen.say("There is no hint here: any answer teaches something. /skip leaves the step out.")
            return
        level = min(1 + sum(event.event == "hint" for event in self.progress.since), len(self.hints))
        self.record("hint", {"level": level})
        if level < len(self.hints):
            screen.say(self.hints[level - 1])
        else:
            screen.say("Type this, or press Enter:")
            screen.show_command(self.hints[-1])

    def _list(self) -> None:
        for lesson in lessons():
            mark = "✓" if lesson.name in self.progress.finished else "▸" if lesson.name == self.progress.place.lesson else " "
            minutes = max(1, round(lesson.minutes))
            screen.show_rows([f"{mark} {lesson.number:>2}  {lesson.name:10} {lesson.title} ({minutes} min)"])
        screen.show_rows(["Also /goto build: write a GPT yourself; /goto page: the page to keep."])

    def _go(self, name: str) -> None:
        if name == BUILD:
            self.build()
            raise Moved
        if name == "page":
            screen.say(self.page())
            return
        if lesson := lesson_named(name):
            self._append(lesson.name, 0, "entered")
        else:
            known = [*(lesson.name for lesson in lessons()), BUILD, "page"]
            raise unknown_name("lesson", name, known) if name else UsageError("/goto needs a number or a name: /list shows them")
        raise Moved

    def page(self) -> str:
        """Write the page to keep, of all that was done so far; where it is."""
        from minigpt_cli.course.page import write_page

        path = write_page(self.store, self.journal)
        return f"Your page to keep is {shown(str(path.absolute()))}: open it in a browser. /goto page writes it again."

    def build(self) -> None:
        """The part in which the learner writes a GPT, until it is done or left with /goto. Raises Left and Moved."""
        from minigpt_cli.course.workshop.workshop import Workshop

        workshop = Workshop(Path.cwd(), self.store, self.journal)
        if not self.progress.is_building:
            self._append(BUILD, 0, "entered")
        screen.show(Screen("Build a GPT", rows=workshop.begin(), footer="/goto NAME goes back to the lessons."))
        self.passed_on = ("/check", "/hint", "/again", "/skip")
        try:
            while True:
                line = self.line()
                if line == "/again":
                    screen.show_rows(workshop.begin())
                elif not self.ran(line):
                    screen.show_rows(workshop.answer(line))
                self.progress = Progress(events_of(self.journal))
                if not self.progress.is_building:
                    return
        finally:
            self.passed_on = ()

    # ---- running

    def ran(self, line: str) -> bool:
        """Run a line that is a command; whether it is one."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            screen.say(f"This command cannot be read: {str(error).lower()}.")
            return True
        if words[:1] == ["minigpt"]:
            self._run(words[1:])
            return True
        if words[:1] and words[0] in _COMMANDS:
            screen.say(f"Write minigpt before it: minigpt {line}")
            return True
        return False

    def _run(self, argv: Sequence[str]) -> None:
        if "--learn" in argv:
            screen.say("The course is open already: this is it.")
            return
        waiting.show(f"minigpt {argv[0] if argv else ''}: starting")
        code = self.command(argv)
        self.record("ran", {"argv": list(argv), "code": code})
        if code == 143:  # this process was asked to end
            raise Left(code)
        if code == 130:
            screen.say("Stopped; what was saved is kept. You are back in the course.")
        elif code:
            screen.say(f"The command ended with code {code}; the line above says why.")

    def run_of(self, part: str) -> Run | None:
        """The run of a part; None if none was made, or it was removed."""
        try:
            return self.store.find(names[0]) if (names := self.progress.run_names(part)) else None
        except MiniGPTError:
            return None

    def filled(self, command: str) -> str:
        """A command of a lesson with the words in braces filled in."""

        def value(match: re.Match[str]) -> str:
            kind, _, part = match[1].rpartition(":")
            if part == "text":
                return quoted(shown(self.progress.text)) if self.progress.text else ""
            if kind == "new":
                return self.free_name(part)
            if (run := self.run_of(part)) is None:
                raise RunNotFound(f"the run for {part} is not there")
            return checks.flags_like(run) if kind == "like" else quoted(run.name)

        return " ".join(filter(None, (re.sub(r"\{([\w:]+)\}", value, word) for word in command.split())))

    def free_name(self, part: str) -> str:
        """A name for a run that no run has."""
        number, name = 1, part
        while os.path.lexists(self.store.dir / name):
            number += 1
            name = f"{part}-{number}"
        return name
