"""Where a run comes from: the command line, the commit, the versions. No torch."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version

from minigpt_cli.bounds import line
from minigpt_cli.runstore.records import RunRecord, now


def new_record(name: str, *, preset: str | None, group: str | None = None) -> RunRecord:
    """The record of a run that starts now."""
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
            "minigpt": version("minigpt-cli"),
            **{package: version(package) for package in ("torch", "numpy", "tokenizers")},
        },
    )


def git_state() -> tuple[str | None, bool | None]:
    """The commit of the working directory and whether files differ from it; None, None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return (commit, bool(_git("status", "--porcelain", "--untracked-files=no"))) if commit else (None, None)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
