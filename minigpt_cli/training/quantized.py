"""Frozen weights in 8 or 4 bits while adapters train (QLoRA, Dettmers et al. 2023), through torchao.

Eight bits have one scale for each row. Four bits are the NormalFloat code in blocks of 64, with scales in eight bits. A weight is
computed again, in the dtype of the input, each time it is used: this saves memory and no time. The adapters are merged with the
weights as they were before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from minigpt_cli.errors import MissingExtra, UsageError
from minigpt_cli.models.lora import LoraLinear

_BLOCK = 64  # numbers that share a scale in four bits


class QuantizedLoraLinear(LoraLinear):
    """A frozen linear map in fewer bits, and its adapter."""

    frozen: Any

    def __init__(self, adapted: LoraLinear, bits: str) -> None:
        nn.Module.__init__(self)
        self.register_buffer("frozen", quantized(adapted.weight.detach(), bits), persistent=False)
        self.bias, self.lora_a, self.lora_b, self.scale = adapted.bias, adapted.lora_a, adapted.lora_b, adapted.scale

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight, computed from its few bits."""
        frozen = self.frozen
        restored: Tensor = frozen.get_original_weight() if hasattr(frozen, "get_original_weight") else frozen.dequantize()
        return restored


def quantized(weight: Tensor, bits: str) -> Tensor:
    """`weight` (out, in) in so many bits. Raises UsageError for a shape that does not divide into blocks."""
    torchao = library()
    if bits == "8":
        linear = nn.Linear(weight.size(1), weight.size(0), bias=False, device=weight.device)
        linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
        torchao.quantize_(linear, torchao.Int8WeightOnlyConfig())
        return linear.weight.detach()
    if weight.numel() % _BLOCK:
        raise UsageError(f"--quantize-base 4 needs matrices of a multiple of {_BLOCK} numbers, and one here has {weight.numel()}: use 8")
    blocks = weight.numel() // _BLOCK
    made: Tensor = torchao.to_nf4(weight, block_size=_BLOCK, scaler_block_size=max(n for n in (256, 64, 16, 4, 1) if blocks % n == 0))
    return made


def library() -> Any:
    """torchao's quantization. Raises MissingExtra if it is not installed, UsageError if it does not run with this torch."""
    try:
        from torchao import quantization
    except ModuleNotFoundError:
        raise MissingExtra("--quantize-base", "quantize") from None
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UsageError(f"--quantize-base: the torchao that is installed does not run with this torch ({error}): leave it out") from error
    return quantization


def quantize_base(model: nn.Module, bits: str) -> None:
    """Hold the frozen weight of every adapted map in `bits` bits."""
    for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLinear)]:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantizedLoraLinear(module, bits))
