"""What `minigpt --version` says."""

from __future__ import annotations

from importlib.metadata import version


def describe_versions(verbose: bool) -> str:
    """The version; with `verbose` also Python's and torch's, and the device that `--device auto` would use (imports torch)."""
    lines = [f"minigpt {version('minigpt-cli')}"]
    if verbose:
        import platform

        import torch

        mps = torch.backends.mps.is_available()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "mps" if mps else f"cpu, {torch.get_num_threads()} threads"
        lines += [f"python  {platform.python_version()}", f"torch   {torch.__version__}", f"device  {device}"]
    return "\n".join(lines)
