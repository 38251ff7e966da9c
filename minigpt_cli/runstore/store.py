"""runs/<name>/: finding, creating, locking and reading runs. No torch.

Every file of a run directory is checked before it is used: a foreign or damaged directory is listed as such and breaks
nothing. One process at a time writes to a run. The kernel frees its lock when the process ends, and a run whose record says
`running` without a lock is shown as `crashed`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from minigpt_cli.errors import RunDamaged, RunNotFound, UsageError, unknown_name
from minigpt_cli.runstore import locks
from minigpt_cli.runstore.directory import LOCK, PREVIOUS, RECORD, TEACHER, DamagedRun, Run
from minigpt_cli.runstore.weights import checkpoint_named, checkpoint_of_file
from minigpt_cli.storage import atomic_io

RESERVED_NAMES = ("latest", "top")
_NAME = re.compile(r"[^\W_][\w.+=,@~-]{0,99}")
_TWINS = str.maketrans("авекмнорстухіјѕһԁԛԝαβεικνορτυχ", "abekmhopctyxijshdqwabeikvoptux")  # Cyrillic and Greek that look Latin


def resolve_runs_dir(flag: str | Path | None = None) -> Path:
    """Where runs live: --runs-dir, else MINIGPT_RUNS_DIR, else ./runs."""
    return Path(flag or os.environ.get("MINIGPT_RUNS_DIR") or "runs").expanduser()


def check_name(name: str) -> str:
    """`name`, if a run may have it. Raises UsageError."""
    if name in RESERVED_NAMES:
        raise UsageError(f"a run cannot be named {name!r}: this word means the {'newest' if name == 'latest' else 'best'} run")
    if not _NAME.fullmatch(name) or len(name.encode("utf-8")) > 200 or name.endswith((atomic_io.TEMPORARY, ".")):
        raise UsageError(
            f"{atomic_io.one_line(repr(name), 80)} cannot name a run: "
            "use up to 100 letters, digits and . _ + = , @ ~ -, beginning with a letter or digit"
        )
    if (plain := unicodedata.normalize("NFKC", name)) != name:
        raise UsageError(f"{name!r} has letters that look like others: write {atomic_io.one_line(repr(plain), 110)}")
    if len(scripts := {unicodedata.name(c, "?").split()[0].title() for c in name if c.lower() != c.upper()}) > 1:
        raise UsageError(f"{name!r} mixes {' and '.join(sorted(scripts))} letters, which look alike: use those of one alphabet")
    return name


def lookalike_key(name: str) -> str:
    """Equal for names that look alike: lower case, with Latin letters for those that look like them."""
    return name.casefold().translate(_TWINS)


def run_at(path: Path) -> Run | None:
    """The run at this path, which is its folder or one of its checkpoints; None for any other path."""
    path = path.expanduser()
    checkpoint = checkpoint_of_file(path.name) if os.path.isfile(path) else None
    folder = Path(os.path.abspath(path.parent if checkpoint else path))
    if not os.path.isfile(folder / RECORD) or folder.name == PREVIOUS:
        return None
    run = Run(folder)
    run.checkpoint = checkpoint
    return run


def by_text(runs: Iterable[Run]) -> list[list[Run]]:
    """Scored runs in lists, one for each validation text, best first; the text of the most recently saved run comes first. Runs that were
    trained without a part, such as the mask, are left out: without it a model sees what it has to predict."""
    groups: dict[str, list[tuple[float, int, str, Run]]] = defaultdict(list)
    for run in runs:
        if (best := run.record.best) is not None and not run.without:
            groups[run.record.text_sha256].append((best.nats_per_char, run.record.n_params, run.name, run))
    ordered = [[run for *_, run in sorted(group, key=lambda entry: entry[:3])] for group in groups.values()]
    return sorted(ordered, key=lambda group: max((r.record.place, r.record.created_at) for r in group), reverse=True)


def _readable(run: Run) -> Run:
    """`run`, if its record can be read. Raises RunDamaged."""
    if not atomic_io.is_inside_real_folder(run.dir):
        raise RunDamaged(f"{run.dir} is a symbolic link: a run must be a real folder")
    try:
        _ = run.record
    except RunDamaged as error:
        raise RunDamaged(f"run {atomic_io.one_line(run.name, 100)} is damaged: {error}") from error
    return run


def _at(run: Run, checkpoint: str | None) -> Run:
    """`run`, with the checkpoint that was named, if any. Raises UsageError if its path is that of another."""
    if checkpoint is not None:
        run.checkpoint = run.checkpoint_to_read(checkpoint)
    return run


class RunStore:
    """All runs in one folder."""

    def __init__(self, runs_dir: Path | str | None = None) -> None:
        self.dir = resolve_runs_dir(runs_dir)

    def names(self) -> Sequence[str]:
        """Sorted names of the folders that may be runs; none is opened."""
        try:
            with os.scandir(self.dir) as entries:
                return sorted(e.name for e in entries if not e.name.startswith(".") and (e.is_symlink() or e.is_dir(follow_symlinks=False)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise atomic_io.explain(error, "read the runs directory") from error

    def list(self) -> list[Run | DamagedRun]:
        """Every run, the last saved last, then folders that are damaged or not runs."""
        found = [self._open(name) for name in self.names()]  # None for a run that was renamed or removed meanwhile
        good = [run for run in found if isinstance(run, Run)]
        good.sort(key=lambda r: (r.record.place, r.record.created_at, r.name))
        return [*good, *(run for run in found if isinstance(run, DamagedRun))]

    def runs(self) -> Sequence[Run]:
        """The readable runs, the last saved last."""
        return [run for run in self.list() if isinstance(run, Run)]

    def _open(self, name: str) -> Run | DamagedRun | None:
        run = Run(self.dir / name)
        try:
            if not atomic_io.is_inside_real_folder(run.dir):
                raise RunDamaged("a symbolic link: a run must be a real folder")
            run.read()
        except RunDamaged as error:
            return DamagedRun(name, run.dir, str(error)) if os.path.lexists(run.dir) else None
        return run

    def find(self, wanted: str = "latest") -> Run:
        """The run of this name or prefix, `latest` (last saved), `top` (first on the leaderboard), or at this path (its folder or one of
        its checkpoints), or the one that matches a pattern with `*`; RUN@STEP, RUN@best and RUN@last also name a checkpoint of it.
        Raises RunNotFound, RunDamaged."""
        name, checkpoint = self.parts(wanted)
        return _at(self._find(name), checkpoint)

    def parts(self, wanted: str) -> tuple[str, str | None]:
        """RUN and the checkpoint of RUN@CHECKPOINT; a name without one, and one that a run's own name begins with, stays whole."""
        match = re.fullmatch(r"(.+)@(best|last|[0-9]{1,15})", wanted, re.DOTALL)
        if match is None or os.path.lexists(self.dir / wanted) or any(name.startswith(wanted) for name in self.names()):
            return wanted, None
        return match[1], checkpoint_named(match[2])

    def _find(self, wanted: str) -> Run:
        if "*" in wanted and not re.search(r"[/\\]", wanted):
            first, *others = self.matching(wanted)
            if others:
                some = atomic_io.one_line(", ".join(run.name for run in [first, *others[:4]]), 200)
                raise RunNotFound(f"{atomic_io.one_line(repr(wanted), 80)} matches {1 + len(others)} runs, and this takes one run: {some}")
            return first
        if not re.search(r"[/\\]", wanted):
            try:
                return self._find_name(wanted)
            except RunNotFound:
                if (run := run_at(Path(wanted))) is None:
                    raise
        elif (run := run_at(Path(wanted)) or self._teacher(wanted)) is None:
            shown = atomic_io.one_line(wanted, 200)
            raise RunNotFound(f"there is no run at {shown}: name a run's folder, or a checkpoint in it, such as best.safetensors")
        return _readable(run)

    def _teacher(self, wanted: str) -> Run | None:
        """The run that NAME/teacher or NAME/teacher/teacher means; None for any other text. Raises RunNotFound if there is no run NAME."""
        name, *teachers = wanted.split("/")
        return run_at(self._find_name(name).dir.joinpath(*teachers)) if {*teachers} == {TEACHER} else None

    def matching(self, pattern: str) -> Sequence[Run]:
        """The runs whose names match a pattern with `*`. Raises RunNotFound if there is none."""
        if not (found := [run for run in self.runs() if fnmatchcase(run.name, pattern)]):
            raise RunNotFound(f"no run in {self.dir} matches {atomic_io.one_line(repr(pattern), 80)}")
        return found

    def find_all(self, names: Sequence[str]) -> Sequence[Run]:
        """The runs of these names and patterns, each once with the same checkpoint. Raises RunNotFound, RunDamaged."""
        found = []
        for wanted in names:
            name, checkpoint = self.parts(wanted)
            found += [_at(run, checkpoint) for run in (self.matching(name) if "*" in name else [self._find(name)])]
        return [*{(run.dir, run.checkpoint): run for run in found}.values()]

    def find_name(self, wanted: str) -> Run:
        """The run of this name or prefix, `latest` or `top`, in this folder, also with a checkpoint: for clients that may not choose a
        path. Raises RunNotFound, RunDamaged."""
        name, checkpoint = self.parts(wanted)
        return _at(self._find_name(name), checkpoint)

    def _find_name(self, wanted: str) -> Run:
        if wanted == "latest":
            if not (runs := self.runs()):
                raise RunNotFound(f"no runs in {self.dir} yet: start with minigpt train")
            return max(runs, key=lambda r: (r.record.place, r.record.created_at, r.name))
        if wanted == "top":
            if not (groups := by_text(self.runs())):
                raise RunNotFound(f"no scored runs in {self.dir} yet: start with minigpt train")
            return groups[0][0]
        names = self.names()
        if wanted not in names:
            matches = [name for name in names if wanted and name.startswith(wanted)]
            if len(matches) > 1:
                some = atomic_io.one_line(", ".join(matches[:5]))
                raise RunNotFound(f"{atomic_io.one_line(repr(wanted), 80)} begins the names of {len(matches)} runs: {some}")
            if not matches:
                raise self._no_such_run(wanted, names)
            wanted = matches[0]
        run = Run(self.dir / wanted)
        try:
            return _readable(run)
        except RunDamaged as error:
            if not os.path.lexists(run.dir):
                raise self._no_such_run(wanted, self.names()) from error
            raise

    def _no_such_run(self, wanted: str, names: Sequence[str]) -> RunNotFound:
        if not names:
            return RunNotFound(f"no runs in {self.dir} yet: start with minigpt train")
        unknown = unknown_name("run", atomic_io.one_line(wanted, 80), (atomic_io.one_line(n, 100) for n in names))
        return RunNotFound(f"{unknown} (in {self.dir})")

    def create(self, name: str | None = None, arch: str = "run") -> Run:
        """A new, empty run directory: of this name, or `<arch>-<n>` with the next free n. Raises UsageError if it exists."""
        if name is not None:
            check_name(name)
        with atomic_io.explained("create"):
            self.dir.mkdir(parents=True, exist_ok=True)
            with locks.alone_in(self.dir):
                if name is not None:
                    self._check_free(name, f"choose another --name, or continue it with --resume {name}")
                    os.mkdir(self.dir / name)
                    return Run(self.dir / name)
                taken = [int(m[1]) for n in self.names() if (m := re.fullmatch(re.escape(arch) + r"-(\d{1,9})", n))]
                number = max(taken, default=0)
                while True:
                    number += 1
                    with suppress(FileExistsError):  # another process was faster, on a file system without locks
                        os.mkdir(self.dir / f"{arch}-{number}")
                        return Run(self.dir / f"{arch}-{number}")

    def _check_free(self, name: str, advice: str, old: str | None = None) -> None:
        """Raise UsageError if a run has this name, or one other than `old` has a name that looks like it."""
        if os.path.lexists(self.dir / name):
            raise UsageError(f"run {name!r} exists already in {self.dir}: {advice}")
        for taken in self.names():
            if taken not in (name, old) and lookalike_key(taken) == lookalike_key(name):
                raise UsageError(f"run {name!r} looks like {atomic_io.one_line(repr(taken), 110)} in {self.dir}: choose another name")

    @contextmanager
    def new_run(self, name: str | None = None, arch: str = "run") -> Iterator[Run]:
        """A new run, locked; if the block fails before a record is written, the directory is removed."""
        run = self.create(name, arch)
        try:
            with self.lock(run):
                yield run
        except BaseException:
            if not os.path.lexists(run.file(RECORD)):
                shutil.rmtree(run.dir, ignore_errors=True)
            raise

    @contextmanager
    def lock(self, run: Run) -> Iterator[None]:
        """Hold the right to write to `run`. Raises RunLocked while another living process holds it."""
        with locks.holding(run.file(LOCK), f"run {run.name!r} is being trained by another process: wait for it or stop it first"):
            if atomic_io.leftovers(run.dir):
                with run.annotating():  # no temporary file is now being written: those here are of killed processes
                    atomic_io.sweep(run.dir)
            if atomic_io.is_inside_real_folder(run.dir / PREVIOUS):
                atomic_io.sweep(run.dir / PREVIOUS)
            yield

    def rename(self, run: Run, name: str) -> Run:
        """Give `run` another name. Raises UsageError if it is taken, RunLocked while the run is trained."""
        check_name(name)
        store = RunStore(run.dir.parent)  # a run that was given as a path may be in another folder
        target = store.dir / name
        store._check_free(name, "choose another name", run.name)  # before a lock leaves a file
        with self.lock(run), run.annotating(), atomic_io.explained("rename"), locks.alone_in(store.dir):
            store._check_free(name, "choose another name", run.name)
            os.rename(run.dir, target)
            atomic_io.sync_folder(store.dir)
        return Run(target)

    def of_group(self, group: str) -> Sequence[str]:
        """The names of the runs of a sweep or search; none is opened."""
        return [name for name in self.names() if name.startswith(f"{group}~")]

    def speeds(self, group: str) -> Path:
        """The file with the speeds that the runs of a group are planned for; it goes with the last of them."""
        return self.dir / f".{group}.speeds"

    def remove(self, run: Run | DamagedRun) -> None:
        """Delete a run directory. Raises RunLocked while the run is trained."""
        if not atomic_io.is_inside_real_folder(run.dir):
            raise RunDamaged(f"{run.dir} is a symbolic link: remove it yourself")
        atomic_io.sweep_abandoned(self.dir)  # runs that a killed process removed in part
        with self.lock(Run(run.dir)), Run(run.dir).annotating(), atomic_io.explained("remove"):
            doomed = run.dir.parent / f".{run.dir.name[:100]}.{secrets.token_hex(4)}{atomic_io.TEMPORARY}"
            os.utime(run.dir)  # somebody is at work on it, however old it is
            os.rename(run.dir, doomed)  # gone at once for every reader, even if deleting is interrupted
            try:
                shutil.rmtree(doomed)
            except OSError:
                os.rename(doomed, run.dir)  # what could not be deleted stays in sight
                raise
            for path in self.dir.glob(self.speeds("*").name):
                group = path.name.removeprefix(".").removesuffix(path.suffix)
                if run.dir.name.startswith(f"{group}~") and not self.of_group(group):
                    path.unlink(missing_ok=True)
