"""A lesson: its steps, as a TOML file in lessons/ describes them. The file names give the order.

Words in braces in a command stand for what is known only when it is shown: {text} is the learner's text, {mine} the run that plays this
part, {new:mine} a free name for it, {like:mine} the flags that repeat its settings. In the text of an outcome they are measured numbers.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

WORDS_A_MINUTE, QUESTION_S = 200, 12
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Option(_Part):
    """One answer to a bet; `after` is said where it is what happened."""

    id: Name
    text: str
    after: str


class Answer(_Part):
    """One answer to a question, and the reply to who chooses it."""

    text: str
    reply: str
    right: bool = False


class Needs(_Part):
    """What a run must be to pass a step."""

    settings: dict[str, str | int | float] = {}
    """Values of settings, by name."""
    most: dict[str, int] = {}
    """Settings with a largest value; 0, which means all, is too large."""
    like: Name | None = None
    """The part whose run it must resemble in every setting but these."""
    seeds: int = 0
    """So many seeds of each of two recipes instead of one run."""


class _Step(_Part):
    words: str = Field("", alias="text")
    """What is shown first."""
    seconds: int = 0
    """Computing, and acting where it takes longer than a question does."""
    about_game: bool = False
    """Whether it is left out where the guessing game was not played to its end."""

    @property
    def n_questions(self) -> int:
        """How often it waits for an answer."""
        return 1


class Tell(_Step):
    """Text alone."""

    kind: Literal["tell"]


class Bet(_Step):
    """A prediction with a confidence."""

    kind: Literal["bet"]
    id: Name
    options: Annotated[tuple[Option, ...], Field(alias="option", min_length=2, max_length=4)]


class Run(_Step):
    """A command that trains; a run that it made or changed is what passes."""

    kind: Literal["run"]
    command: str
    makes: Name
    needs: Needs
    hints: Annotated[tuple[str, ...], Field(min_length=2, max_length=2)]


class View(_Step):
    """A command that reads a run and writes no record; what passes is that such a command ended well."""

    kind: Literal["view"]
    command: str
    hints: Annotated[tuple[str, ...], Field(min_length=2, max_length=2)]


class Reveal(_Step):
    """What became of a bet of this lesson: the outcome, as `outcome` measures it."""

    kind: Literal["reveal"]
    bet: Name
    outcome: Name


class Ask(_Step):
    """A question with one right answer."""

    kind: Literal["ask"]
    id: Name
    answers: Annotated[tuple[Answer, ...], Field(alias="answer", min_length=2, max_length=4)]


class Guess(_Step):
    """Shannon's guessing game."""

    kind: Literal["guess"]


class Case(_Step):
    """A run of the ward: the n-th that is drawn, or, without n, one that is trained on the learner's text."""

    kind: Literal["case"]
    n: int | None = None
    told: bool = True
    """Whether the answer is shown."""


class Page(_Step):
    """The page to keep."""

    kind: Literal["page"]


Step = Annotated[Tell | Bet | Run | View | Reveal | Ask | Guess | Case | Page, Field(discriminator="kind")]


class Lesson(_Part):
    """One lesson."""

    name: Name = ""
    number: int = 0
    title: str
    why: str
    uses: tuple[Name, ...] = ()
    """Parts whose runs it needs, which other lessons make."""
    steps: Annotated[tuple[Step, ...], Field(alias="step", min_length=1)]

    @property
    def minutes(self) -> float:
        """How long it takes, by construction."""
        words = len(self.why.split()) + sum(len(word.split()) for step in self.steps for word in _strings(step.model_dump()))
        return words / WORDS_A_MINUTE + sum(QUESTION_S * step.n_questions + step.seconds for step in self.steps) / 60


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) and " " in value else []


@cache
def lessons() -> tuple[Lesson, ...]:
    """All lessons in their order."""
    found = []
    for file in sorted(files("minigpt_cli.course").joinpath("lessons").iterdir(), key=lambda file: file.name):
        if match := re.fullmatch(r"(\d+)-(\w+)\.toml", file.name):
            content = tomllib.loads(file.read_text("utf-8"))
            found.append(Lesson.model_validate(content | {"number": int(match[1]), "name": match[2]}))
    return tuple(found)


def lesson_named(name: str) -> Lesson | None:
    """The lesson of this name or number; None if there is none."""
    return next((lesson for lesson in lessons() if name in (lesson.name, str(lesson.number))), None)
