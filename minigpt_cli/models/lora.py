"""Low-rank adapters: fine-tuning that keeps the weights and learns a small difference for each (Hu et al. 2021, LoRA).

A linear map W (out, in) becomes W + (alpha / rank) B A with A (rank, in) drawn at random and B (out, rank) zero, so that
training starts exactly at W and changes rank * (in + out) numbers instead of in * out. After training the difference is added
to W, and the model has no adapters any more.

A run with adapters stores only what was trained: A and B of every adapted map, and complete tensors that the base does not
have in this form (rows of a vocabulary matched to another tokenizer, positions cut to a smaller block).
Shapes: r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt_cli.config import LoraConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.models.layers import Linear

A, B = ".lora_a", ".lora_b"
_ADAPTER_STREAM = 0x10A  # gives the adapters other random numbers than the weights


class LoraLinear(nn.Module):
    """A frozen linear map and its adapter, in the dtype of the input."""

    def __init__(self, base: Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = base.bias
        self.lora_a = nn.Parameter(base.weight.new_zeros(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        low = F.linear(x, self.lora_a.to(x.dtype))  # (..., r)
        return F.linear(x, self.weight.to(x.dtype), bias) + self.scale * F.linear(low, self.lora_b.to(x.dtype))


def targets(model: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the linear maps to adapt. Raises UsageError for a target that the model does not have."""
    linear = [name for name, module in model.named_modules() if isinstance(module, Linear | LoraLinear) and name.startswith("blocks.")]
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    wanted = [word.strip() for word in config.lora_targets.split(",") if word.strip()]
    if unknown := [word for word in wanted if word != "all" and word not in kinds]:
        raise UsageError(f"--lora-targets {unknown[0]}: this model has {', '.join(kinds) or 'no linear maps'}, or all of them with 'all'")
    chosen = [name for name in linear if name.rpartition(".")[2] in wanted or ("all" in wanted and not name.endswith(".router"))]
    if not chosen:
        raise UsageError("--lora-rank has nothing to adapt here: this architecture has no linear maps")
    return chosen


def attach(model: nn.Module, config: LoraConfig, seed: int, whole: Iterable[str] = ()) -> None:
    """Freeze `model` and give its target maps adapters drawn from `seed`; the tensors named in `whole` stay trainable."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed ^ _ADAPTER_STREAM)
    for name in targets(model, config):
        parent, _, child = name.rpartition(".")
        adapted = LoraLinear(model.get_submodule(name), config.lora_rank, config.lora_alpha)  # type: ignore[arg-type]
        if not adapted.lora_a.is_meta:
            bound = adapted.lora_a.size(1) ** -0.5
            with torch.no_grad():
                adapted.lora_a.copy_(torch.empty(adapted.lora_a.shape).uniform_(-bound, bound, generator=generator))
        setattr(model.get_submodule(parent), child, adapted)
    wanted = set(whole)
    for name, parameter in model.named_parameters():
        if name in wanted:
            parameter.requires_grad_(True)


def trained(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict of `model` that a run with adapters stores: all but the frozen parameters."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in state.items() if name not in frozen}


def is_adapter(name: str) -> bool:
    """Whether a stored tensor is part of an adapter, not a complete tensor of the model."""
    return name.endswith((A, B))


def merged(base: Mapping[str, Tensor], stored: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """The state dict of the model without adapters: the base's tensors, or the stored complete ones, plus every difference."""
    state = dict(base) | {name: tensor for name, tensor in stored.items() if not is_adapter(name)}
    scale = config.lora_alpha / config.lora_rank
    for name in [name for name in stored if name.endswith(A)]:
        module = name.removesuffix(A)
        weight = state[f"{module}.weight"]
        difference = scale * (stored[module + B].double() @ stored[name].double())
        state[f"{module}.weight"] = (weight.double() + difference).to(weight.dtype)
    return state
