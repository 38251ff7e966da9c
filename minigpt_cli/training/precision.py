"""Which number format is fast on this device, and the loss scaling that float16 needs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from minigpt_cli.training import choices

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def bf16_speedup(device_type: str) -> float:
    """How many times faster a bfloat16 matrix product is than a float32 one on this device, measured once on each machine."""
    if device_type == "cuda":
        return 2.0 if torch.cuda.is_bf16_supported(including_emulation=False) else 0.5
    if device_type != "cpu":
        return 0.5  # Apple's GPUs save memory with it, not time
    seconds = choices.products(torch.device("cpu"))
    return seconds["fp32"] / seconds["bf16"]


def choose(requested: str, device_type: str) -> tuple[str, str]:
    """The precision to train in, and the reason as text."""
    if requested != "auto":
        return requested, "as asked"
    ratio = bf16_speedup(device_type)
    if device_type == "cpu":
        if ratio > 1.5:
            return "bf16", f"bfloat16 products are {ratio:.1f}x as fast as float32 here"
        return "fp32", f"bfloat16 products are only {ratio:.1f}x as fast as float32 here"
    return ("bf16", "this GPU multiplies bfloat16 fast") if ratio > 1 else ("fp32", "bfloat16 saves no time on this device")


class LossScaler:
    """Prevents underflow of float16 gradients: the loss is multiplied by a scale, the gradients are divided by it, and the scale adapts.

    Its tensors are on the device, so the host never waits. With another precision the scale is constantly 1.
    """

    _GROWTH_STEPS = 1000

    def __init__(self, precision: str, device: torch.device) -> None:
        self.active = precision == "fp16"
        self.scale = torch.tensor(65536.0 if self.active else 1.0, device=device)
        self.good_steps = torch.zeros((), device=device)

    def update(self, found_inf: Tensor) -> None:
        """Halve the scale after a step that overflowed; double it after many good ones."""
        if not self.active:
            return
        self.good_steps = torch.where(found_inf > 0, torch.zeros_like(self.good_steps), self.good_steps + 1)
        grow = self.good_steps >= self._GROWTH_STEPS
        self.scale = torch.where(found_inf > 0, self.scale * 0.5, torch.where(grow, self.scale * 2, self.scale))
        self.good_steps = torch.where(grow, torch.zeros_like(self.good_steps), self.good_steps)

    def state_tensors(self) -> dict[str, Tensor]:
        return {"scaler.scale": self.scale, "scaler.good_steps": self.good_steps} if self.active else {}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        if self.active:
            self.scale = tensors["scaler.scale"].to(self.scale.device, copy=True)
            self.good_steps = tensors["scaler.good_steps"].to(self.scale.device, copy=True)
