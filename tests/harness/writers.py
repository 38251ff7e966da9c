"""The commands besides train that write: what each changes, and whether a store is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minigpt_cli.errors import RunDamaged
from minigpt_cli.runstore.directory import RECORD, DamagedRun, Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import atomic_io

from .results import timeless, without_a_whole_generation

CLASSIC, MODERN = "base-classic", "base-modern"


class Scene(NamedTuple):
    """A command that writes."""

    name: str
    flags: tuple[str, ...]  # all that is typed; FOLDER holds the texts, OUT is for results
    state: Callable[[Path, Path], Any]  # of the store and of the folder for results: all that the command changes
    prepared: tuple[tuple[str, ...], ...] = ()  # commands to run first
    again: bool = True  # whether it can be repeated once it is done
    making: str = ""  # the run that it makes, which is not a run until it is saved

    @property
    def features(self) -> list[str]:
        """For counting."""
        return [self.name]


def files(folder: Path) -> dict[str, str]:
    """Name and hash of every file under a folder, without those that are hidden."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found[str(name)] = atomic_io.sha256(path.read_bytes())
    return found


def _in_results(store: Path, out: Path) -> Any:
    return files(out)


def _in_store(store: Path, out: Path) -> Any:
    return files(store)


def _marks(store: Path, out: Path) -> Any:
    return Run(store / MODERN).annotations.model_dump()


def _scores(store: Path, out: Path) -> Any:
    """Nothing but scores may change, and those that are there must be right: they come out of the checked cache."""
    return {name: sha for name, sha in files(store).items() if "/scores/" not in name}


def _kept(store: Path, out: Path) -> Any:
    """The record names all checkpoints over time or those that stay, and each is there as it says."""
    run = Run(store / MODERN)
    kept = run.read().kept
    return {name: [file.sha256, atomic_io.sha256(run.file(name).read_bytes())] for name, file in kept.items()}


def _imported(store: Path, out: Path) -> Any:
    """The weights of the imported run, and its record without the times."""
    run = Run(store / "imported")
    if not run.file(RECORD).exists():
        return None
    record = timeless(run.read().model_dump())
    return None if not run.record.files else [record, {n: r.sha256 for n, r in run.record.files.items() if n.startswith("last")}]


_KEEPING = ("train", "--resume", MODERN, "--max-steps=12", "--keep-every=1")
_EXPORT = ("runs", "export", CLASSIC, "--out", "OUT/hf")
SCENES = (
    Scene("tokenize", ("tokenize", "FOLDER/text.txt", "--out", "OUT/tokens", "--test-frac=0.05"), _in_results),
    Scene("tokenize bpe", ("tokenize", "FOLDER/text.txt", "--out=OUT/tokens", "--tokenizer=bpe", "--vocab-size=270"), _in_results),
    Scene("tokenize chats", ("tokenize", "FOLDER/chats.jsonl", "--out=OUT/tokens", "--tokenizer=byte"), _in_results),
    Scene("tag", ("runs", "tag", MODERN, "keep", "baseline"), _marks, (("runs", "note", MODERN, "first"),)),
    Scene("untag", ("runs", "tag", MODERN, "keep", "--remove"), _marks, (("runs", "tag", MODERN, "keep", "other"),)),
    Scene("note", ("runs", "note", MODERN, "a note"), _marks, (("runs", "tag", MODERN, "keep"),)),
    Scene("prune", ("runs", "prune", MODERN, "--keep=2", "--yes"), _kept, (_KEEPING,)),
    Scene("rename", ("runs", "rename", CLASSIC, "other"), _in_store, again=False),
    Scene("rm", ("runs", "rm", CLASSIC, "--yes"), _in_store, again=False),
    Scene("export", _EXPORT, _in_results, again=False),
    Scene("export gguf", ("runs", "export", MODERN, "--format=gguf", "--out=OUT/gguf"), _in_results, again=False),
    Scene("import", ("runs", "import", "OUT/hf", "--name=imported"), _imported, (_EXPORT,), again=False, making="imported"),
    Scene("eval", ("eval", MODERN, "--split=train"), _scores),
    Scene("compare", ("compare", MODERN, CLASSIC, "--plot=OUT/page.html"), _scores),
    Scene("leaderboard", ("runs", "leaderboard"), _scores),
)


def is_saved(folder: Path) -> bool:
    """Whether there is a run with a save in it."""
    try:
        return bool(Run(folder).read().files)
    except RunDamaged:
        return False


def broken(store: Path, making: str) -> str:
    """What is wrong with a store, if anything is: a damaged run other than the one that is being made, or one without a whole save."""
    for entry in RunStore(store).list():
        if entry.name == making:
            continue
        if isinstance(entry, DamagedRun):
            return f"{entry.name}: {entry.reason}"
        if problems := without_a_whole_generation(entry):
            return f"{entry.name}: {problems[0]}"
    return ""
