"""Many processes in one runs directory: which commands they run, and what must hold whatever they do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from minigpt_cli.errors import MiniGPTError, RunLocked
from minigpt_cli.runstore.directory import DamagedRun
from minigpt_cli.runstore.store import RunStore

from . import tiny
from .processes import Ended, Process, Processes
from .results import complaint, without_a_whole_generation

HANGS_S = 300.0
KEPT = 3  # runs that are never removed, so that their tags can be asked for at the end
MANY = 30  # runs: from here on more are removed than made
NOT_YET = ("run.json is missing: not a run, or one that never saved", "names no files: no checkpoint was saved")
"""What is said of a run between its folder and its first save, or killed there."""
NO_BASE = "has those weights"  # another process removed the base of its adapters
COMPUTE = ["--device=cpu", "--precision=fp32", "--compile=off", "--threads=1"]
TRAINING = [*COMPUTE, "--attention=plain", "--batch-size=4", "--eval-every=4", "--eval-iters=2", "--warmup-steps=2"]


class Command(NamedTuple):
    """A command that is running."""

    kind: str
    process: Process
    tag: str  # the word that it sets
    due: list[tuple[float, int]]  # when which signal will be sent


class Crowd:
    """Many processes that use one runs directory, and what came of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.runs, self.out, self.chance = folder, folder / "runs", folder / "out", Random(seed)
        self.processes = Processes({"MINIGPT_DATA_DIR": str(folder / "data"), "MINIGPT_RUNS_DIR": str(self.runs)})
        self.begun = time.monotonic()
        self.outcomes, self.said, self.findings = Counter[str](), Counter[str](), Counter[str]()
        self.signals = 0
        self.tags: set[str] = set()  # that were set on a run that stays
        self.notes = {""}
        self._number = count(1)
        self._now: list[Command] = []

    # ---- running

    def work(self, seconds: float, processes: int) -> None:
        """Let so many processes type for so long."""
        self.out.mkdir()
        (self.folder / "text.txt").write_text(tiny.text())
        (self.folder / "other.txt").write_text(tiny.text(700)[::-1])
        (self.folder / "chats.jsonl").write_text(tiny.chats())
        for number in range(KEPT):
            self._judge(Command("train", self.processes.start(self._train(f"keep{number}")), "", []))
        end, said = time.monotonic() + seconds, time.monotonic()
        with suppress(KeyboardInterrupt):
            while time.monotonic() < end:
                while len(self._now) < processes:
                    self._now.append(self._start())
                self._wait()
                if time.monotonic() - said > 60:
                    said = time.monotonic()
                    print(json.dumps(self.figures()), file=sys.stderr, flush=True)
        for command in self._now:
            command.process.kill()
        self._now.clear()

    def _wait(self) -> None:
        """Send the signals that are due, and judge what has ended."""
        ended = [command for command in self._now if command.process.wait(0.0)]
        if not ended:
            time.sleep(0.002)
        for command in self._now:
            age = time.monotonic() - command.process.started
            if command.due and age >= command.due[0][0] and command.process.is_ready():
                command.process.signal(command.due.pop(0)[1])
                self.signals += 1
            if age > HANGS_S:
                self.findings[f"{command.kind}: hangs: {' '.join(command.process.arguments)}"] += 1
                command.process.signal(signal.SIGKILL, group=True)
        for command in ended:
            self._now.remove(command)
            self._judge(command)

    def _start(self) -> Command:
        kind, arguments, tag = self._draw()
        due = []
        if self.chance.random() < 0.2:
            numbers = self.chance.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [3, 1, 1], k=self.chance.choice([1, 1, 2]))
            due = sorted((self.chance.uniform(0, 1.5), int(number)) for number in numbers)
        return Command(kind, self.processes.start(arguments), tag, due)

    # ---- commands

    def _draw(self) -> tuple[str, list[str], str]:
        """A kind of command, its arguments, and the tag that it sets on a run that stays."""
        runs = [name for name in os.listdir(self.runs) if not name.startswith(".")]
        run, other, new = self.chance.choice(runs), self.chance.choice(runs), f"n{next(self._number)}"
        kept = self.chance.choice([name for name in runs if name.startswith("keep")])
        marked = self.chance.choice([run, kept, kept])
        word = new if marked.startswith("keep") else ""
        text, page = str(self.folder / "text.txt"), str(self.out / f"{new}.html")
        commands: dict[str, list[list[str]]] = {
            "train": [self._train(new), self._train(), [*self._train(f"g{self.chance.randint(1, 3)}"), "--sweep=lr=1e-3,3e-3"]],
            "resume": [["train", "--resume", name] for name in (run, run, "latest")],
            "continue": [["train", "--resume", run, f"--max-steps={self.chance.randint(10, 60)}"]],
            "begin from": [["train", text, "--init-from", run, "--max-steps=6", *COMPUTE, f"--lora-rank={rank}"] for rank in (0, 2)],
            "tokenize": [["tokenize", text, f"--tokenizer={name}", "--vocab-size=270"] for name in ("char", "byte", "bpe")],
            "eval": [["eval", run, "--json"], ["eval", run, "--data", str(self.folder / "other.txt"), "--json"], ["eval", "--json"]],
            "generate": [["generate", run, "--max-new-tokens=5", "--json"], ["generate", "top", "--max-new-tokens=5", "--probs"]],
            "compare": [["compare", run, other, "--json"], ["compare", run, other, f"--plot={page}"]],
            "list": [["runs", "list", "--json"], ["runs", "list", "--where=lr<1", "--sort=-created_at", "--csv"]],
            "leaderboard": [["runs", "leaderboard", "--json"], ["runs", "leaderboard", "--fold-seeds"]],
            "show": [["runs", "show", name, "--json"] for name in (run, "latest", "top")],
            "diff": [["runs", "diff", run, other, "--json"]],
            "plot": [["runs", "plot", run, other], ["runs", "plot", run, "--html", page]],
            "watch": [["runs", "watch", run]],
            "verify": [["runs", "verify", run, "--json"]],
            "tag": [["runs", "tag", marked, new]] * 3,
            "note": [["runs", "note", marked, f"note {new}"], ["runs", "note", marked]],
            "rename": [["runs", "rename", run, f"keep{new}" if run.startswith("keep") else new]],
            "rm": [["runs", "rm", *{name for name in (run, other) if not name.startswith("keep")}, "--yes"]],
            "export": [["runs", "export", run, f"--format={kind}", "--out", str(self.out / new)] for kind in ("hf", "hf", "gguf")],
            "import": [["runs", "import", str(folder)] for folder in self.out.iterdir() if (folder / "config.json").exists()],
        }  # fmt: skip
        often = {"tag": 3, "train": 2, "resume": 2, "rename": 2, "rm": 4 if len(runs) > MANY else 1, "watch": 0.2}
        kinds = [kind for kind, choices in commands.items() if choices]
        kind = self.chance.choices(kinds, [often.get(kind, 1) for kind in kinds])[0]
        arguments = self.chance.choice(commands[kind])
        if kind == "note" and len(arguments) > 3:
            self.notes.add(arguments[3])
        return kind, arguments, word if kind == "tag" else ""

    def _train(self, name: str = "") -> list[str]:
        arch = self.chance.choice(["bigram", "classic", "modern", "moe"])
        source = self.chance.choice(
            [["text.txt"], ["text.txt", "--tokenizer=bpe", "--vocab-size=270"], ["chats.jsonl", "--tokenizer=byte"]]
        )
        shape = tiny.sizes() if arch != "bigram" else ["--block-size=8"]
        steps = [f"--max-steps={self.chance.choice([4, 12, 30])}", f"--save-every={self.chance.choice([0, 1, 3])}"]
        named = ["--name", name] if name else []
        return ["train", str(self.folder / source[0]), *source[1:], f"--arch={arch}", *shape, *TRAINING, *steps, *named]

    # ---- what must hold

    def _judge(self, command: Command) -> None:
        ended = command.process.ended()
        self.outcomes[f"{command.kind} {ended.code}"] += 1
        if ended.code > 0 and ended.err.strip():
            self.said[_general(ended.err.strip().splitlines()[-1])] += 1
        if wrong := self._wrong(command, ended):
            self.findings[f"{command.kind}: {wrong}"[:900]] += 1
        if ended.code == 0 and command.tag:
            self.tags.add(command.tag)

    def _wrong(self, command: Command, ended: Ended) -> str | None:
        sent = set(command.process.sent)
        if ended.code < 0:
            return None if -ended.code in sent else f"died of signal {-ended.code}"
        if wrong := complaint(ended.code, ended.err, findings=_tells_apart(ended), signalled=bool(sent)):
            return wrong
        if ended.code == 0 and "--json" in ended.arguments:
            with suppress(json.JSONDecodeError):
                return self._misread(command.kind, ended.json())
            return f"not one JSON document: {ended.out[-200:]!r}"
        return None

    def _misread(self, kind: str, found: Any) -> str | None:
        """A broken record that a reader was shown."""
        reasons = [row["reason"] for row in found if row["status"] == "damaged"] if kind == "list" else []
        return next((f"shows {_general(reason)}" for reason in reasons if not reason.endswith(NOT_YET)), None)

    def check(self) -> None:
        """What must hold at the end, when nobody works any more."""
        store, tags = RunStore(self.runs), set[str]()
        for entry in store.list():
            if isinstance(entry, DamagedRun):
                if not entry.reason.endswith(NOT_YET):
                    self.findings[f"at the end: {_general(entry.reason)}"] += 1
                continue
            try:
                with store.lock(entry):
                    pass  # which removes what killed processes left
            except RunLocked:
                self.findings["at the end: a run is locked"] += 1
            problems = without_a_whole_generation(entry)
            if problems and not any(message.endswith((*NOT_YET, NO_BASE)) for message in problems):
                self.findings[f"at the end: {_general(problems[0])}"] += 1
            with suppress(MiniGPTError):
                tags |= set(entry.annotations.tags)
                if entry.annotations.note not in self.notes:
                    self.findings["at the end: a note that nobody wrote"] += 1
        if lost := self.tags - tags:
            self.findings[f"{len(lost)} of {len(self.tags)} tags are lost"] += 1
        for left in self.runs.glob("[!.]*/**/*.tmp"):  # a run that was being removed, and scores, are tidied up a day later
            if left.parent.name != "scores":
                self.findings[f"left behind: {left.name.partition('.')[0]} in {left.parent.name}"] += 1
        for page in self.out.glob("*.html"):
            if not page.read_text().rstrip().endswith("</html>"):
                self.findings["a page is cut off"] += 1

    def keep(self, folder: Path) -> None:
        """Copy all that is there."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)

    def figures(self) -> dict[str, Any]:
        """What was done and found."""
        kinds = Counter[str]()
        for outcome, n in self.outcomes.items():
            kinds[outcome.rpartition(" ")[0]] += n
        return {
            "commands": sum(self.outcomes.values()),
            "signals": self.signals,
            "tags": len(self.tags),
            "by_kind": dict(kinds.most_common()),
            "codes": dict(Counter(int(outcome.rpartition(" ")[2]) for outcome in self.outcomes.elements()).most_common()),
            "findings": dict(self.findings),
            "said": dict(self.said.most_common(40)),
            "elapsed_s": round(time.monotonic() - self.begun, 1),
        }


def _tells_apart(ended: Ended) -> bool:
    """Whether the command says of each of several things how it went, and fails if one did."""
    return "verify" in ended.arguments or any(word.startswith("--sweep") for word in ended.arguments)


def _general(line: str) -> str:
    """A line without the names and numbers that make each different."""
    words = ("…" if "/" in word or any(c.isdigit() for c in word) else word for word in line.split())
    return " ".join(words)[:200]
