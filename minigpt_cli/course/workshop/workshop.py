"""/goto build: the learner writes my_gpt.py, which is checked here, and at the end compared with minigpt's own model. No torch."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_cli.course.workshop.blanks import BLANKS, Blank, blanked
from minigpt_cli.course.workshop.process import Runner, Unreadable, check_syntax
from minigpt_cli.display import waiting
from minigpt_cli.display.format import quoted
from minigpt_cli.errors import MiniGPTError, RunDamaged, UsageError
from minigpt_cli.escaping import one_line, printable
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.journal import Journal
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import atomic_io
from minigpt_cli.tokenization.contract import END_OF_TEXT

FILE, LESSON = "my_gpt.py", "build"
CHECK_S, WRITE_S = 10.0, 120.0  # for one blank, for the text at the end
N_CHARS = 200
_ALL = range(1, len(BLANKS) + 1)
_ROUNDING = 1e-3  # two logits that are nearer than this share of the largest: rounding may decide
_WIDTH, _SHOWN = 78, 4  # columns of a line; blanks whose mistake is shown at once


@dataclass(frozen=True)
class Result:
    """What the check of one blank found."""

    blank: Blank
    state: str  # right, wrong or empty
    message: str = ""
    printed: str = ""


class Workshop:
    """The learner's file in a folder, its checks and its hints. What was done is in the journal."""

    def __init__(self, folder: Path, store: RunStore, journal: Journal) -> None:
        self.path, self.store, self.journal = folder / FILE, store, journal
        self._results: list[Result] = []

    @property
    def done(self) -> bool:
        """Whether the learner's file once wrote what minigpt writes."""
        return any(event.event == "finished" for event in self._events())

    def _events(self) -> list[Any]:
        return [event for event in self.journal.events() if event.lesson == LESSON]

    def begin(self) -> list[str]:
        """Write the file if there is none; what to do, as lines."""
        if is_new := not os.path.lexists(self.path):
            try:
                atomic_io.write_atomic(self.path, blanked())
            except MiniGPTError as error:
                return _wrap(f"{error}. Start minigpt --learn in a folder of your own.")
        here = "is new, in this folder" if is_new else "is here already, and stays as it is"
        return [
            f"{FILE} {here}: {_wrap(str(self.path.parent.resolve()), 40)[0]}",
            "It is a whole GPT in one file. Seven short functions are empty: write them,",
            "in any order. The text under each says in words what it must do.",
            "",
            *(f"  {blank.number}  {blank.title:14} {blank.function}" for blank in BLANKS),
            "",
            "Open the file in your editor, write one function, save it, and press Enter",
            "here: that checks it. /hint 3 helps with blank 3, and helps more each time.",
        ]

    def answer(self, line: str) -> list[str]:
        """What to show after the learner typed `line`: nothing and /check check the file, /hint and /hint N help."""
        word, _, rest = line.strip().partition(" ")
        if word in ("", "/check"):
            return self.check()
        if word == "/hint" and (not rest or rest.strip() in set(map(str, _ALL))):
            return self.hint(int(rest) if rest else None)
        return ["Enter checks your file. /hint N helps with blank N, from 1 to 7."]

    # ---- hints

    def hint(self, number: int | None = None) -> list[str]:
        """The next hint for a blank, by default the first that is not right yet; the third is its lines."""
        passed = self._passed()
        unfinished = [r.blank for r in self._results if r.state != "right"] or [b for b in BLANKS if b.number not in passed]
        blank = BLANKS[number - 1] if number is not None else [*unfinished, BLANKS[0]][0]
        given = sum(event.event == "hint" and event.step == blank.number for event in self._events())
        level = min(given + 1, 3)
        self.journal.append(LESSON, blank.number, "hint", {"level": level})
        title = f"Hint {level} of 3 for blank {blank.number}, {blank.title}"
        if level < 3:
            return [f"{title}:", *(f"  {line}" for line in _wrap(blank.hints[level - 1]))]
        return [f"{title}: these are its lines.", *blank.lines]

    def _passed(self) -> set[int]:
        return {event.step for event in self._events() if event.event == "passed"}

    # ---- checks

    def check(self) -> list[str]:
        """Check every blank; when all are right, compare what the file writes with what minigpt writes."""
        try:
            check_syntax(self.path)
            waiting.show(f"checking {FILE}")
            with Runner(self.path) as runner:
                return self._checked(runner)
        except Unreadable as error:
            return _wrap(f"{FILE}: {error}")
        except KeyboardInterrupt:
            return ["Stopped. Enter checks again, /quit ends the course."]
        finally:
            waiting.remove()

    def _checked(self, runner: Runner) -> list[str]:
        self._results, before = list(checked(runner)), self._passed()
        for result in self._results:
            if result.state == "right" and result.blank.number not in before:
                self.journal.append(LESSON, result.blank.number, "passed", {"runs": []})
        lines = _shown(self._results)
        if any(result.state != "right" for result in self._results):
            return lines
        return ["All seven are right.", "", *self._compared(runner)]

    def _compared(self, runner: Runner) -> list[str]:
        """The learner's file and minigpt, side by side, on the newest run that the file can read."""
        run = newest_modern(self.store)
        if run is None:
            return [
                "Now let it write: train a model of arch modern, then press Enter again:",
                "  minigpt train --preset tiny-run --name mine",
            ]
        waiting.show(f"writing {N_CHARS} characters with run {run.name}")
        try:
            ours, our_tokens, prompt = _reference(run)
            theirs = _written_by_learner(runner, run, prompt, len(our_tokens))
        except (Unreadable, MiniGPTError) as error:
            return _wrap(f"run {run.name!r} cannot be compared: {error}")
        text = theirs["text"].partition(END_OF_TEXT)[0][:N_CHARS]
        lines = [f"{FILE:39}minigpt generate {_wrap(run.name, 15)[0]} --greedy", *_side_by_side(text, ours), ""]
        if text == ours:
            self._finish()
            same = f"The same {len(ours)} characters. You have written a GPT, and it is this one."
            return [*lines, same, f'Use it: python {FILE} {self._from_here(run)} "Once upon"']
        place = next((i for i, (a, b) in enumerate(zip(text, ours, strict=False)) if a != b), min(len(text), len(ours)))
        lines += [f"They part at character {place + 1}: yours {text[place : place + 1]!r}, minigpt's {ours[place : place + 1]!r}."]
        token = next((i for i, (a, b) in enumerate(zip(theirs["tokens"], our_tokens, strict=False)) if a != b), None)
        if token is not None and token < len(theirs["gaps"]) and theirs["gaps"][token] < _ROUNDING:
            self._finish()
            return [*lines, "There the two best guesses are equal but for rounding: your file is right."]
        return [*lines, "Each function is right alone, so look below the line in your file: is", "something changed there?"]

    def _from_here(self, run: Run) -> str:
        """The path of a run for a command that is typed in the folder of the file."""
        try:
            return quoted(os.path.relpath(run.dir, self.path.parent))
        except ValueError:  # on another drive of Windows
            return quoted(str(run.dir))

    def _finish(self) -> None:
        if not self.done:
            self.journal.append(LESSON, len(BLANKS) + 1, "finished", {})


def checked(runner: Runner, limit_s: float = CHECK_S) -> Iterator[Result]:
    """The result of each blank. Raises Unreadable."""
    for blank in BLANKS:
        if (answer := runner.ask(limit_s, "check", blank.number)) is not None:
            yield Result(blank, answer["state"], answer["message"], answer["printed"])
        elif runner.ended:
            yield Result(blank, "wrong", "it ended Python itself")
        else:
            yield Result(blank, "wrong", f"it did not end within {limit_s:g} seconds: is there an endless loop?")


def newest_modern(store: RunStore) -> Run | None:
    """The newest run that my_gpt.py can read: arch modern, a tokenizer that it knows, all weights in its own best.safetensors."""
    for run in reversed(store.runs()):
        try:
            if run.record.arch != "modern" or run.record.tokenizer not in ("char", "byte", "bpe"):
                continue
            if "best.safetensors" in run.record.files and not run.config.lora.lora_rank:
                return run
        except RunDamaged:
            continue
    return None


def _reference(run: Run) -> tuple[str, list[int], list[int]]:
    """What minigpt writes greedily: at most 200 characters, their tokens, and the prompt's ids. Raises MiniGPTError."""
    from minigpt_cli.generation.engine import GenerationRequest
    from minigpt_cli.generation.open_run import open_model
    from minigpt_cli.generation.samples import collect
    from minigpt_cli.generation.sampling import Sampling

    loaded = open_model(run)
    prompt = loaded.prompt_ids("")
    [sample] = collect(loaded.steps(GenerationRequest(prompt, Sampling(temperature=0.0), N_CHARS, ends=loaded.ends)), 1)
    return sample.text[:N_CHARS], sample.tokens, prompt


def _written_by_learner(runner: Runner, run: Run, prompt: Sequence[int], n: int) -> dict[str, Any]:
    if (answer := runner.ask(WRITE_S, "write", str(run.dir), n, list(prompt))) is None:
        raise UsageError(
            f"writing {n} tokens took longer than {WRITE_S:g} seconds: train a smaller run, as minigpt train --preset tiny-run"
        )
    return answer


# ---- lines


def _wrap(text: str, width: int = _WIDTH - 5) -> list[str]:
    """`text` in lines that can be shown safely."""
    return textwrap.wrap(one_line(text), width) or [""]


def _shown(results: Sequence[Result]) -> list[str]:
    """The results: what is right and what is empty in a line each, and the first mistakes."""
    by_state = {state: [r for r in results if r.state == state] for state in ("right", "wrong", "empty")}
    lines = []
    for state in ("right", "empty"):
        if found := by_state[state]:
            lines += _wrap(f"{state}: " + ", ".join(f"{r.blank.number} {r.blank.title}" for r in found), _WIDTH)
    for result in by_state["wrong"][:_SHOWN]:
        first, *more = _wrap(result.message)[:3]
        lines += [f"not yet: {result.blank.number} {result.blank.title}", f"  {first}", *(f"  {line}" for line in more)]
        if printed := result.printed.strip():
            lines += [f"  it printed: {_wrap(printed, _WIDTH - 14)[0]}"]
    if more_wrong := by_state["wrong"][_SHOWN:]:
        lines += ["not yet either: " + ", ".join(str(r.blank.number) for r in more_wrong)]
    if by_state["wrong"] or by_state["empty"]:
        lines += ["/hint N helps."]
    return lines


def _side_by_side(ours: str, theirs: str, width: int = 36) -> list[str]:
    """Two texts in two columns, line breaks as ⏎."""
    columns = [printable(text.replace("\r", "").replace("\n", "⏎"), keep="") for text in (ours, theirs)]
    rows = range(0, max(map(len, columns)), width)
    return [f"{columns[0][i : i + width]:{width + 3}}{columns[1][i : i + width]}" for i in rows]
