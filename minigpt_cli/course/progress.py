"""Where the learner is, what was bet, and which runs play which part: all of it computed from the journal alone. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minigpt_cli.course.lesson import Ask, Bet, Case, Guess, Lesson, Reveal, Run, lesson_named, lessons
from minigpt_cli.runstore.journal import Event

BUILD = "build"  # a part of the course with steps of its own: my_gpt.py


@dataclass(frozen=True)
class Place:
    """A step of a lesson; a step after the last one means that all steps are done."""

    lesson: str
    step: int


@dataclass(frozen=True)
class Progress:
    """The state of the course after some events."""

    events: Sequence[Event]

    @property
    def text(self) -> str | None:
        """The learner's text as it was given; None for the default text."""
        return next((event.data.get("text") for event in reversed(self.events) if event.event == "started"), None)

    @property
    def seed(self) -> int:
        """What cases and passages are drawn with."""
        return next((int(event.data["seed"]) for event in reversed(self.events) if event.event == "started"), 0)

    @property
    def is_started(self) -> bool:
        """Whether the text was asked for."""
        return any(event.event == "started" for event in self.events)

    @property
    def place(self) -> Place:
        """The step that comes now."""
        place = Place(lessons()[0].name, 0)
        for event in self.events:
            place = _after(place, event)
        return place

    @property
    def since(self) -> Sequence[Event]:
        """The events of the present step, from the one that entered it; empty where it was not entered yet."""
        place, own = self.place, [event for event in self.events if event.lesson != BUILD]
        for begun in reversed(range(len(own))):
            if (own[begun].lesson, own[begun].step) != (place.lesson, place.step):
                return []
            if own[begun].event == "entered":
                return own[begun:]
        return []

    @property
    def is_building(self) -> bool:
        """Whether the learner was in the part where a GPT is built."""
        return bool(self.events) and self.events[-1].lesson == BUILD and self.events[-1].event != "finished"

    @property
    def finished(self) -> frozenset[str]:
        """The names of the lessons that were finished without a step left out."""
        return frozenset(event.lesson for event in self.events if event.event == "finished" and not event.data.get("skipped"))

    @property
    def n_skipped(self) -> int:
        """The steps of the present lesson that were left out since it was last entered at its first step."""
        lesson, skipped = self.place.lesson, set[int]()
        for event in self.events:
            if event.lesson == lesson and event.event == "entered":
                skipped = set() if event.step == 0 else skipped - {event.step}
            elif event.lesson == lesson and event.event == "skipped":
                skipped.add(event.step)
        return len(skipped)

    def run_names(self, part: str) -> Sequence[str]:
        """The runs that play this part, as the last step that made them recorded it; empty where none did."""
        made = (event for event in reversed(self.events) if event.event == "passed" and event.data.get("part") == part)
        return [str(name) for name in next((event.data.get("runs", []) for event in made), [])]

    def bet(self, question: str) -> Event | None:
        """The last bet on this question."""
        return next((e for e in reversed(self.events) if e.event == "bet" and e.data.get("question") == question), None)

    def last(self, kind: str, lesson: str = "") -> Event | None:
        """The last event of this kind, in this lesson if it is named."""
        return next((e for e in reversed(self.events) if e.event == kind and lesson in ("", e.lesson)), None)


def _after(place: Place, event: Event) -> Place:
    """The place after an event."""
    lesson = lesson_named(event.lesson)
    if lesson is None:  # building has steps of its own
        return place
    if event.event == "entered":
        return Place(lesson.name, min(event.step, len(lesson.steps)))
    if event.event == "finished":
        return Place(following(lesson).name, 0) if following(lesson) != lesson else Place(lesson.name, len(lesson.steps))
    if event.step < len(lesson.steps) and _completes(lesson, event):
        return Place(lesson.name, event.step + 1)
    return place


def _completes(lesson: Lesson, event: Event) -> bool:
    step = lesson.steps[event.step]
    if event.event == "skipped":
        return True
    if isinstance(step, Run):  # a run that another lesson should have made does not count
        return event.event == "passed" and event.data.get("part") == step.makes
    kinds = {Bet: "bet", Reveal: "revealed", Ask: "asked", Case: "asked", Guess: "guessed"}
    return event.event == kinds.get(type(step), "passed")


def following(lesson: Lesson) -> Lesson:
    """The lesson after this one; the last one itself."""
    place = lessons().index(lesson)
    return lessons()[min(place + 1, len(lessons()) - 1)]
