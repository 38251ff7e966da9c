"""Commands that run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt_cli import cli


def run(folder: Path, *args: str) -> int:
    """The exit code of a command line whose runs and prepared texts are in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_DATA_DIR", str(folder / "data"))
        patch.setenv("MINIGPT_RUNS_DIR", str(folder / "runs"))
        return cli.run(list(args))
