"""What `minigpt --version` says."""

from __future__ import annotations

import platform
from importlib.metadata import version


def describe_versions(verbose: bool) -> str:
    """The version; with `verbose` also Python's and torch's, the device that `--device auto` would use, and which kernels and decoder are
    in use, or why not (imports torch)."""
    lines = [f"minigpt {version('minigpt-cli')}"]
    if verbose:
        from minigpt_cli.training.environment import describe

        lines += [f"{name:7} {what}" for name, what in {"python": platform.python_version(), **describe()}.items()]
    return "\n".join(lines)
