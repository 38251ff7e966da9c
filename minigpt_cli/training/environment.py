"""What computes here: for `minigpt --version -v`."""

from __future__ import annotations

import torch

from minigpt_cli.generation.native import decoder
from minigpt_cli.models.native import operations


def describe() -> dict[str, str]:
    """torch's version, the device that `--device auto` would choose, and what trains and decodes on this processor; builds what is in C."""
    if torch.cuda.is_available():
        device = f"cuda, {torch.cuda.get_device_name()}"
    else:
        device = "mps" if torch.backends.mps.is_available() else f"cpu, {torch.get_num_threads()} threads"
    kernels = {
        "tiles": "C, attention on the processor's matrix tiles",
        "c": "C",
        "torch": f"torch, slower: {operations.why_not()}",
    }[operations.in_use()]
    reason = decoder.why_not()
    return {"torch": torch.__version__, "device": device, "kernels": kernels, "decoder": f"numpy, slower: {reason}" if reason else "native"}
