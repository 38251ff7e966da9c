"""Plain: look inside a transformer, and run it or train it without one of its parts.

New over the other files: nothing is computed here. `opened` takes a finished classic, modern or moe model, lets every intermediate
value be read by name, and leaves parts out. The architecture `plain` is modern without the parts that `--without` names, so that
one can train a model that lacks them and see what each is for. Both work through hooks, functions that torch calls before or after
a module with its inputs or its output, so that each formula stands in one place: in the files before this one.

What is recorded, for each layer L:
    stream.L.before   (B, T, C)     the residual stream that the block reads; the embedding for layer 0
    L.q  L.k  L.v     (B, H, T, D)  with K heads for k and v; after QK-norm and rotation
    L.weights         (B, H, T, T)  how much query t takes from key n; each row sums to 1
    L.head_out        (B, T, H, D)  what each head found
    L.attention_out   (B, T, C)     what attention adds to the stream
    L.mlp_out         (B, T, C)     what the feed-forward, or the experts, add to the stream
    L.router          (B * T, E)    probability of each expert, of moe
    final             (B, T, C)     what the head reads
Shapes: B batch, T tokens, C channels, H query heads, K key/value heads, D head size, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minigpt_cli.config import REMOVABLE, PlainConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.models.layers import LayerNorm, RMSNorm
from minigpt_cli.models.modern import Modern

Values = dict[str, Tensor]


class Plain(Modern):
    """Modern without the parts that its configuration leaves out. accel/ leaves it as it is."""

    def __init__(self, config: PlainConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        list(_take_out(self, config.parts, {}))

    def new_cache(self, batch_size: int, max_tokens: int) -> Any:
        """None without a mask: each new token changes what every token before it sees, so the whole window is computed again."""
        return super().new_cache(batch_size, max_tokens) if "mask" not in self.config.parts else None


@contextmanager
def opened(
    model: nn.Module, *, without: Collection[str] = (), watch: Values | None = None, means: Mapping[str, Tensor] | None = None
) -> Iterator[nn.Module]:
    """`model`, which meanwhile leaves out the parts `without` and writes intermediate values into `watch`.

    `without` may hold mask, positions, attention, mlp, residual, norm and scale, which concern every layer, and of `removable`
    a head, the feed-forward of a layer, or a whole layer. Of these three the mean in `means` takes the place of the output, since
    zero is a value that later layers have never met: `mean_values` makes it. Raises UsageError for an unknown part.

    Where a value or a part is inside a kernel of accel/, the formulas of models/ compute meanwhile; means take places on fast models too.
    """
    if unknown := set(without) - {*REMOVABLE, *removable(model)}:
        raise UsageError(f"this model has no part {min(unknown)!r}: choose from {', '.join([*REMOVABLE, *removable(model)])}")
    inside_kernels = watch is not None or not {"mask", "scale"}.isdisjoint(without)
    fast = {module: type(module) for module in model.modules()} if inside_kernels else {}
    handles: list[_Removable] = []
    try:
        for module, kind in fast.items():
            module.__class__ = _formula_class(kind)
        for handle in _take_out(model, without, means or {}):
            handles.append(handle)
        if watch is not None:
            handles += _record(model, watch)
        yield model
    finally:
        for handle in handles:
            handle.remove()
        for module, kind in fast.items():
            module.__class__ = kind


def _formula_class(kind: type[Any]) -> type[Any]:
    """The class in models/ that a fast one was derived from; `kind` itself where it is not fast."""
    return next((base for base in kind.__mro__ if ".accel." not in base.__module__), kind)


def removable(model: Any) -> list[str]:
    """The parts of a transformer whose output a mean can replace: "head 0.0", …, "mlp 0", …, "layer 0", …"""
    layers, heads = range(model.config.n_layer), range(model.config.n_head)
    return [f"head {i}.{h}" for i in layers for h in heads] + [f"{part} {i}" for part in ("mlp", "layer") for i in layers]


def mean_values(watched: Mapping[str, Tensor]) -> Values:
    """Means over batch and tokens of what `watch` recorded: L.head_out (H, D), L.attention_out and L.mlp_out (C,)."""
    return {name: value.mean((0, 1)) for name, value in watched.items() if name.endswith("_out")}


# ---- parts that are taken out


class _Removable(Protocol):
    def remove(self) -> None: ...


class _SwitchedOff:
    """A switch of a module that is off until `remove`, as a hook works until its handle's `remove`."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name, self.before = module, name, getattr(module, name)
        setattr(module, name, False)

    def remove(self) -> None:
        setattr(self.module, self.name, self.before)


def _take_out(model: Any, without: Collection[str], means: Mapping[str, Tensor]) -> Iterator[_Removable]:
    """Leave the parts out of `model`, one after another, until the handles are removed."""
    for i, block in enumerate(model.blocks):
        attention, mlp = block.attention, _feed_forward(block)
        if "mask" in without:
            yield _SwitchedOff(attention.attend, "causal")
        if "scale" in without:
            yield _SwitchedOff(attention.attend, "scaled")
        if "residual" in without:
            yield _SwitchedOff(block, "residual")
        if "positions" in without:
            yield block.register_forward_pre_hook(_without_rotation)
        for part, module, found in (("attention", attention, f"{i}.attention_out"), ("mlp", mlp, f"{i}.mlp_out")):
            if part in without:
                yield module.register_forward_hook(_replace_by(_nothing))
            elif f"layer {i}" in without or f"{part} {i}" in without:
                yield module.register_forward_hook(_replace_by(partial(_expanded, means[found])))
        if heads := [h for h in range(attention.n_head) if f"head {i}.{h}" in without]:
            yield attention.out.register_forward_pre_hook(_replace_heads(heads, means[f"{i}.head_out"]))
    if "positions" in without and hasattr(model, "position_embedding"):
        yield model.position_embedding.register_forward_hook(_same_for_all_positions)
    for module in model.modules():
        if "norm" in without and isinstance(module, LayerNorm | RMSNorm):
            yield module.register_forward_hook(lambda _, args, output: args[0] + _nothing(output))


def _feed_forward(block: Any) -> Any:
    return block.moe if hasattr(block, "moe") else block.mlp


def _replace_by(make: Callable[[Tensor], Tensor]) -> Any:
    """A hook that replaces a module's output y by make(y), and leaves an auxiliary loss beside it."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return (make(output[0]), *output[1:]) if isinstance(output, tuple) else make(output)

    return hook


def _nothing(output: Tensor) -> Tensor:
    """Zeros that depend on the output, so that each parameter behind it has a gradient, zero: training asks for all of them."""
    return 0 * output


def _expanded(mean: Tensor, output: Tensor) -> Tensor:
    return mean.to(output.dtype).expand_as(output)


def _replace_heads(heads: list[int], means: Tensor) -> Any:
    """A hook that replaces some heads of the input (B, T, H * D) of a module by their means, rows of (H, D)."""

    def hook(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        by_head = args[0].clone().view(*args[0].shape[:2], *means.shape)  # (B, T, H, D)
        by_head[:, :, heads] = means[heads].to(by_head.dtype)
        return by_head.view_as(args[0])

    return hook


def _without_rotation(block: nn.Module, args: Any) -> Any:
    """Rotate queries and keys by no angle, whatever their position."""
    x, cache, angles, begins = args
    if angles is None:
        return None
    cos, sin = angles
    return x, cache, torch.stack((torch.ones_like(cos), torch.zeros_like(sin))), begins


def _same_for_all_positions(embedding: Any, args: Any, output: Tensor) -> Tensor:
    """The mean of all learned positions in place of each."""
    return embedding.weight.mean(0).expand_as(output)  # type: ignore[no-any-return]


# ---- values that are recorded


def _record(model: Any, watch: Values) -> list[_Removable]:
    """Write the values into `watch` at each forward pass, until the handles are removed."""

    def after(module: nn.Module, name: str, value: Callable[[Any], Tensor] = lambda output: output) -> _Removable:
        return module.register_forward_hook(lambda _, args, output: watch.__setitem__(name, value(output)))

    def before(module: nn.Module, *names: str, value: Callable[[Tensor], Tensor] = lambda x: x) -> _Removable:
        def hook(_: nn.Module, args: Any) -> None:
            watch.update({name: value(arg) for name, arg in zip(names, args, strict=False)})

        return module.register_forward_pre_hook(hook)

    handles = [after(model.final_norm, "final")]
    for i, block in enumerate(model.blocks):
        attention, by_head = block.attention, (model.config.n_head, model.head_size)
        handles += [
            before(block, f"stream.{i}.before"),
            before(attention.attend, f"{i}.q", f"{i}.k", f"{i}.v"),
            after(attention.attend.dropout, f"{i}.weights"),
            before(attention.out, f"{i}.head_out", value=lambda x, shape=by_head: x.unflatten(-1, shape)),  # type: ignore[misc]
            after(attention, f"{i}.attention_out"),
            after(_feed_forward(block), f"{i}.mlp_out", lambda output: output[0] if isinstance(output, tuple) else output),
        ]
        if hasattr(block, "moe"):
            handles.append(after(block.moe.router, f"{i}.router", lambda logits: logits.float().softmax(-1)))
    return handles
