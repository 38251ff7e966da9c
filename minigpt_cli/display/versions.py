"""What `minigpt --version` says."""

from __future__ import annotations

import platform
from importlib.metadata import version


def describe_versions(verbose: bool) -> str:
    """The version; with `verbose` also Python's and torch's, and the device that `--device auto` would use (imports torch)."""
    lines = [f"minigpt {version('minigpt-cli')}"]
    if verbose:
        from minigpt_cli.training.environment import describe

        torch_version, device = describe()
        lines += [f"python  {platform.python_version()}", f"torch   {torch_version}", f"device  {device}"]
    return "\n".join(lines)
