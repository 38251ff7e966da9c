"""What torch is here, and what it would compute on: for `minigpt --version -v`."""

from __future__ import annotations

import torch


def describe() -> tuple[str, str]:
    """torch's version, and the device that `--device auto` would choose."""
    if torch.cuda.is_available():
        device = f"cuda, {torch.cuda.get_device_name()}"
    else:
        device = "mps" if torch.backends.mps.is_available() else f"cpu, {torch.get_num_threads()} threads"
    return torch.__version__, device
