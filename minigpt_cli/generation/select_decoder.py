"""Which decoder runs a model: the native one where it can be built, NumPy, or torch for what those do not know."""

from __future__ import annotations

from typing import Any

from minigpt_cli.errors import unknown_name
from minigpt_cli.generation.decoders.contract import Decoder
from minigpt_cli.generation.decoders.plan import KNOWN, Plan, build_plan
from minigpt_cli.generation.numpy_decoder import BigramDecoder, NumpyDecoder

MAX_SLOTS = 64
SLOT_MEMORY = 1 << 30  # bytes of keys and values that all slots together may take
ENGINES = ("auto", "native", "native-fp32", "numpy")


def slots_for(plan: Plan, wanted: int) -> int:
    """At most `wanted` slots, and as many as fit the memory set aside for keys and values."""
    per_slot = max(1, len(plan.layers) * 2 * plan.n_kv_head * (plan.head_size if plan.layers else 0) * plan.block_size * 4)
    return max(1, min(wanted, MAX_SLOTS, SLOT_MEMORY // per_slot))


def check_engine(engine: str) -> str:
    """`engine`, if there is one of that name. Raises UsageError."""
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    return engine


def decoder_for(plan: Plan, slots: int = 1, engine: str = "auto") -> Decoder:
    """A decoder for `plan` with at most `slots` slots. Raises UsageError for an unknown engine, MiniGPTError for one that cannot be had."""
    check_engine(engine)
    slots = slots_for(plan, slots)
    if plan.arch == "bigram":
        return BigramDecoder(plan, slots)
    if engine != "numpy":
        from minigpt_cli.generation.decoders import c as native

        if native.fits(plan) and (engine != "auto" or native.available()):
            return native.NativeDecoder(plan, slots, bits=32 if engine == "native-fp32" else 16)
    return NumpyDecoder(plan, slots)


def decoder_of(model: Any, slots: int = 1) -> Decoder:
    """A decoder for a torch model (its weights are copied), or `model` itself if it already is a decoder."""
    if hasattr(model, "extend"):
        return model  # type: ignore[no-any-return]
    device = next(model.parameters()).device.type
    if model.config.arch in KNOWN and device == "cpu":
        return decoder_for(build_plan(model.config, {name: t.detach().float().numpy() for name, t in model.state_dict().items()}), slots)
    from minigpt_cli.generation.decoders.torch import TorchDecoder

    return TorchDecoder(model, slots)
