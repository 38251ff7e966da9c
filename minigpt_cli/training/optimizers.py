"""AdamW, and Muon for the matrices with AdamW for the rest.

The state of an optimizer is named tensors, so that a run directory can hold it as safetensors. A new optimizer is a class in a new file
that implements the protocol `Optimizer`, and a line in the registry.

Muon: Jordan et al. 2024, "Muon: an optimizer for hidden layers". The momentum of each matrix is replaced by the nearest
orthogonal matrix, so that all directions are learned at the same rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from minigpt_cli import registry
from minigpt_cli.accel import install
from minigpt_cli.config import OptimConfig
from minigpt_cli.models.contract import MatrixParts
from minigpt_cli.training import distributed

# Coefficients of the quintic iteration, tuned by Jordan et al. for the steepest slope at zero; singular values end in about 0.7 to 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-8  # AdamW's


class Optimizer(Protocol):
    """What training needs from an optimizer."""

    shards: ClassVar[bool]
    """Whether it can update weights that FSDP2 has split over the processes."""

    @classmethod
    def of(cls, model: nn.Module, config: OptimConfig, *, fast_bf16: bool) -> Optimizer:
        """The optimizer of every parameter that is trained; `fast_bf16`: bfloat16 products are fast here."""

    @property
    def state_bytes(self) -> int:
        """Bytes that it keeps from step to step, in all processes together."""

    def step(self, factor: float, found_inf: Tensor | None = None) -> None:
        """Apply the gradients at `factor` times the peak learning rates, unless `found_inf` is 1 because they are not finite; it is a
        tensor on the device, so that the host does not wait for it."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name; the tensors are not copies."""

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a state that `state_tensors` gave. Raises KeyError or ValueError for anything else."""


def build_optimizer(model: nn.Module, config: OptimConfig, *, fast_bf16: bool) -> Optimizer:
    """The optimizer that `config.optimizer` names."""
    return optimizer_class(config).of(model, config, fast_bf16=fast_bf16)


def optimizer_class(config: OptimConfig) -> type[Optimizer]:
    """The class that the registry has for `config.optimizer`."""
    found: type[Optimizer] = registry.load("optimizer", config.optimizer)
    return found


class _Averages(NamedTuple):
    """What AdamW keeps of a parameter."""

    step: Tensor  # updates so far
    exp_avg: Tensor  # of the gradient
    exp_avg_sq: Tensor  # of its square


class AdamW:
    """torch's fused AdamW (Loshchilov & Hutter 2019)."""

    shards: ClassVar = True

    @classmethod
    def of(cls, model: nn.Module, config: OptimConfig, *, fast_bf16: bool) -> AdamW:
        """Weight decay on matrices only (embeddings among them), as nanoGPT and GPT-3 do."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        return cls([p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2], config)

    def __init__(self, decayed: list[nn.Parameter], undecayed: list[nn.Parameter], config: OptimConfig) -> None:
        self._decays = [(decayed, config.weight_decay), (undecayed, 0.0)]
        self._config = config
        self._parameters = decayed + undecayed
        self._averages: dict[Tensor, _Averages] = {}

    @property
    def state_bytes(self) -> int:
        return sum(2 * 4 * p.numel() for p in self._parameters)  # exp_avg and exp_avg_sq

    @torch.no_grad()
    def step(self, factor: float, found_inf: Tensor | None = None) -> None:
        for parameters, weight_decay in self._decays:
            updated: list[Tensor] = [p for p in parameters if p.grad is not None]
            averages = [self._averages_of(p) for p in updated]
            # The function, since the class imports torch's compiler, which takes a second.
            adamw(
                updated,
                [p.grad for p in updated if p.grad is not None],
                [a.exp_avg for a in averages],
                [a.exp_avg_sq for a in averages],
                [],
                [a.step for a in averages],
                fused=True,
                found_inf=found_inf,
                amsgrad=False,
                beta1=self._config.beta1,
                beta2=self._config.beta2,
                lr=self._config.lr * factor,
                weight_decay=weight_decay,
                eps=_EPS,
                maximize=False,
            )

    def _averages_of(self, parameter: Tensor) -> _Averages:
        if parameter not in self._averages:
            step = torch.zeros((), device=parameter.device)
            self._averages[parameter] = _Averages(step, torch.zeros_like(parameter), torch.zeros_like(parameter))
        return self._averages[parameter]

    def state_tensors(self) -> dict[str, Tensor]:
        return {
            f"adamw.{i}.{name}": value
            for i, parameter in enumerate(self._parameters)
            if parameter in self._averages
            for name, value in self._averages[parameter]._asdict().items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for i, parameter in enumerate(self._parameters):
            prefix = f"adamw.{i}."
            state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if not state:
                continue  # a run that was saved before its first step
            shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            if {name: value.shape for name, value in state.items()} != shapes or any(v.dtype != torch.float32 for v in state.values()):
                raise ValueError(f"AdamW's averages of parameter {i} have another shape or type")  # the fused kernel would read past them
            self._averages[parameter] = _Averages(**{name: distributed.like(value, parameter) for name, value in state.items()})


class _Stack(NamedTuple):
    """The matrices of one shape."""

    weights: list[Tensor]
    counts: list[int]  # matrices in each of the weights
    momentum: Tensor  # (N, rows, columns)


class Muon:
    """Orthogonalised momentum on the matrices inside the blocks; AdamW without decay on embeddings, head, gains and router.

    Matrices of one shape are stacked, so that a step is one batched iteration per shape.
    """

    shards: ClassVar = False  # it needs whole matrices

    @classmethod
    def of(cls, model: nn.Module, config: OptimConfig, *, fast_bf16: bool) -> Optimizer:
        """AdamW alone for a model without such matrices; `fast_bf16` lets the iteration run in bfloat16."""
        matrices = [m for m in model.matrices() if m.weight.requires_grad]  # type: ignore[operator]
        taken = {id(m.weight) for m in matrices}
        rest = AdamW([], [p for p in model.parameters() if p.requires_grad and id(p) not in taken], config)
        return cls(matrices, rest, config, torch.bfloat16 if fast_bf16 else torch.float32) if matrices else rest

    def __init__(self, matrices: Iterable[MatrixParts], rest: AdamW, config: OptimConfig, iterate_in: torch.dtype) -> None:
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for weight, parts in matrices:
            rows = weight.numel() // weight.shape[-1] // parts
            by_shape.setdefault((rows, weight.shape[-1]), []).append(weight)
        self._stacks: list[_Stack] = []
        for (rows, columns), weights in by_shape.items():
            counts = [weight.numel() // (rows * columns) for weight in weights]
            self._stacks.append(_Stack(weights, counts, torch.zeros(sum(counts), rows, columns, device=weights[0].device)))
        self._rest, self._config, self._iterate_in = rest, config, iterate_in

    @property
    def state_bytes(self) -> int:
        return sum(stack.momentum.nbytes for stack in self._stacks) + self._rest.state_bytes

    @torch.no_grad()
    def step(self, factor: float, found_inf: Tensor | None = None) -> None:
        lr, mu = self._config.muon_lr * factor, self._config.muon_momentum
        for weights, counts, momentum in self._stacks:
            rows, columns = momentum.shape[1:]
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
        self._rest.step(factor, found_inf)

    def state_tensors(self) -> dict[str, Tensor]:
        return {f"muon.{i}": stack.momentum for i, stack in enumerate(self._stacks)} | self._rest.state_tensors()

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for i, stack in enumerate(self._stacks):
            if tensors[f"muon.{i}"].shape != stack.momentum.shape:  # copy_ would broadcast
                raise ValueError(f"Muon's momentum {i} has another shape")
            stack.momentum.copy_(tensors[f"muon.{i}"])
        self._rest.load_state_tensors(tensors)


def orthogonalise(matrices: Tensor, iterate_in: torch.dtype = torch.float32) -> Tensor:
    """Approximately U Vᵀ for each matrix U S Vᵀ in a batch (N, rows, columns), by a Newton–Schulz iteration: matrix products only."""
    if iterate_in == torch.bfloat16 and (found := install.orthogonalise(matrices, _QUINTIC, _ITERATIONS)) is not None:
        return found
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
