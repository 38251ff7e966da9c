"""minigpt --learn: a guided hour. The steps of the lessons one after the other, each shown, answered, and written into the journal.

The place in the course is always that of the journal, so a session that is killed continues at the same step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO

from minigpt_cli.course import checks, ward
from minigpt_cli.course.bets import cost, cost_sentence, shares
from minigpt_cli.course.events import GUESS
from minigpt_cli.course.guessing import game_on, model_data
from minigpt_cli.course.lesson import Ask, Bet, Case, Guess, Lesson, Page, Reveal, Run, Step, Tell, View, lesson_named, lessons
from minigpt_cli.course.outcomes import OUTCOMES, Measured
from minigpt_cli.course.page import course_of
from minigpt_cli.course.play import play, score_rows
from minigpt_cli.course.progress import following
from minigpt_cli.course.session import Left, Moved, RunCommand, Session
from minigpt_cli.course.text import SHORT, dataset, source_in
from minigpt_cli.course.text import shown as shown_source
from minigpt_cli.display import course as screen
from minigpt_cli.display import waiting
from minigpt_cli.display.course import Screen
from minigpt_cli.errors import MiniGPTError, RunNotFound
from minigpt_cli.runstore.journal import Journal
from minigpt_cli.runstore.store import RunStore

OPPONENTS = ("pairs", "mine")  # the parts that are scored on the characters of the game
_SURE = "How sure are you? 1: a guess, 2: 60 %, 3: 80 %, 4: 95 %."
_RUN = "Enter runs it. Or type a command of your own. /hint /skip /help"


def learn(command: RunCommand) -> int:
    """Run a session of the course until it is ended, with `command` as what runs a command line; the exit code."""
    store = RunStore()
    journal = Journal(store.dir)
    with journal.held():
        tutor = Tutor(command, store, journal)
        try:
            tutor.begin()
            while True:
                tutor.next()
        except Left as end:
            code = end.code
        except KeyboardInterrupt:  # not at a prompt, but while something is measured
            code = 130
        screen.say("The course is kept: minigpt --learn continues it in this folder.")
        return code


class Tutor(Session):
    """A session that shows and judges the steps."""

    def begin(self) -> None:
        """Greet; ask for the learner's text at the first time."""
        if self.progress.is_started:
            screen.say("Welcome back. /list shows the lessons, /help what you can type.")
            if self.progress.is_building:
                with suppress(Moved):
                    self.build()
            return
        screen.show(Screen("minigpt --learn", _WELCOME))
        self.start(self._asked_source())

    def _find_text(self) -> None:
        """Ask for the learner's text again where it is no longer there, as on another computer."""
        source = self.progress.text
        if source and os.path.isabs(source) and not os.path.exists(source):
            screen.say(f"Your text is no longer at {source}. Where is it now? Runs that you made stay as they are.")
            self.record("started", {"text": self._asked_source(), "seed": self.progress.seed})

    def _asked_source(self) -> str | None:
        """The learner's text, asked for until it is one that can be used; None for the default text."""
        while True:
            source = source_in(self.line("text: ", path=True))
            waiting.show("reading the text")
            try:
                found = dataset(source)
            except MiniGPTError as error:
                screen.say(f"{error}. Type another path, or Enter for the default text.")
                continue
            finally:
                waiting.remove()
            screen.say(f"{found.label}: {found.train.n_chars:,} characters to train on, {found.val.n_chars:,} to test with.")
            if found.train.n_chars < SHORT:
                screen.say("It is short, so that models soon know it by heart; a whole book shows more.")
            return source

    def next(self) -> None:
        """Take the learner through the step that comes now; what cannot be done may be tried again or left out. Raises Left."""
        try:
            try:
                self.step()
            except MiniGPTError as error:
                screen.say(f"{error}.")
                self.line("Enter tries again, /skip leaves it out: ")
        except Moved:
            return

    def step(self) -> None:
        """Show the step that comes now, and wait until it is done. Raises Moved and Left."""
        self.hints = ()
        self._find_text()
        place = self.progress.place
        lesson = _lesson(place.lesson)
        if place.step == len(lesson.steps):
            self._finish(lesson)
            return
        if not self.progress.since:
            self.record("entered")
        step = lesson.steps[place.step]
        if step.about_game and self.progress.last("guessed", GUESS) is None:
            screen.say("The next step is about the guessing game, which was not played to its end: it is left out.")
            self.record("skipped")
            return
        if missing := [part for part in lesson.uses if self.run_of(part) is None]:
            self._make_first(lesson, missing[0])
            return
        match step:
            case Tell():
                screen.show(self._screen(lesson, step))
                self.pause()
                self.record("passed", {"runs": []})
            case Run() | View():
                self._run_step(step, self._screen(lesson, step))
            case Bet():
                self._bet(lesson, step)
            case Reveal():
                self._reveal(lesson, step)
            case Ask():
                self._ask(lesson, step)
            case Guess():
                self._guess(self._screen(lesson, step))
            case Case():
                self._case(lesson, step)
            case Page():
                text = f"{step.words}\n\n{self.page()}\n\n{course_of(self.store, self.progress.events).cases_about}"
                screen.show(replace(self._screen(lesson, step), text=text))
                self.pause()
                self.record("passed", {"runs": []})

    def _screen(self, lesson: Lesson, step: Step, *, options: Sequence[str] = (), command: str = "", footer: str = "") -> Screen:
        """The screen of a step; at the beginning of a lesson it says why first."""
        number = self.progress.place.step
        text = f"{lesson.why}\n\n{step.words}" if number == 0 else step.words
        heading = f"{lesson.number} {lesson.title} · {number + 1} of {len(lesson.steps)}"
        return Screen(heading, text, options=options, command=command, footer=footer)

    def _finish(self, lesson: Lesson) -> None:
        """The end of a lesson, or of the course."""
        skipped = self.progress.n_skipped
        said = f"Lesson {lesson.number} is done" if not skipped else f"Lesson {lesson.number} is over, with {skipped} of its steps left out"
        if following(lesson) != lesson:
            screen.say(f"{said}. Next: lesson {following(lesson).number}, {following(lesson).title}")
            self.pause()
            self.record("finished", {"skipped": skipped})
            return
        if (last := self.progress.last("finished")) is None or last.lesson != lesson.name:
            self.record("finished", {"skipped": skipped})
        left = [f"{other.number} {other.title}" for other in lessons() if other.name not in self.progress.finished]
        done = f"Not done yet, or with steps left out: {', '.join(left)}." if left else "You have done the whole course."
        screen.show(Screen("The end", f"{done}\n\n{_END}"))
        while True:
            if not self.ran(self.line()):
                screen.say("/goto NAME goes to a lesson, /list shows them, /quit ends.")

    # ---- commands

    def _make_first(self, lesson: Lesson, part: str) -> None:
        """Make the run that another lesson makes, and that this one uses."""
        maker, step = next((other, step) for other in lessons() for step in other.steps if isinstance(step, Run) and step.makes == part)
        text = f"This lesson uses the run of lesson {maker.number}, {maker.title}, which is not there. So that comes first."
        self._run_step(step, Screen(f"{lesson.number} {lesson.title}", text))

    def _run_step(self, step: Run | View, shown: Screen) -> None:
        """Show a command, run what is typed until the step is passed, and record that. A run that was made before a kill passes at once."""
        try:
            command, before = self.filled(step.command), len(self.progress.since)
        except RunNotFound as error:
            screen.say(f"The next step is left out: {error}.")
            self.record("skipped")
            return
        self.hints = [*step.hints, command]
        if before > 1 and self._passed(step):
            return
        screen.show(Screen(shown.heading, shown.text, command=command, footer=_RUN))
        while True:
            line, before = self.line() or self.filled(step.command), len(self.progress.events)
            if not self.ran(line):
                screen.say("That is no command. Enter runs the one that is shown; /help lists what you can type.")
                continue
            ran = [event.data["code"] for event in self.progress.events[before:] if event.event == "ran"]
            if self._passed(step, tell=ran not in ([], [2])):  # a mistake in the command was told already
                return

    def _passed(self, step: Run | View, *, tell: bool = False) -> bool:
        """Whether the step is passed, which is recorded; with `tell` what is missing is said."""
        try:
            names = self._passing(step)
        except checks.Missing as missing:
            if tell:
                screen.say(f"Not yet: {missing}.")
            return False
        plays = isinstance(step, Run) and step.makes in OPPONENTS and self._play_against(names[0])
        self.record("passed", {"runs": list(names)} | ({"part": step.makes} if isinstance(step, Run) else {}))
        if plays and isinstance(step, Run) and step.makes == OPPONENTS[-1]:
            screen.show(Screen("The characters that you guessed, in nats each", rows=score_rows(self.progress)))
            self.pause()
        if isinstance(step, View):  # so that the next screen does not push away what it wrote
            self.pause()
        return True

    def _play_against(self, name: str) -> bool:
        """Score a new run on the characters that the learner guessed; whether there are such."""
        if (game := self.progress.last("guessed", GUESS)) is None:
            return False
        waiting.show("scoring it on your characters")
        self.record("guessed", model_data(self.store.find(name), game.data))
        waiting.remove()
        return True

    def _passing(self, step: Run | View) -> Sequence[str]:
        """The runs that pass the step. Raises Missing."""
        if isinstance(step, Run):
            like = self.run_of(step.needs.like) if step.needs.like else None
            return checks.passing(self.store, self.progress.since, step.needs, self.progress.text, like)
        words = step.command.split()[1:]
        wanted = words[: next(i for i, word in enumerate(words) if word.startswith(("{", "-")))]
        ended = [event.data["argv"] for event in self.progress.since if event.event == "ran" and event.data["code"] == 0]
        if not any(argv[: len(wanted)] == wanted for argv in ended):
            raise checks.Missing(f"this step needs a minigpt {' '.join(wanted)} that ends well")
        return []

    # ---- questions

    def _guess(self, shown: Screen) -> None:
        """Play Shannon's game on the learner's unseen text."""
        waiting.show("reading the text")
        game = game_on(dataset(self.progress.text), self.progress.seed)
        play(self, shown, game)
        self.record("guessed", game.data)
        screen.show(Screen("Your score, in nats for each character: less is better", rows=score_rows(self.progress)))
        self.pause()

    def _bet(self, lesson: Lesson, step: Bet) -> None:
        screen.show(self._screen(lesson, step, options=[option.text for option in step.options]))
        chosen = self.choice(len(step.options), "Your bet: ") - 1
        screen.say(_SURE)
        confidence = self.choice(4, "Confidence: ")
        p = shares([option.id for option in step.options], chosen, confidence)
        data = {"question": f"{lesson.name}.{step.id}", "options": list(p), "choice": step.options[chosen].id, "confidence": confidence}
        sentences = {"prompt": step.words, "labels": {option.id: option.text for option in step.options}}  # for the page of a class
        self.record("bet", {**data, "p": p, **sentences})

    def _reveal(self, lesson: Lesson, step: Reveal) -> None:
        """Say what happened, as it was measured, and what the bet cost."""
        bet = next(other for other in lesson.steps if isinstance(other, Bet) and other.id == step.bet)
        question = f"{lesson.name}.{step.bet}"
        waiting.show("measuring")
        try:
            outcome = OUTCOMES[step.outcome][0](Measured(self.store, self.progress))
        except MiniGPTError as error:
            screen.say(f"Nothing was measured for this bet, so nothing is revealed: {error}.")
            self.record("skipped")
            return
        finally:
            waiting.remove()
        happened = next(option for option in bet.options if option.id == outcome.option)
        placed = self.progress.bet(question)
        p = placed.data["p"].get(happened.id) if placed else None
        said = happened.after.format(**outcome.figures)
        paid = "" if p is None else cost_sentence(p, len(bet.options))
        screen.show(self._screen(lesson, step.model_copy(update={"words": f"{said}\n\n{paid}\n\n{step.words}".strip()})))
        self.record("revealed", {"question": question, "outcome": happened.id, "nats": None if p is None else cost(p)})
        self.pause()

    def _ask(self, lesson: Lesson, step: Ask) -> None:
        screen.show(self._screen(lesson, step, options=[answer.text for answer in step.answers]))
        chosen = step.answers[self.choice(len(step.answers), "Your answer: ") - 1]
        right = next(answer for answer in step.answers if answer.right)
        screen.say(
            f"Yes. {chosen.reply}" if chosen.right else f"No. {chosen.reply}\n\nRight is {step.answers.index(right) + 1}: {right.reply}"
        )
        choice = step.answers.index(chosen) + 1
        self.record("asked", {"question": f"{lesson.name}.{step.id}", "choice": str(choice), "right": chosen.right})
        self.pause()

    # ---- the ward

    def _case(self, lesson: Lesson, step: Case) -> None:
        """Show a run and ask what it has."""
        case = self._own_case() if step.n is None else ward.draw(self.progress.seed, 1, after=step.n)[0]
        heading = self._screen(lesson, step).heading
        screen.show(Screen(heading, step.words, rows=case.screen, options=[option.text for option in case.options]))
        chosen = case.options[self.choice(len(case.options), "Your answer: ") - 1]
        right = next(option for option in case.options if option.id == case.answer)
        if step.told:
            screen.show(Screen("Yes." if chosen == right else f"No: {right.text}", "\n\n".join(case.explanation)))
        data = {"question": f"{lesson.name}.{case.name}", "choice": chosen.id, "right": chosen == right}
        self.record("asked", {**data, "answer": chosen.text, "right_answer": right.text})
        if step.told:
            self.pause()

    def _own_case(self) -> ward.Case:
        """A run that is trained on the learner's text with a fault. Nothing is shown of the training: it would give the fault away."""
        source = self.progress.text
        fault, argv = ward.own_training(self.progress.seed, shown_source(source) if source else None)
        while not (made := self._hidden_trainings()):
            screen.say("The next run is trained on your text, which takes some seconds. Nothing of that is shown.")
            self.line("Enter trains it: ")
            waiting.show("training a run on your text")
            argv = [*argv, "--name", self.free_name("patient")]
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                code = self.command(argv)
            if code in (0, 3):  # finished, or diverged
                self.record("ran", {"argv": argv, "code": code})
            else:
                screen.say(f"It ended with code {code}. Enter tries again; /skip leaves it out.")
                self.pause()
        return ward.case_of(self.store.find(made[-1][-1]), fault)

    def _hidden_trainings(self) -> list[list[str]]:
        """The arguments of the trainings of this step; the last of each is the name of the run."""
        ran = [event.data["argv"] for event in self.progress.since if event.event == "ran"]
        return [argv for argv in ran if "--json" in argv and argv[-2:-1] == ["--name"]]


def _lesson(name: str) -> Lesson:
    found = lesson_named(name)
    assert found is not None  # places are those of lessons
    return found


_WELCOME = """\
An hour after which you can explain a GPT, on a text of your own. You bet, you run, you see, you answer one why.

Which text? Type or drag the path of a file here: a book or your notes, 100,000 characters or more. Enter alone takes the default text.

Nothing is lost when you stop: minigpt --learn continues at the same step. /help lists what you can type."""
_END = """\
Go on with a model of your own: minigpt train with your text trains a better one in three minutes. /goto build writes a GPT yourself."""
