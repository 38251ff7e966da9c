"""Where a run comes from: the command line, the commit, the versions. No torch."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from minigpt_cli.bounds import line
from minigpt_cli.runstore.records import RunRecord, now

_PACKAGES = {"minigpt": "minigpt-cli", "torch": "torch", "numpy": "numpy", "tokenizers": "tokenizers"}


def new_record(name: str, *, preset: str | None, group: str | None = None) -> RunRecord:
    """The record of a run that begins now."""
    commit, dirty = git_state()
    return RunRecord(
        name=name,
        created_at=now(),
        argv=["minigpt", *(line(argument) for argument in sys.argv[1:])],
        preset=preset,
        group=group,
        git_commit=commit,
        git_dirty=dirty,
        versions={
            "python": platform.python_version(),
            **{label: found for label, package in _PACKAGES.items() if (found := _version(package))},
        },
    )


def git_state() -> tuple[str | None, bool | None]:
    """The commit of the working directory and whether files differ from it; None, None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return None, None
    return commit, bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
