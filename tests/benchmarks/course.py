"""How long does the course of `minigpt --learn` compute, and how often does each outcome of its bets come up?

    python tests/benchmarks/course.py TEXT TEXT TEXT [--seeds 3] [--out DIR]

A scripted learner plays the whole course at real size through stdin: once for each text and seed, one after the other, on a machine that
has nothing else to do. The seed is that of every training, of the passage that is guessed and of the cases that are drawn. Characters are
guessed by a simulated player, who knows what followed the last five characters in the training text. What is done already is not done
again. JSON on stdout: seconds of each wait, the longest wait, their sum, minutes by construction, and how often each outcome came up.
A bet whose most frequent outcome came up in fewer than 8 of 9 plays is named: its lesson cannot count on it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.learner import Learner

from minigpt_cli.course.lesson import lessons
from minigpt_cli.runstore.journal import Journal

KNOWN = 5
"""Characters before the next that the simulated player looks at."""
TRAIN_FRAC = 0.9
MOST_LINES = 40
"""Under one heading; the game has up to 120 of its own."""
WAIT_S = 0.5
"""Shorter ones are left out of the list of waits; they are part of the sum."""


@dataclass
class Play:
    """What one play of the course took, and what came of its bets."""

    text: str
    seed: int
    total_s: float = 0.0
    waits: list[tuple[float, str]] = field(default_factory=list)  # seconds, and under which heading
    outcomes: dict[str, str] = field(default_factory=dict)  # of each bet
    answers: dict[str, str] = field(default_factory=dict)  # what each case had
    skipped: list[str] = field(default_factory=list)  # steps that the shown command did not pass, or where nothing was measured
    nats_per_char: float | None = None  # of the simulated player
    finished: int = 0


class Player:
    """Types what a learner types who always presses Enter."""

    def __init__(self, training: str) -> None:
        self._training = training
        self._left, self._tried = "", ""
        self._lines: Counter[str] = Counter()

    def answer(self, prompt: str, heading: str) -> str | None:
        """The line to type; None at the end of the course."""
        if heading == "The end":
            return None
        if " left  " in prompt:
            return self._guess(*prompt.split(" left  ", 1))
        self._lines[heading] += 1
        if self._lines[heading] > MOST_LINES:
            raise RuntimeError(f"the course stays at {heading!r}")
        if prompt == ">" and self._lines[heading] > 2:
            return "/skip"
        return "" if prompt == ">" or prompt.startswith("Enter") else "2"

    def _guess(self, left: str, shown: str) -> str:
        """The likeliest character that was not tried."""
        if left != self._left:
            self._left, self._tried = left, ""
        before = shown.replace("⏎", "\n").replace("␣", " ")
        for length in range(KNOWN, -1, -1):
            found = re.findall(f"{re.escape(before[len(before) - length :])}(.)", self._training, re.DOTALL)
            for char, _ in Counter(found).most_common():
                if char not in self._tried and char != "\r":
                    self._tried += char
                    return "\\n" if char == "\n" else char
        return ""


def play(text: Path, seed: int, folder: Path) -> Play:
    """Play the course on a text."""
    shutil.rmtree(folder, ignore_errors=True)  # a play that was interrupted
    folder.mkdir(parents=True)
    journal = Journal(folder / "runs")
    journal.append(lessons()[0].name, 0, "started", {"text": str(text.resolve()), "seed": seed})
    content = text.read_text(encoding="utf-8")
    player = Player(content[: int(TRAIN_FRAC * len(content))])
    found = Play(text.stem, seed)
    environment = {"MINIGPT_RUNS_DIR": str(folder / "runs"), "MINIGPT_DATA_DIR": str(folder / "data"), "MINIGPT_SEED": str(seed)}
    begun, heading = time.perf_counter(), "start"
    learner = Learner(folder, environment)
    while prompt := learner.prompt():
        wait = time.perf_counter() - begun
        found.total_s += wait
        if wait >= WAIT_S:
            found.waits.append((round(wait, 1), heading))
        if (typed := player.answer(prompt, learner.heading)) is None:
            break
        begun, heading = time.perf_counter(), learner.heading
        learner.type(typed)
    learner.end()
    (folder / "said.txt").write_text("\n".join(learner.lines), encoding="utf-8")
    for event in journal.events():
        if event.event == "revealed":
            found.outcomes[event.data["question"]] = event.data["outcome"]
        elif event.event == "asked" and "right_answer" in event.data:
            found.answers[event.data["question"]] = event.data["right_answer"]
        elif event.event == "skipped":
            found.skipped.append(f"{event.lesson} {event.step}")
        elif event.event == "guessed" and "ranks" in event.data:
            found.nats_per_char = event.data["nats_per_char"]
    found.finished = sum(event.event == "finished" for event in journal.events())
    return found


def report(plays: list[Play]) -> dict[str, Any]:
    """The figures of all plays."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    waits: dict[str, list[float]] = defaultdict(list)
    for one in plays:
        for question, outcome in one.outcomes.items():
            outcomes[question][outcome] += 1
        for seconds, heading in one.waits:
            waits[heading].append(seconds)
    enough = 8 / 9 * len(plays)
    minutes = {lesson.name: round(lesson.minutes, 1) for lesson in lessons()}
    return {
        "plays": len(plays),
        "computing_s": [round(one.total_s, 1) for one in plays],
        "longest_wait_s": [max((seconds for seconds, _ in one.waits), default=0.0) for one in plays],
        "waits_s": {heading: sorted(seconds) for heading, seconds in waits.items()},
        "minutes_by_construction": minutes | {"all": round(sum(lesson.minutes for lesson in lessons()), 1)},
        "outcomes": {question: dict(counts.most_common()) for question, counts in outcomes.items()},
        "to_rewrite": [question for question, counts in outcomes.items() if counts.most_common(1)[0][1] < enough],
        "skipped": [f"{one.text} {one.seed}: {', '.join(one.skipped)}" for one in plays if one.skipped],
        "unfinished": [f"{one.text} {one.seed}: {one.finished}" for one in plays if one.finished < len(lessons())],
        "simulated_player_nats_per_char": [one.nats_per_char for one in plays],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("course"))
    arguments = parser.parse_args()
    plays = []
    for seed in range(1, arguments.seeds + 1):
        for number, text in enumerate(arguments.texts):
            folder = arguments.out.resolve() / f"{number}-{seed}"
            kept = folder / "play.json"
            if not kept.is_file():
                print(f"{text.stem}, seed {seed}", file=sys.stderr, flush=True)
                kept.write_text(json.dumps(asdict(play(text, seed, folder))), encoding="utf-8")
            plays.append(Play(**json.loads(kept.read_text(encoding="utf-8"))))
    print(json.dumps(report(plays), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
