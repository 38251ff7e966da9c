"""The guessing game as it is played, a line for each try, and the scores beside those of models. No torch."""

from __future__ import annotations

import numpy as np

from minigpt_cli.course.events import GUESS
from minigpt_cli.course.guessing import TRIES, Game, difference
from minigpt_cli.course.progress import Progress
from minigpt_cli.course.session import Session
from minigpt_cli.display import course as screen
from minigpt_cli.display.course import Screen
from minigpt_cli.display.format import bar
from minigpt_cli.errors import UsageError
from minigpt_cli.escaping import printable
from minigpt_cli.evaluation.statistics import Estimate

_TAIL, _ROW = 36, 70  # characters before the one that is guessed, and in a row of the passage
_FOOTER = (
    f"Type the next character and Enter, or several while you are sure. A space counts, \\n is a line end. {TRIES} tries for each. "
    "Enter alone: show it."
)


def play(session: Session, shown: Screen, game: Game) -> None:
    """Play a game to its end. Raises Left and Moved."""
    passage = visible(game.context)
    rows = [f"  {passage[i : i + _ROW]}" for i in range(0, len(passage), _ROW)]
    screen.show(Screen(shown.heading, shown.text, rows=rows, footer=_FOOTER))
    while not game.done:
        typed = session.line(f"{len(game.target) - game.position:>2} left  {visible(game.shown[-_TAIL:])}", raw=True)
        if typed.startswith("minigpt "):
            session.ran(typed)
            continue
        position = game.position
        try:
            came = _try_all(game, typed)
        except UsageError as error:
            screen.say(f"{str(error).capitalize()}.")
            continue
        if came == "":
            left = f"{game.tries_left} {'try' if game.tries_left == 1 else 'tries'} left"
            screen.say(f"No: {left}." if game.position == position else f"Right up to here; {left} for this one.")
        elif came is not None:
            screen.say(f"It was {visible(came)}")


def _try_all(game: Game, typed: str) -> str | None:
    """Try the characters of a line up to the first that is wrong: None where all are right, empty where there are more tries for that one,
    else the character that came. An empty line gives one up."""
    if typed == "":
        came = game.target[game.position]
        game.give_up()
        return came
    for char in typed.replace("\\n", "\n").replace("⏎", "\n"):
        if game.done:
            break
        position = game.position
        if not game.guess(char):
            return game.target[position] if game.position > position else ""
    return None


def visible(text: str) -> str:
    """A passage on one line: line ends as ⏎, a space at its end as ␣."""
    flat = text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\r", "").replace("\t", " ")
    return printable(f"{flat[:-1]}␣" if flat.endswith(" ") else flat, keep="")


def score_rows(progress: Progress) -> list[str]:
    """The learner's nats per character, beside counts and models on the same characters; of each the difference to the learner."""
    game = progress.last("guessed", GUESS)
    assert game is not None
    played = [event.data for event in progress.events if event.event == "guessed" and "run" in event.data]
    you, n = np.array(game.data["nats"]), game.data["n_chars"]
    others = {"uniform": np.full(n, game.data["uniform"]), "character pairs": np.array(game.data["bigram_nats"])}
    others |= {data["run"]: np.array(data["nats"]) for data in played if data["n_chars"] == n}
    apart = {name: difference(nats, you) for name, nats in others.items()}
    rows = [("you", float(you.mean()), ""), *((name, float(others[name].mean()), _interval(found)) for name, found in apart.items())]
    rows.sort(key=lambda row: row[1])
    longest = rows[-1][1]
    table = [f"  {name[:20]:20} {value:5.2f}  {bar(value / longest, 24):25} {interval}" for name, value, interval in rows]
    return [*table, "", f"On the right, the difference to you, ± its 95 % interval: {n} characters leave much to luck."]


def _interval(found: Estimate) -> str:
    return f"{found.mean:+.2f} ±{found.mean - found.low:.2f}"
