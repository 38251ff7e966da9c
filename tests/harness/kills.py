"""Trainings, sweeps and other writing commands, killed at random moments and gone on with as a person would, until they end."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from minigpt_cli import checkpoints
from minigpt_cli.errors import RunDamaged
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

from . import tiny
from .processes import Ended, Process, Processes
from .recipes import ARCHITECTURES, TRIALS, Recipe, recipe, search, sweep
from .results import complaint, differences
from .writers import SCENES, Scene, broken, is_saved

SHARES = {"train": 0.80, "compiled": 0.02, "sweep": 0.05, "search": 0.03, "command": 0.10}
"""How often a recipe is of each kind."""
DRAW = {"train": recipe, "compiled": partial(recipe, compiled=True), "sweep": sweep, "search": search}
REPEATS = 3
RUN = "run"


class Wrong(Exception):
    """A promise was broken; the message says which."""


class Loop:
    """Does everything twice in `runs`, undisturbed, which becomes `whole`, and killed, which becomes `parts`; and what came of it."""

    def __init__(self, folder: Path, rounds: int, kinds: Sequence[str] = tuple(SHARES), keep: Path | None = None) -> None:
        self.folder, self.rounds, self.kinds, self.keep = folder, rounds, kinds, keep
        self.runs, self.whole, self.parts, self.bases, self.out = (folder / name for name in ("runs", "whole", "parts", "bases", "out"))
        places = {"MINIGPT_RUNS_DIR": self.runs, "MINIGPT_DATA_DIR": folder / "data", "TORCHINDUCTOR_CACHE_DIR": folder / "inductor"}
        compiler = ["torch._inductor.compile_fx"] if "compiled" in kinds else []
        self.processes = Processes({name: str(place) for name, place in places.items()}, *compiler)
        self.kills = self.kills_in_a_call = self.kills_before_a_save = self.fallbacks = self.ends = self.recipes = 0
        self.features, self.refused = Counter[str](), Counter[str]()
        self.findings: list[dict[str, Any]] = []
        self.hangs_s = 300.0
        self._process: Process | None = None

    def prepare(self) -> None:
        """The texts, and runs to begin from."""
        (self.folder / "text.txt").write_text(tiny.text())
        (self.folder / "chats.jsonl").write_text(tiny.chats())
        for arch in ARCHITECTURES[1:]:
            flags = [*tiny.training(6, 3, 16), "--arch", arch, "--name", f"base-{arch}"]
            self._judge(self._run(["train", str(self.folder / "text.txt"), *flags]), wanted=(0,))
        self.runs.rename(self.bases)

    def one(self, chance: Random, number: int, arch: str | None) -> None:
        """Draw a recipe, do it undisturbed and killed, and compare."""
        kind = chance.choices(self.kinds, [SHARES[kind] for kind in self.kinds])[0]
        arch = arch or chance.choice(ARCHITECTURES)
        for folder in (self.runs, self.whole, self.parts, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        if chance.random() < 0.3:
            shutil.rmtree(self.folder / "data", ignore_errors=True)  # so that preparing the data is killed too
        before = self.kills
        drawn = chance.choice(SCENES) if kind == "command" else DRAW[kind](chance, arch)
        try:
            if isinstance(drawn, Scene):
                self._command(chance, drawn)
            else:
                {"sweep": self._sweep, "search": self._search}.get(kind, self._train)(chance, drawn)
        except Wrong as wrong:
            self.findings.append({"number": number, "kind": kind, "wrong": str(wrong), "arguments": drawn.flags})
            if self.keep:
                for folder in (self.runs, self.whole, self.parts, self.out):
                    shutil.copytree(folder, self.keep / str(number) / folder.name, dirs_exist_ok=True) if folder.is_dir() else None
        self.recipes += 1
        for feature in drawn.features:
            self.features[feature] += self.kills - before

    def stop(self) -> None:
        """End what is still running."""
        if self._process is not None:
            self._process.kill()

    # ---- one training

    def _train(self, chance: Random, drawn: Recipe) -> None:
        begin = ["train", *self._flags(drawn.flags), "--name", RUN, "--json"]
        more = ["train", "--resume", RUN, f"--max-steps={drawn.more_steps}", "--json"]
        self._take_bases(drawn.flags)
        alone = self._alone(begin)
        if alone.code == 2:
            self.refused[alone.err.strip().splitlines()[-1][:120]] += 1
            return
        alone_on = self._alone(more) if drawn.more_steps else None
        self.runs.rename(self.whole)
        for _ in self._repeats():
            shutil.rmtree(self.parts, ignore_errors=True)
            self._take_bases(drawn.flags)
            self._until_it_ends(chance, begin, alone)
            if alone_on:
                self._until_it_ends(chance, more, alone_on, is_new=False)
            self.runs.rename(self.parts)
            if drawn.measures:  # what was measured differs: repeat what was decided
                shutil.rmtree(self.whole)
                self._take_bases(drawn.flags)
                source = [flag for flag in drawn.flags if flag.startswith("--init-from")]
                self._alone(["train", "--config", str(self.parts / RUN / "config.json"), *source, "--name", RUN])
                self.runs.rename(self.whole)
            self._compare([RUN], repeated=drawn.measures)
            self.ends += 1

    def _until_it_ends(self, chance: Random, begin: list[str], alone: Ended, *, is_new: bool = True) -> None:
        """Kill and resume a run until it ends as it did `alone`."""
        seen, resume = -1, False
        for _ in range(chance.randint(10, 50)):
            ended = self._killed(chance, ["train", "--resume", RUN, "--json"] if resume else begin, alone)
            if ended.code != -9:
                break
            seen = self._still_there(RUN, max(seen, _announced(ended).get(RUN, -1)))
            if chance.random() < 0.05:
                self._look(chance)
            resume = is_new and seen >= 0
            if seen < 0:
                self.kills_before_a_save += 1
                self._remove(RUN)
        else:
            ended = self._run(["train", "--resume", RUN, "--json"] if resume else begin)
        self._judge(ended)
        if ended.code != alone.code:
            raise Wrong(f"ended with {ended.code}, alone with {alone.code}: {ended.err[-300:]}")

    def _still_there(self, name: str, seen: int) -> int:
        """The step of the newest loadable save, -1 where nothing was saved; not before the step that was `seen`."""
        run, saved = Run(self.runs / name), -1
        try:
            point = checkpoints.load_resume(run)
            saved = int(point.resume_state["step"])
            self.fallbacks += bool(point.notices)
        except RunDamaged as error:
            if seen >= 0:
                raise Wrong(f"the save of step {seen} of {name} is lost: {error}") from error
        if saved < seen:
            raise Wrong(f"the save of step {seen} of {name} is lost, step {saved} is what is left")
        return saved

    def _remove(self, name: str) -> None:
        """What a person does with a run that was killed before its first save."""
        if (self.runs / name).exists():
            self._judge(self._run(["runs", "rm", name, "--yes"]), wanted=(0,))

    def _look(self, chance: Random) -> None:
        """Read the killed run as it lies there."""
        words = ["runs list", "runs leaderboard", f"runs show {RUN}", f"runs verify {RUN}", f"eval {RUN}", f"runs diff {RUN} {RUN}"]
        words += [f"generate {RUN} --max-new-tokens 2 --prompt a"]
        arguments = chance.choice(words).split()
        self._judge(self._run(arguments), wanted=(0, 1, 2), findings="verify" in arguments)

    # ---- a group

    def _sweep(self, chance: Random, drawn: Recipe) -> None:
        command = ["train", *self._flags(drawn.flags), "--name", "group", "--json"]
        alone = self._alone(command)
        self.runs.rename(self.whole)
        for _ in self._repeats():
            shutil.rmtree(self.parts, ignore_errors=True)
            self._until_the_group_is_done(chance, command, alone)
            self.runs.rename(self.parts)
            names, found = ([run.name for run in RunStore(store).runs()] for store in (self.whole, self.parts))
            if names != found:
                raise Wrong(f"the group is {found}, alone {names}")
            self._compare(names)
            self.ends += len(names)

    def _search(self, chance: Random, drawn: Recipe) -> None:
        """What a search asks for depends on what it has seen, so each of its runs is compared with one of the same configuration."""
        command = ["train", *self._flags(drawn.flags), "--name", "group", "--json"]
        alone = self._alone(command)
        for _ in self._repeats():
            for store in (self.runs, self.whole, self.parts):
                shutil.rmtree(store, ignore_errors=True)
            self._until_the_group_is_done(chance, command, alone)
            self.runs.rename(self.parts)
            runs = RunStore(self.parts).runs()
            if [run.status for run in runs] != ["finished"] * TRIALS:
                raise Wrong(f"of {TRIALS} trials these came out: {', '.join(f'{run.name} {run.status}' for run in runs)}")
            for run in runs:
                self._alone(["train", "--config", str(run.file("config.json")), "--name", run.name], wanted=(0,))
            self.runs.rename(self.whole)
            self._compare([run.name for run in runs], repeated=True)
            self.ends += TRIALS

    def _until_the_group_is_done(self, chance: Random, command: list[str], alone: Ended) -> None:
        seen: dict[str, int] = {}
        for _ in range(chance.randint(10, 50)):
            ended = self._killed(chance, command, alone)
            if ended.code != -9:
                break
            for name, step in _announced(ended).items():
                seen[name] = max(seen.get(name, -1), step)
            seen = {name: self._still_there(name, step) for name, step in seen.items()}
        else:
            ended = self._run(command)
        self._judge(ended, wanted=(alone.code,))

    # ---- any other command that writes

    def _command(self, chance: Random, scene: Scene) -> None:
        """Kill a command until it ends; at every moment its effect is there whole or not at all."""
        arguments = [word.replace("FOLDER", str(self.folder)).replace("OUT", str(self.out)) for word in scene.flags]
        self._set(scene)
        alone = self._alone(arguments, wanted=(0,))
        after = scene.state(self.runs, self.out)
        for _ in self._repeats():
            self._until_it_is_done(chance, scene, arguments, alone, (self._set(scene), after))
            if (state := scene.state(self.runs, self.out)) != after:
                raise Wrong(f"ended with {state}, alone {after}"[:2000])
            if wrong := broken(self.runs, ""):
                raise Wrong(f"at the end: {wrong}")

    def _until_it_is_done(self, chance: Random, scene: Scene, arguments: list[str], alone: Ended, states: tuple[Any, Any]) -> None:
        for _ in range(chance.randint(2, 12)):
            ended = self._killed(chance, arguments, alone)
            if ended.code != -9:
                break
            if chance.random() < 0.3 and (wrong := broken(self.runs, scene.making)):
                raise Wrong(f"after a kill: {wrong}")
            if scene.making and not is_saved(self.runs / scene.making):
                self._remove(scene.making)
            if (state := scene.state(self.runs, self.out)) not in states:
                raise Wrong(f"half done: {state}, neither {states[0]} nor {states[1]}"[:2000])
            if state == states[1] and not scene.again:
                return
        else:
            ended = self._run(arguments)
        self._judge(ended, wanted=(0,))

    def _set(self, scene: Scene) -> Any:
        """Put everything where the scene begins; the state then."""
        for folder in (self.runs, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        self.out.mkdir()
        shutil.copytree(self.bases, self.runs)
        for words in scene.prepared:
            self._alone([word.replace("OUT", str(self.out)) for word in words], wanted=(0,))
        return scene.state(self.runs, self.out)

    # ---- processes

    def _repeats(self) -> Iterator[int]:
        """Do what is killed several times for each time that it is left alone, as long as kills are wanted."""
        for time in range(REPEATS):
            if self.kills < self.rounds:
                yield time

    def _killed(self, chance: Random, arguments: list[str], alone: Ended) -> Ended:
        """Kill a command at a random moment, half of the time in a call that changes a file; once there were kills enough, only run it."""
        if self.kills >= self.rounds:
            return self._run(arguments)
        early = chance.choices([0.1, 0.3, 0.6, 1.1], [2, 4, 2, 1])[0]
        if chance.random() < 0.5:
            ended = self._run(arguments, die_at_call=chance.randint(1, max(2, round(early * alone.calls))))
            self.kills_in_a_call += ended.code == -9
        else:
            self._process = process = self.processes.start(arguments)
            process.wait(chance.uniform(0, early * alone.elapsed_s))
            self._process = None
            ended = process.kill()
        self.kills += ended.code == -9
        return ended

    def _alone(self, arguments: list[str], wanted: Sequence[int] | None = None) -> Ended:
        """Run a command undisturbed, and count its calls that change files."""
        ended = self._run(arguments, count=True)
        self._judge(ended, wanted=wanted)
        return ended

    def _run(self, arguments: list[str], **how: Any) -> Ended:
        self._process = process = self.processes.start(arguments, **how)
        if not process.wait(self.hangs_s):
            process.kill()
            raise Wrong(f"hangs: {' '.join(arguments)}")
        self._process = None
        return process.ended()

    def _judge(self, ended: Ended, *, wanted: Sequence[int] | None = None, findings: bool = False) -> None:
        if wrong := complaint(ended.code, ended.err, findings=findings):
            raise Wrong(f"{' '.join(ended.arguments)}: {wrong}")
        if wanted is not None and ended.code not in wanted:
            raise Wrong(f"{' '.join(ended.arguments)}: exit code {ended.code}: {ended.err[-300:]}")

    def _compare(self, names: Sequence[str], *, repeated: bool = False) -> None:
        pairs = [(name, Run(self.whole / name), Run(self.parts / name)) for name in names]
        wrong = [f"{name}: {line}" for name, whole, parts in pairs for line in differences(whole, parts, repeated=repeated)]
        if wrong:
            raise Wrong("; ".join(wrong))

    def _flags(self, flags: Sequence[str]) -> list[str]:
        places = {"TEXT": str(self.folder / "text.txt"), "CHATS": str(self.folder / "chats.jsonl")}
        return [places.get(flag, flag) for flag in flags]

    def _take_bases(self, flags: Sequence[str]) -> None:
        for name in (flag.partition("=")[2] for flag in flags if flag.startswith("--init-from=")):
            shutil.copytree(self.bases / name, self.runs / name)


def _announced(ended: Ended) -> dict[str, int]:
    """The newest save of each run of which the command spoke."""
    found: dict[str, int] = {}
    for event in ended.events():
        if event["event"] == "saved":
            found[event["run"]] = int(event["step"])
    return found
