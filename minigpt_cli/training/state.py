"""Everything that one training step reads and changes, and the step itself.

B windows in a batch, T tokens in a window, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from minigpt_cli.accel.install import cross_entropy, install, keep_freed_memory
from minigpt_cli.config import RunConfig
from minigpt_cli.models import lora
from minigpt_cli.models.contract import build_model
from minigpt_cli.models.layers import set_dropout_generator
from minigpt_cli.training import distributed, grad_checkpoint, precision, quantized
from minigpt_cli.training.distributed import World
from minigpt_cli.training.optimizers import build_optimizer
from minigpt_cli.training.schedules import lr_factor

BatchSource = Callable[[int, int], tuple[Tensor, Tensor]]
"""(step, micro) → x, y of shape (B, T)."""

_Loss = Callable[..., tuple[Tensor, Tensor]]
_DROPOUT_STREAM = 0x5EED  # makes the dropout stream different from the stream that drew the weights


class StepResult(NamedTuple):
    """The result of a step; tensors on the device, so that the host need not wait."""

    loss: Tensor  # mean nats per token of the batch, without auxiliary losses
    grad_norm: Tensor
    refused: Tensor  # 1.0 if a number was not finite, so that nothing was changed


class Figures(BaseModel):
    """What an evaluation reports about the last training step."""

    grad_norm: float | None = None
    expert_load: list[list[float]] | None = None  # share of tokens by layer and expert
    router_entropy: float | None = None  # nats, mean over layers


@dataclass(frozen=True)
class StartWeights:
    """What training starts from instead of random weights."""

    tensors: Mapping[str, Tensor]
    trained: Collection[str] = ()  # with adapters: the tensors that are trained too
    notices: list[str] = field(default_factory=list)


class TrainingState:
    """Weights, optimizer, averages and generators of a run. Only `step` changes them."""

    def __init__(
        self,
        config: RunConfig,
        vocab_size: int,
        device: torch.device,
        world: World | None = None,
        start: StartWeights | None = None,
        end_of_text: int | None = None,  # with --document-mask
        teacher: nn.Module | None = None,  # with --teachers
    ) -> None:
        self.config, self.device, self.world = config, device, world or World()
        model = build_model(config.model, vocab_size, config.seed)
        if end_of_text is not None:
            model.end_of_text = end_of_text  # type: ignore[assignment]
        if start is not None:
            model.load_state_dict(start.tensors)
        if config.lora.lora_rank:
            lora.attach(model, config.lora, config.seed, start.trained if start else ())
        if config.lora.quantize_base != "off":
            quantized.quantize_base(model, config.lora.quantize_base)
        self.model = self._prepare(model)
        self._teacher = None if teacher is None else self._placed(teacher).eval().requires_grad_(False)
        self._experts = [block.moe for block in getattr(self.model, "blocks", []) if hasattr(block, "moe")]
        self.optimizer = build_optimizer(self.model, config.optim, fast_bf16=config.compute.precision == "bf16")
        self.scaler = precision.LossScaler(config.compute.precision, device)
        self._averaged = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad] if config.optim.ema else []
        self.average = {n: p.detach().clone() for n, p in self._averaged}
        self.refused_in_a_row = torch.zeros((), device=device)
        self._balanced = getattr(config.model, "moe_balance", None) == "bias"
        self._forward: nn.Module = self.model if config.compute.fsdp else distributed.replicate(self.model, self.world, device)
        self._loss: _Loss = self._compiled() if config.compute.compile == "on" else _loss
        self.recompiled = False  # after the first step, so that the compiled code depends on the steps before
        self._graphs: int | None = None  # compiled by the end of the last step

    def _compiled(self) -> _Loss:
        """The loss, compiled for one shape, so that the compiled code depends only on the configuration.

        After eight compilations of a function torch runs it as plain Python, without an error. So earlier compilations in this process
        are reset, and experts are not compiled: their shapes change at every step with their shares of the tokens.
        """
        torch.compiler.reset()
        for experts in self._experts:
            experts.forward = torch.compiler.disable(experts.forward)  # type: ignore[no-untyped-call]
        return torch.compile(_loss, dynamic=False)

    def _prepare(self, model: nn.Module) -> nn.Module:
        if self.device.type == "cpu":
            keep_freed_memory()
        model = self._placed(model).train()
        seed, compute = self.config.seed ^ _DROPOUT_STREAM + self.world.rank, self.config.compute
        self.dropout_generator = torch.Generator(self.device).manual_seed(seed)
        # torch's fused attention and compiled dropout can only use the default generator.
        self._generators = {"dropout": self.dropout_generator, "default": _default_generator(self.device).manual_seed(seed)}
        if self.device.type != "cpu":
            self._generators["host"] = torch.default_generator.manual_seed(seed)
        # Compiled code draws from the default generator, so then all dropout does.
        set_dropout_generator(model, None if compute.compile == "on" else self.dropout_generator)
        if compute.grad_checkpoint:
            grad_checkpoint.install(model)
        if not compute.fsdp or self.world.size == 1:
            return model
        return distributed.shard(model)

    def _placed(self, model: nn.Module) -> nn.Module:
        """`model` on the device, as fast as the run wants it."""
        compute = self.config.compute
        model.compute_dtype = precision.DTYPES[compute.precision]  # type: ignore[assignment]
        return install(model.to(self.device), compute.attention)

    def _expected(self, x: Tensor) -> tuple[()] | tuple[Tensor, float]:
        """What the teacher expects after each token of x (B, T), as probabilities (B, T, V), and its share of the loss; () without one."""
        if self._teacher is None:
            return ()
        with torch.no_grad():
            return torch.softmax(self._teacher(x).logits.float(), -1), self.config.distil.teacher_share

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The nats per token of y after x, (B, T), and what else the gradient is of."""
        return self._loss(self._forward, x, y, *self._expected(x))

    def step(self, number: int, batch: BatchSource) -> StepResult:
        """One optimizer step on global batch `number`; refused, without any change, if the loss or a gradient is not finite."""
        optim = self.config.optim
        total = torch.zeros((), device=self.device)
        for micro in range(optim.grad_accum):
            x, y = batch(number, micro)
            with distributed.without_averaging(self._forward, last=micro == optim.grad_accum - 1):
                nats, aux_loss = self.loss(x, y)
                torch.autograd.backward((nats + aux_loss) * (self.scaler.scale / optim.grad_accum))
            total += nats.detach() / optim.grad_accum
        total = self.world.mean(total)  # so that all processes refuse a step, or none does
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = self._unscale_and_clip(gradients)
        refused = (~torch.isfinite(norm + total)).float()
        self._apply(number, refused)
        for parameter in self.model.parameters():
            parameter.grad = None
        self._notice_compilation()
        return StepResult(total, norm, refused)

    def _notice_compilation(self) -> None:
        if self.config.compute.compile == "on":
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            self.recompiled |= self._graphs is not None and graphs != self._graphs
            self._graphs = graphs

    def _unscale_and_clip(self, gradients: list[Tensor]) -> Tensor:
        if self.scaler.active:
            torch._foreach_mul_(gradients, 1 / self.scaler.scale)
        norm = distributed.whole(torch.nn.utils.get_total_norm(gradients))
        if clip := self.config.optim.grad_clip:
            factor = (clip / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients if self.config.compute.fsdp else ():
                gradient.mul_(factor.item())  # a split gradient cannot be multiplied by an unsplit tensor
            if not self.config.compute.fsdp:
                torch._foreach_mul_(gradients, factor)
        return norm

    def _apply(self, number: int, refused: Tensor) -> None:
        factor = self._lr_factor(number)
        self.scaler.update(refused)
        self.refused_in_a_row = torch.where(refused > 0, self.refused_in_a_row + 1, torch.zeros_like(self.refused_in_a_row))
        if self.device.type == "cpu":  # reading a number costs nothing here
            if refused.item():
                return
            self.optimizer.step(factor)
        else:
            self.optimizer.step(factor, refused)
        kept = 1 - refused
        for router in self._experts if self._balanced else ():
            router.update_bias(self.world.mean(router.expert_load()), kept)
        if self.average:
            decay = min(self.config.optim.ema, (1 + number) / (10 + number))  # early on the average forgets the initial weights faster
            averages, weights = list(self.average.values()), [p.detach() for _, p in self._averaged]
            if self.device.type == "cpu":
                torch._foreach_lerp_(averages, weights, 1 - decay)
            else:  # the same in more passes, since lerp would make the host wait for `kept`
                differences = torch._foreach_sub(weights, averages)
                torch._foreach_mul_(differences, kept * (1 - decay))
                torch._foreach_add_(averages, differences)

    lr_scale: float = 1.0  # lowered by the tail of cosine-plateau

    def lr(self, number: int) -> float:
        """AdamW's learning rate at step `number`."""
        return self.config.optim.lr * self._lr_factor(number)

    def _lr_factor(self, number: int) -> float:
        return lr_factor(number, self.config.optim, self.config.resume_changes) * self.lr_scale

    def figures(self, result: StepResult) -> Figures:
        """What is reported about the last step, which gave `result`; waits for the device."""
        norm = float(result.grad_norm.item())
        figures = Figures(grad_norm=norm if math.isfinite(norm) else None)
        if self._experts:
            figures.router_entropy = float(torch.stack([moe.router_entropy() for moe in self._experts]).mean())
            figures.expert_load = [[round(share, 4) for share in moe.expert_load().tolist()] for moe in self._experts]
        return figures

    def weights(self) -> dict[str, Tensor]:
        """The weights that training changes, whole, on the CPU."""
        return {n: distributed.whole(t.detach()).cpu().clone() for n, t in self._trained().items()}

    def n_weight_bytes(self) -> int:
        """The bytes of `weights()`."""
        return sum(t.numel() * t.element_size() for t in self._trained().values())

    def _trained(self) -> dict[str, Tensor]:
        """The model's tensors, without those that adapters leave unchanged."""
        state: dict[str, Tensor] = self.model.state_dict()
        return lora.trained(self.model, state) if self.config.lora.lora_rank else state

    def measured_weights(self) -> dict[str, Tensor]:
        """The weights that are evaluated and kept as best: averaged, if the run keeps averages."""
        weights = self.weights()
        return weights | {n: distributed.whole(t).cpu().clone() for n, t in self.average.items()}

    @contextmanager
    def measured(self) -> Iterator[nn.Module]:
        """The model in evaluation mode, with the averaged weights if the run keeps averages."""
        raw = {}
        self.model.eval()
        parameters = dict(self.model.named_parameters())
        for name, average in self.average.items():
            raw[name] = parameters[name].data
            parameters[name].data = average
        try:
            yield self.model
        finally:
            for name, data in raw.items():
                parameters[name].data = data
            self.model.train()

    def resume_tensors(self) -> dict[str, Tensor]:
        """Everything besides the weights that the next step depends on."""
        tensors = {f"optimizer.{n}": distributed.whole(t) for n, t in self.optimizer.state_tensors().items()}
        tensors |= {f"average.{n}": distributed.whole(t) for n, t in self.average.items()}
        tensors |= self.scaler.state_tensors()
        tensors["refused_in_a_row"] = self.refused_in_a_row
        mine = {name: generator.get_state() for name, generator in self._generators.items()}
        for rank, states in enumerate(self.world.gather(mine)):
            tensors |= {f"generator.{name}.{rank}": state for name, state in states.items()}
        return {n: t.detach().cpu().clone() for n, t in tensors.items()}

    def load_resume_tensors(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
        """Continue from a save. Returns the names of generators that start from the seed again, because their state is missing or belongs
        to another kind of device."""
        with torch.no_grad():
            for name, tensor in self._trained().items():
                tensor.copy_(distributed.like(weights[name], tensor))
        self.optimizer.load_state_tensors({n.removeprefix("optimizer."): t for n, t in tensors.items() if n.startswith("optimizer.")})
        for name, average in self.average.items():
            average.copy_(distributed.like(tensors[f"average.{name}"], average))
        self.scaler.load_state_tensors(dict(tensors))
        self.refused_in_a_row = tensors["refused_in_a_row"].reshape(()).to(self.device, copy=True)
        again = []
        for name, generator in self._generators.items():
            state = tensors.get(f"generator.{name}.{self.world.rank}")
            if state is not None and state.shape == generator.get_state().shape:
                generator.set_state(state.clone())
            else:
                again.append(name)
        return again


def trial_teacher(config: RunConfig, vocab_size: int) -> nn.Module | None:
    """A model as large and fast as the teacher of a run with this configuration, for measuring; None where it has none."""
    return build_model(config.model, vocab_size, seed=0) if config.distil.teachers else None


def _default_generator(device: torch.device) -> torch.Generator:
    """The default generator of torch's random functions on `device`."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.mps._get_default_mps_generator() if device.type == "mps" else torch.default_generator


def _loss(model: nn.Module, x: Tensor, y: Tensor, expected: Tensor | None = None, share: float = 0.0) -> tuple[Tensor, Tensor]:
    """The cross-entropy in nats per token, and the model's auxiliary loss. With what a teacher expects (B, T, V), that loss also moves
    `share` of the sum from the text to the teacher (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network").

    The caller adds and detaches them: in compiled code a sum with a constant zero is the same tensor as the other summand, and torch 2.13
    then returns the detached one for both outputs.
    """
    output = model(x)
    nats = cross_entropy(output.logits.flatten(0, 1), y.flatten())
    if expected is None:
        return nats, output.aux_loss
    # The normaliser of both cross-entropies is the same, so their difference is that of two logits: of the token, and as expected.
    counted = y >= 0  # the others have no loss
    of_token = output.logits.gather(-1, y.clamp(min=0)[..., None]).squeeze(-1).float()  # (B, T)
    as_expected = (expected * output.logits).sum(-1)  # (B, T)
    return nats, output.aux_loss + share * ((of_token - as_expected) * counted).sum() / counted.sum()
