"""The events of a journal, with data that the course can use. A journal may come from elsewhere, or from another version. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minigpt_cli.bounds import Count, Line, Nats, Text
from minigpt_cli.errors import RunDamaged
from minigpt_cli.runstore.journal import Event, Journal
from minigpt_cli.storage.atomic_io import first_line_of

GUESS = "guess"  # the lesson of the game
_Characters = Annotated[list[Nats], Field(min_length=1, max_length=10_000)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class _Started(_Data):
    text: Line | None = None
    seed: Count


class _Ran(_Data):
    argv: list[Line]
    code: int


class _Passed(_Data):
    runs: list[Line] = []
    part: Line = ""


class _Bet(_Data):
    question: Line
    choice: Line
    p: dict[Line, Annotated[float, Field(gt=0, le=1)]]

    @model_validator(mode="after")
    def _is_about_its_options(self) -> Self:
        if self.choice not in self.p:
            raise ValueError("the choice is none of the options")
        return self


class _Revealed(_Data):
    question: Line
    outcome: Line


class _Asked(_Data):
    question: Line
    choice: Line
    right: bool
    answer: Line = ""
    right_answer: Line = ""


class _Scored(_Data):
    """A model on the characters of the game."""

    run: Line
    n_chars: int
    nats_per_char: Nats
    nats: _Characters

    @model_validator(mode="after")
    def _has_one_number_a_character(self) -> Self:
        if len(self.nats) != self.n_chars:
            raise ValueError("it has not one number for each character")
        return self


class _Game(_Scored):
    """The learner on these characters."""

    run: Line = ""
    uniform: Nats
    bigram_nats: _Characters
    ranks: list[Annotated[int, Field(ge=1, le=4)]]
    context: Text
    target: Text

    @model_validator(mode="after")
    def _is_of_one_length(self) -> Self:
        if {len(self.bigram_nats), len(self.ranks), len(self.target)} != {self.n_chars}:
            raise ValueError("it has not one number for each character")
        return self


_KINDS: dict[str, type[_Data]] = {
    "started": _Started, "ran": _Ran, "passed": _Passed, "bet": _Bet, "revealed": _Revealed, "asked": _Asked,
}  # fmt: skip


def events_of(journal: Journal) -> Sequence[Event]:
    """All events of a journal. Raises RunDamaged for one whose data is not that of its kind."""
    events = journal.events()
    for number, event in enumerate(events, 1):
        try:
            _kind(event).model_validate(event.data)
        except ValidationError as error:
            errors: Any = error.errors()
            advice = "move the file away to begin the course again"
            raise RunDamaged(f"{journal.path} line {number} is not an event: {first_line_of(errors)}: {advice}") from error
    return events


def _kind(event: Event) -> type[_Data]:
    if event.event == "guessed":
        return _Game if event.lesson == GUESS or "ranks" in event.data else _Scored
    return _KINDS.get(event.event, _Data)
