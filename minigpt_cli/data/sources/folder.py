"""The files of a folder and below, in the order of their paths: those of a person, not those of git or of minigpt itself."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from pathspec import GitIgnoreSpec

from minigpt_cli.config import DataConfig
from minigpt_cli.data.sources.files import File
from minigpt_cli.errors import UsageError

_BACKUPS = ("~", ".bak", ".swp", ".tmp")  # what editors leave beside a text: an older version of it

_Ignored = tuple[Path, GitIgnoreSpec]


def holds_tokens(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is one of token files, damaged ones included; people call a text dataset.json too."""
    return "dataset.json" in names and not {"train.bin", "val.bin", "tokenizer.json"}.isdisjoint(names)


def model_in(names: Collection[str]) -> str:
    """What a folder with files of these names is, if not one of texts: a run, or the model of another program; else empty."""
    if {"run.json", "config.json"} <= set(names):
        return "a run"
    weights = any(name.endswith(".safetensors") or name.startswith("pytorch_model") for name in names)
    return "a model" if weights and "config.json" in names else ""


def names_in(folder: Path) -> list[str]:
    """What is in a folder. Raises UsageError if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UsageError(f"cannot read the folder {folder}: {error.strerror}") from error


def files_below(folder: Path, label: str, options: DataConfig) -> list[File]:
    """The files, sorted by path; `include` and `exclude` choose among them. Raises UsageError if none is left.

    Hidden files, editors' backups, those that a .gitignore in the folder or below names, and folders of tokens, runs and models stay out.
    """
    found: list[Path] = []
    _walk(folder, [], found)
    include, exclude = _globs(options.include), _globs(options.exclude)
    chosen = []
    for path in found:
        inside = path.relative_to(folder).as_posix()
        if (not options.include or include.match_file(inside)) and not exclude.match_file(inside):
            chosen.append(path)
    if not chosen:
        hint = f": none of its {len(found)} files is chosen by --include and --exclude" if found else ""
        raise UsageError(f"the folder {label} has no text files{hint}")
    chosen.sort(key=lambda path: path.relative_to(folder).parts)
    return [File(str(path), path) for path in chosen]


def _walk(folder: Path, ignored: list[_Ignored], found: list[Path]) -> None:
    waiting = [(folder, ignored)]
    while waiting:
        folder, ignored = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise UsageError(f"cannot read the folder {folder}: {error.strerror}") from error
        names = {entry.name for entry in entries}
        if holds_tokens(names) or model_in(names):
            continue
        if ".gitignore" in names:
            ignored = [*ignored, (folder, _gitignore(folder / ".gitignore"))]
        for entry in entries:
            path = folder / entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name.startswith(".") or entry.name.endswith(_BACKUPS) or _is_ignored(path, ignored, is_folder=is_folder):
                continue
            if is_folder:
                waiting.append((path, ignored))
            elif entry.is_file():
                found.append(path)


def _gitignore(path: Path) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(path.read_text("utf-8", "replace").splitlines())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _is_ignored(path: Path, ignored: list[_Ignored], *, is_folder: bool) -> bool:
    """What the nearest .gitignore that speaks of it says."""
    for folder, patterns in reversed(ignored):
        inside = path.relative_to(folder).as_posix() + "/" * is_folder
        if (verdict := patterns.check_file(inside).include) is not None:
            return bool(verdict)
    return False


def _globs(patterns: tuple[str, ...]) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise UsageError(f"--include or --exclude is not a pattern of files: {error}") from error
