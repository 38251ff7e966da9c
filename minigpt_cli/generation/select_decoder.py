"""Which decoder runs a model: C if there is a library and it knows the model, else torch."""

from __future__ import annotations

from typing import Any

from minigpt_cli.errors import unknown_name
from minigpt_cli.generation.decoders.bigram import BigramDecoder
from minigpt_cli.generation.decoders.contract import Decoder
from minigpt_cli.generation.decoders.weights import DECODED, DecoderWeights, check_declared_weights, decoder_weights
from minigpt_cli.registry import check_declared

MAX_SLOTS = 64
SLOT_MEMORY = 1 << 30  # bytes of keys and values that all slots together may take
ENGINES = ("auto", "native", "native-fp32", "native-int8", "torch")
_BITS = {"native-fp32": 32, "native-int8": 8}


def check_engine(engine: str) -> None:
    """Raise UsageError unless there is an engine of this name."""
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)


def needs_torch(config: Any, engine: str = "auto") -> bool:
    """Whether torch decodes a model of this configuration: it was asked for, C does not know the model, or there is no library."""
    if config.decodes_as is None:
        return True
    check_declared(config, "decodes_as", DECODED)
    if config.decodes_as == "bigram":
        return False
    from minigpt_cli.generation.decoders import c

    return engine == "torch" or not c.fits(config) or (engine == "auto" and not c.available())


def slots_for(config: Any, wanted: int, cache_bits: int = 32) -> int:
    """`wanted` slots, or as many as fit the memory for keys and values of so many bits."""
    per_slot = 1
    if hasattr(config, "kv_heads"):
        per_slot = 2 * config.n_layer * config.kv_heads * (config.n_embd // config.n_head) * config.block_size * cache_bits // 8
    return max(1, min(wanted, MAX_SLOTS, SLOT_MEMORY // per_slot))


def decoder_of(model: Any, slots: int = 1, engine: str = "auto") -> Decoder:
    """A decoder of at most `slots` slots for DecoderWeights (in C) or for a torch model (in C with a copy of its weights, or in torch);
    `model` itself if it is a decoder. Raises UsageError for an unknown engine, MiniGPTError for one that is not available."""
    if hasattr(model, "extend"):
        return model  # type: ignore[no-any-return]
    check_engine(engine)
    config = model.config
    if isinstance(model, DecoderWeights):
        weights = model
    elif needs_torch(config, engine) or next(model.parameters()).device.type != "cpu":
        from minigpt_cli.generation.decoders.torch import TorchDecoder

        return TorchDecoder(model, slots_for(config, slots))
    else:
        tensors = {name: t.detach().float().numpy() for name, t in model.state_dict().items()}
        check_declared_weights(config, model.vocab_size, {name: array.shape for name, array in tensors.items()})
        weights = decoder_weights(config, tensors)
    if config.decodes_as == "bigram":
        return BigramDecoder(weights, slots_for(config, slots))
    from minigpt_cli.generation.decoders.c import NativeDecoder

    bits = _BITS.get(engine, 16)
    return NativeDecoder(weights, slots_for(config, slots, max(16, bits)), bits=bits)
