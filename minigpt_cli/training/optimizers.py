"""AdamW, and Muon for the matrices with AdamW for the rest.

The state of an optimizer is named tensors, so that a run directory can hold it as safetensors. A new one is a class that keeps
the contract `Optimizer`, in a file of its own, and a line in the registry.

Muon: Jordan et al. 2024, "Muon: an optimizer for hidden layers". The momentum of each matrix is replaced by the nearest
orthogonal matrix, so that every direction is learned at the same rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from minigpt_cli import registry
from minigpt_cli.config import OptimConfig
from minigpt_cli.models.contract import MatrixParts
from minigpt_cli.training import distributed

# Coefficients of the quintic iteration, tuned by Jordan et al. for the steepest slope at zero; singular values end in about 0.7 to 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Optimizer(Protocol):
    """What training asks of an optimizer."""

    shards: ClassVar[bool]
    """Whether it can step weights of which FSDP2 has left each process a part."""

    @classmethod
    def of(cls, model: nn.Module, config: OptimConfig, *, fast_bf16: bool) -> Optimizer:
        """The optimizer of every parameter that is trained; `fast_bf16`: bfloat16 products are fast here."""

    @property
    def state_bytes(self) -> int:
        """Bytes that it keeps from step to step, in all processes together."""

    def step(self, factor: float, found_inf: Tensor | None = None) -> None:
        """Apply the gradients at `factor` times the peak learning rates, unless `found_inf` (a tensor on the device, so that nothing
        waits for it) says that they are not finite."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name; the tensors are the optimizer's own, not copies."""

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state that `state_tensors` gave. Raises KeyError or ValueError if it is not such a state."""


def build_optimizer(model: nn.Module, config: OptimConfig, *, fast_bf16: bool) -> Optimizer:
    """The optimizer that `config.optimizer` names."""
    return optimizer_class(config).of(model, config, fast_bf16=fast_bf16)


def optimizer_class(config: OptimConfig) -> type[Optimizer]:
    """What the registry holds under `config.optimizer`."""
    found: type[Optimizer] = registry.load("optimizer", config.optimizer)
    return found


class AdamW:
    """torch's fused AdamW (Loshchilov & Hutter 2019)."""

    shards: ClassVar = True

    @classmethod
    def of(cls, model: nn.Module, config: OptimConfig, *, fast_bf16: bool) -> AdamW:
        """Weight decay on matrices only (embeddings among them), as nanoGPT and GPT-3 do."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        return cls([p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2], config)

    def __init__(self, decayed: list[nn.Parameter], undecayed: list[nn.Parameter], config: OptimConfig) -> None:
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
        self._peak = config.lr
        self._parameters = decayed + undecayed
        self._inner = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=config.lr, betas=(config.beta1, config.beta2), fused=_has_fused_adamw(self._parameters)
        )

    @property
    def state_bytes(self) -> int:
        return sum(2 * 4 * p.numel() for p in self._parameters)  # exp_avg and exp_avg_sq

    def step(self, factor: float, found_inf: Tensor | None = None) -> None:
        for group in self._inner.param_groups:
            group["lr"] = self._peak * factor
        # The attributes through which torch's own gradient scaler tells a fused optimizer to leave out a step.
        self._inner.grad_scale = None  # type: ignore[attr-defined]
        self._inner.found_inf = found_inf  # type: ignore[attr-defined]
        self._inner.step()

    def state_tensors(self) -> dict[str, Tensor]:
        return {
            f"adamw.{i}.{name}": value
            for i, parameter in enumerate(self._parameters)
            for name, value in self._inner.state.get(parameter, {}).items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for i, parameter in enumerate(self._parameters):
            prefix = f"adamw.{i}."
            state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if not state:
                continue  # a run that was saved before its first step
            shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            if {name: value.shape for name, value in state.items()} != shapes or any(v.dtype != torch.float32 for v in state.values()):
                raise ValueError(f"AdamW's averages of parameter {i} are of another shape or type")  # the fused kernel would read past them
            self._inner.state[parameter] = {name: distributed.like(value, parameter) for name, value in state.items()}


class Muon:
    """Momentum, orthogonalised. Matrices of one shape are stacked, so that a step is one batched iteration per shape."""

    def __init__(self, matrices: Iterable[MatrixParts], config: OptimConfig, iterate_in: torch.dtype) -> None:
        groups: dict[tuple[int, int], list[MatrixParts]] = {}
        for matrix in matrices:
            rows = matrix.weight.numel() // matrix.weight.shape[-1] // matrix.parts
            groups.setdefault((rows, matrix.weight.shape[-1]), []).append(matrix)
        self._groups: list[tuple[list[Tensor], tuple[int, int]]] = [
            ([m.weight for m in members], shape) for shape, members in groups.items()
        ]
        self._counts = [[m.weight.numel() // (shape[0] * shape[1]) for m in members] for shape, members in groups.items()]
        self._momenta = [
            torch.zeros(sum(counts), *shape, device=weights[0].device)
            for (weights, shape), counts in zip(self._groups, self._counts, strict=True)
        ]
        self._config = config
        self._iterate_in = iterate_in

    @property
    def state_bytes(self) -> int:
        """Bytes of the momenta."""
        return sum(momentum.nbytes for momentum in self._momenta)

    @torch.no_grad()
    def step(self, factor: float, found_inf: Tensor | None = None) -> None:
        """Move every matrix; see `Optimizer.step`."""
        lr, mu = self._config.muon_lr * factor, self._config.muon_momentum
        for (weights, (rows, columns)), counts, momentum in zip(self._groups, self._counts, self._momenta, strict=True):
            gradient = torch.cat([_gradient(w).reshape(-1, rows, columns) for w in weights]).float()  # (N, rows, columns)
            if found_inf is not None:  # a refused step leaves the momentum and the weights as they were
                gradient = torch.where(found_inf.bool(), momentum, gradient)
            momentum.lerp_(gradient, 1 - mu)
            update = orthogonalise(gradient.lerp(momentum, mu), self._iterate_in)  # Nesterov
            scale = lr * max(1.0, rows / columns) ** 0.5
            decay = 1 - lr * self._config.weight_decay
            if found_inf is not None:
                kept = 1 - found_inf
                update, decay_by = update * kept, 1 - (1 - decay) * kept
                torch._foreach_mul_(weights, decay_by)
            else:
                torch._foreach_mul_(weights, decay)
            pieces = torch.split(update.to(weights[0].dtype), counts)
            pieces = tuple(u.reshape(w.shape) for u, w in zip(pieces, weights, strict=True))
            torch._foreach_add_(weights, pieces, alpha=-scale)

    def state_tensors(self) -> dict[str, Tensor]:
        return {f"muon.{i}": momentum for i, momentum in enumerate(self._momenta)}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for i, momentum in enumerate(self._momenta):
            if tensors[f"muon.{i}"].shape != momentum.shape:  # copy_ would broadcast
                raise ValueError(f"Muon's momentum {i} has another shape")
            momentum.copy_(tensors[f"muon.{i}"])


class MuonAndAdamW:
    """Muon on the matrices inside the blocks; AdamW, without decay, on embeddings, head, gains and router."""

    shards: ClassVar = False  # what is orthogonalised is a whole matrix

    @classmethod
    def of(cls, model: nn.Module, config: OptimConfig, *, fast_bf16: bool) -> Optimizer:
        """AdamW alone for a model without such matrices; `fast_bf16` lets Muon iterate in bfloat16."""
        matrices = [m for m in model.matrices() if m.weight.requires_grad]  # type: ignore[operator]
        taken = {id(m.weight) for m in matrices}
        rest = AdamW([], [p for p in model.parameters() if p.requires_grad and id(p) not in taken], config)
        return cls(Muon(matrices, config, torch.bfloat16 if fast_bf16 else torch.float32), rest) if matrices else rest

    def __init__(self, matrices: Muon, rest: AdamW) -> None:
        self._both = (matrices, rest)

    @property
    def state_bytes(self) -> int:
        return sum(optimizer.state_bytes for optimizer in self._both)

    def step(self, factor: float, found_inf: Tensor | None = None) -> None:
        for optimizer in self._both:
            optimizer.step(factor, found_inf)

    def state_tensors(self) -> dict[str, Tensor]:
        return {name: value for optimizer in self._both for name, value in optimizer.state_tensors().items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for optimizer in self._both:
            optimizer.load_state_tensors(tensors)


def orthogonalise(matrices: Tensor, iterate_in: torch.dtype = torch.float32) -> Tensor:
    """About U Vᵀ of each matrix U S Vᵀ in a batch (N, rows, columns), by a Newton–Schulz iteration of matrix products alone."""
    a, b, c = _QUINTIC
    x = matrices.to(iterate_in)
    tall = x.shape[1] > x.shape[2]
    if tall:  # the Gram matrix below is then the smaller of the two
        x = x.mT
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT  # (N, r, r)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).float()


def _gradient(weight: Tensor) -> Tensor:
    return weight.grad if weight.grad is not None else torch.zeros_like(weight)


def _has_fused_adamw(parameters: list[nn.Parameter]) -> bool:
    return all(p.device.type in ("cpu", "cuda", "mps") and p.is_floating_point() for p in parameters)
