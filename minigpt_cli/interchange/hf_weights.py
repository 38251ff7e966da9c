"""Our weights and configurations in Hugging Face's names, in both directions, as one table of rules. It needs no transformers.

A rule says that one tensor of ours is several of theirs, stacked on the rows and perhaps transposed (GPT-2 stores its matrices
input-first). This is enough: q, k, v and gate, up are fused here, and experts are stacked.

    classic  GPT-2                       missing biases are written as zeros
    modern   Llama, with qk_norm Qwen3
    moe      with qk_norm Qwen3-MoE; without it Mixtral (weights renormalised over the chosen experts)
             or Qwen2-MoE (not renormalised; its shared expert and its biases are written as zeros)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minigpt_cli.config import ARCHITECTURES, ClassicConfig, ModelConfig, ModernConfig, MoEConfig, PlainConfig
from minigpt_cli.errors import UsageError, unknown_name
from minigpt_cli.registry import check_declared

State = dict[str, Tensor]
FAMILIES = ("gpt2", "llama", "qwen3", "mixtral", "qwen3_moe", "qwen2_moe")
_NEEDS = {"gpt2": ClassicConfig, "llama": ModernConfig}  # the settings that the rules of each declared family read


@dataclass(frozen=True)
class Rule:
    """`ours` is `theirs` stacked on dim 0; `rows` are the heights of the pieces, needed for more than one."""

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transpose: bool = False


@dataclass(frozen=True)
class WeightMap:
    """The rules of one configuration, and the tensors of theirs that we lack (name to shape), which are zeros."""

    rules: tuple[Rule, ...]
    zeros: Mapping[str, tuple[int, ...]]


def family(config: ModelConfig) -> str:
    """The Hugging Face `model_type` that computes exactly what `config` does. Raises UsageError if there is none."""
    if config.hugging_face is None:
        known = ", ".join(arch for arch, each in ARCHITECTURES.items() if each.hugging_face)
        arch = f"plain --without {config.without}" if isinstance(config, PlainConfig) and config.without else config.arch
        raise UsageError(f"Hugging Face has no architecture like --arch {arch}: only runs of {known} can be written in its format")
    check_declared(config, "hugging_face", _NEEDS)
    if isinstance(config, MoEConfig):
        return "qwen3_moe" if config.qk_norm else "mixtral" if config.moe_norm_topk else "qwen2_moe"
    if isinstance(config, ModernConfig):
        return "qwen3" if config.qk_norm else "llama"
    return config.hugging_face


def to_hf(config: ModelConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], State]:
    """Hugging Face's config.json as a dict, and its state dict. Raises UsageError for what it cannot express."""
    for name, tensor in state.items():
        if name.endswith("moe.balance_bias") and tensor.any():
            raise UsageError("no Hugging Face architecture has --moe-balance bias: train with aux or none to export")
    mapping = weight_mapping(config)
    _check_tensors(config, mapping, state)
    result: State = {}
    for rule in mapping.rules:
        pieces = torch.split(state[rule.ours], list(rule.rows) or state[rule.ours].size(0))
        for name, piece in zip(rule.theirs, pieces, strict=True):
            result[name] = (piece.T if rule.transpose else piece).contiguous()
    some = next(iter(result.values()))
    result.update({name: some.new_zeros(shape) for name, shape in mapping.zeros.items()})
    return hf_config(config, vocab_size=state["token_embedding.weight"].size(0)), result


def _check_tensors(config: ModelConfig, mapping: WeightMap, state: Mapping[str, Tensor]) -> None:
    """Raise UsageError unless the rules cover the tensors of a model: one that only declares a family may have others."""
    heights = {rule.ours: sum(rule.rows) for rule in mapping.rules}
    foreign = [name for name, tensor in state.items() if name not in heights and tensor.any()]
    unfit = [name for name, rows in heights.items() if name not in state or (rows and state[name].size(0) != rows)]
    if wrong := unfit + foreign:
        says = f"--arch {config.arch} declares hugging_face = {config.hugging_face!r} in config.py"
        raise UsageError(f"{says} but its tensors are not those of a {family(config)}: see {wrong[0]}, or remove hugging_face")


def from_hf(theirs: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[ModelConfig, State]:
    """Our configuration and state dict. Raises UsageError for an architecture or a setting that we cannot express."""
    # Base models, such as GPT-2 on the hub, are saved without the prefix that a language model puts before its body's names.
    prefix = {"gpt2": "transformer."}.get(str(theirs.get("model_type")), "model.")
    named = {name if name.startswith((prefix, "lm_head.")) else prefix + name: tensor for name, tensor in state.items()}
    named = {name: tensor for name, tensor in named.items() if not name.endswith((".attn.bias", ".attn.masked_bias", ".inv_freq"))}
    config = model_config(theirs, has_bias=any(name.endswith("bias") and bool(t.any()) for name, t in named.items()))
    mapping = weight_mapping(config)
    result: State = {}
    for rule in mapping.rules:
        if missing := [name for name in rule.theirs if name not in named]:
            raise UsageError(f"{theirs['model_type']} weights lack {missing[0]}: is the file complete?")
        pieces = [named.pop(name) for name in rule.theirs]
        result[rule.ours] = torch.cat([piece.T if rule.transpose else piece for piece in pieces]).contiguous()
    if config.tie_weights:  # type: ignore[union-attr]
        named.pop("lm_head.weight", None)
    for name, tensor in named.items():
        if name not in mapping.zeros or tensor.any():
            raise UsageError(f"{theirs['model_type']} weights hold {name}, which --arch {config.arch} does not have")
    return config, result


# ---- weights


def weight_mapping(config: ModelConfig) -> WeightMap:
    """The rules for every tensor of a model of this configuration."""
    if family(config) == "gpt2":
        assert isinstance(config, ClassicConfig)
        return WeightMap(tuple(_gpt2_rules(config)), dict(_gpt2_zeros(config)))
    assert isinstance(config, ModernConfig)
    zeros = dict(_qwen2_moe_zeros(config)) if family(config) == "qwen2_moe" else {}
    return WeightMap(tuple(_llama_rules(config)), zeros)


_GPT2_BLOCK = {  # ours: theirs, transposed or not
    "norm1": ("ln_1", False),
    "attention.qkv": ("attn.c_attn", True),
    "attention.out": ("attn.c_proj", True),
    "norm2": ("ln_2", False),
    "mlp.up": ("mlp.c_fc", True),
    "mlp.down": ("mlp.c_proj", True),
}


def _gpt2_rules(c: ClassicConfig) -> Iterator[Rule]:
    yield Rule("token_embedding.weight", ("transformer.wte.weight",))
    yield Rule("position_embedding.weight", ("transformer.wpe.weight",))
    layers = [
        (f"blocks.{i}.{ours}", f"transformer.h.{i}.{theirs}", t) for i in range(c.n_layer) for ours, (theirs, t) in _GPT2_BLOCK.items()
    ]
    for ours, theirs, transpose in [*layers, ("final_norm", "transformer.ln_f", False)]:
        yield Rule(f"{ours}.weight", (f"{theirs}.weight",), transpose=transpose)
        if c.bias:
            yield Rule(f"{ours}.bias", (f"{theirs}.bias",))
    if not c.tie_weights:
        yield Rule("head.weight", ("lm_head.weight",))


def _gpt2_zeros(c: ClassicConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not c.bias:
        C = c.n_embd
        width = {"attn.c_attn": 3 * C, "mlp.c_fc": c.hidden}
        for i in range(c.n_layer):
            for theirs, _ in _GPT2_BLOCK.values():
                yield f"transformer.h.{i}.{theirs}.bias", (width.get(theirs, C),)
        yield "transformer.ln_f.bias", (C,)


def _llama_rules(c: ModernConfig) -> Iterator[Rule]:
    D = c.n_embd // c.n_head
    kv_rows = (c.n_kv_head or c.n_head) * D
    yield Rule("token_embedding.weight", ("model.embed_tokens.weight",))
    for i in range(c.n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield Rule(f"{ours}.norm1.weight", (f"{theirs}.input_layernorm.weight",))
        qkv = tuple(f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv")
        yield Rule(f"{ours}.attention.qkv.weight", qkv, rows=(c.n_embd, kv_rows, kv_rows))
        if c.qk_norm:
            yield Rule(f"{ours}.attention.q_norm.weight", (f"{theirs}.self_attn.q_norm.weight",))
            yield Rule(f"{ours}.attention.k_norm.weight", (f"{theirs}.self_attn.k_norm.weight",))
        yield Rule(f"{ours}.attention.out.weight", (f"{theirs}.self_attn.o_proj.weight",))
        yield Rule(f"{ours}.norm2.weight", (f"{theirs}.post_attention_layernorm.weight",))
        yield from _expert_rules(c, ours, theirs) if isinstance(c, MoEConfig) else _swiglu_rules(c, ours, theirs)
    yield Rule("final_norm.weight", ("model.norm.weight",))
    if not c.tie_weights:
        yield Rule("head.weight", ("lm_head.weight",))


def _swiglu_rules(c: ModernConfig, ours: str, theirs: str) -> Iterator[Rule]:
    F = c.hidden
    yield Rule(f"{ours}.mlp.gate_up.weight", (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight"), rows=(F, F))
    yield Rule(f"{ours}.mlp.down.weight", (f"{theirs}.mlp.down_proj.weight",))


def _expert_rules(c: MoEConfig, ours: str, theirs: str) -> Iterator[Rule]:
    E, F = c.n_experts, c.hidden
    mixtral = family(c) == "mixtral"
    theirs += ".block_sparse_moe" if mixtral else ".mlp"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    yield Rule(f"{ours}.moe.router.weight", (f"{theirs}.gate.weight",))
    stacked = tuple(f"{theirs}.experts.{e}.{x}.weight" for e in range(E) for x in (gate, up))
    yield Rule(f"{ours}.moe.gate_up", stacked, rows=(F,) * (2 * E))
    yield Rule(f"{ours}.moe.down", tuple(f"{theirs}.experts.{e}.{down}.weight" for e in range(E)), rows=(c.n_embd,) * E)


_SHARED_EXPERT = 16  # hidden width of the zero expert that Qwen2-MoE needs


def _qwen2_moe_zeros(c: ModernConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    C, kv_rows = c.n_embd, (c.n_kv_head or c.n_head) * (c.n_embd // c.n_head)
    for i in range(c.n_layer):
        layer = f"model.layers.{i}"
        for x, rows in (("q", C), ("k", kv_rows), ("v", kv_rows)):
            yield f"{layer}.self_attn.{x}_proj.bias", (rows,)
        yield f"{layer}.mlp.shared_expert.gate_proj.weight", (_SHARED_EXPERT, C)
        yield f"{layer}.mlp.shared_expert.up_proj.weight", (_SHARED_EXPERT, C)
        yield f"{layer}.mlp.shared_expert.down_proj.weight", (C, _SHARED_EXPERT)
        yield f"{layer}.mlp.shared_expert_gate.weight", (1, C)


# ---- configurations

_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}  # ours to theirs


def hf_config(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """The dict for config.json. The ids of begin and end tokens are null; the caller adds those of the tokenizer."""
    kind = family(config)
    common = {"model_type": kind, "architectures": [_CLASSES[kind]], "vocab_size": vocab_size, "dtype": "float32"}
    common |= {"bos_token_id": None, "eos_token_id": None}
    if isinstance(config, ClassicConfig):
        c = config
        sizes = {"n_positions": c.block_size, "n_embd": c.n_embd, "n_layer": c.n_layer, "n_head": c.n_head}
        sizes |= {} if c.ffn_mult == 4 else {"n_inner": c.hidden}
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout)
        rest = {"activation_function": _ACTIVATIONS[c.activation], "layer_norm_epsilon": 1e-5, "initializer_range": c.init_std}
        return common | sizes | dropout | rest | {"tie_word_embeddings": c.tie_weights}
    assert isinstance(config, ModernConfig)
    return common | _llama_config(config) | (_moe_config(config, kind) if isinstance(config, MoEConfig) else {})


def _llama_config(c: ModernConfig) -> dict[str, Any]:
    return {
        "hidden_size": c.n_embd,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head or c.n_head,
        "head_dim": c.n_embd // c.n_head,
        "max_position_embeddings": c.block_size,
        "hidden_act": "silu",
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,  # where transformers 4 and converters read it
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},  # where transformers 5 reads it
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": c.init_std,
        "tie_word_embeddings": c.tie_weights,
    }


def _moe_config(c: MoEConfig, kind: str) -> dict[str, Any]:
    common: dict[str, Any] = {"num_experts_per_tok": c.moe_top_k, "router_aux_loss_coef": c.moe_aux_loss_coef, "sliding_window": None}
    if kind == "mixtral":
        return common | {"num_local_experts": c.n_experts}
    common |= {"num_experts": c.n_experts, "moe_intermediate_size": c.hidden, "norm_topk_prob": c.moe_norm_topk}
    common |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    if kind == "qwen2_moe":
        common |= {"shared_expert_intermediate_size": _SHARED_EXPERT, "qkv_bias": True}
    return common


def model_config(theirs: Mapping[str, Any], has_bias: bool) -> ModelConfig:
    """Our configuration for Hugging Face's config.json. Raises UsageError with the first setting that we cannot express."""
    kind = str(theirs.get("model_type"))
    if kind not in FAMILIES:
        raise unknown_name("Hugging Face architecture", kind, FAMILIES)
    return _from_gpt2(theirs, has_bias) if kind == "gpt2" else _from_llama(theirs, kind)


def _require(theirs: Mapping[str, Any], **expected: Any) -> None:
    """Raise UsageError if a setting is present with another value than the one we compute with."""
    for name, value in expected.items():
        if (found := theirs.get(name)) is not None and found != value:
            raise UsageError(f"this {theirs['model_type']} has {name} = {found!r}, and minigpt computes only with {value!r}")


def _from_gpt2(t: Mapping[str, Any], has_bias: bool) -> ClassicConfig:
    _require(t, layer_norm_epsilon=1e-5, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    activation = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}.get(t.get("activation_function", "gelu_new"))
    if activation is None:
        raise UsageError(
            f"this gpt2 has activation_function = {t['activation_function']!r}, and minigpt has {', '.join(_ACTIVATIONS.values())}"
        )
    sizes = {name: t[name] for name in ("n_layer", "n_head", "n_embd")}
    sizes["ffn_mult"] = (t.get("n_inner") or 4 * t["n_embd"]) / t["n_embd"]
    tied = t.get("tie_word_embeddings", True)
    return ClassicConfig(block_size=t["n_positions"], activation=activation, bias=has_bias, tie_weights=tied, **sizes)


def _from_llama(t: Mapping[str, Any], kind: str) -> ModernConfig:
    C, H = t["hidden_size"], t["num_attention_heads"]
    rope = dict(t.get("rope_parameters") or t.get("rope_scaling") or {})
    _require({**t, "rope_type": rope.get("rope_type", rope.get("type"))}, rope_type="default")
    _require(t, hidden_act="silu", head_dim=C // H, attention_bias=False, mlp_bias=False, use_sliding_window=False)
    _require(t, decoder_sparse_step=1, mlp_only_layers=[])
    if kind == "mixtral":
        _require(t, sliding_window=t["max_position_embeddings"])
    expert = kind in ("qwen3_moe", "qwen2_moe")
    F = t["moe_intermediate_size"] if expert else t["intermediate_size"]
    if F % 16:
        raise UsageError(f"this {kind} has a hidden width of {F}, and minigpt computes only with multiples of 16")
    fields: dict[str, Any] = {
        "block_size": t["max_position_embeddings"],
        "n_layer": t["num_hidden_layers"],
        "n_head": H,
        "n_embd": C,
        "n_kv_head": 0 if t.get("num_key_value_heads", H) == H else t["num_key_value_heads"],
        "ffn_mult": F / C,
        "rms_norm_eps": t.get("rms_norm_eps", 1e-6),
        "rope_theta": rope.get("rope_theta", t.get("rope_theta", 10_000.0)),
        "qk_norm": kind.startswith("qwen3"),
        "zero_init": False,
        "tie_weights": t.get("tie_word_embeddings", False),
    }
    if kind in ("llama", "qwen3"):
        return ModernConfig(**fields)
    fields |= {"n_experts": t["num_experts" if expert else "num_local_experts"], "moe_top_k": t["num_experts_per_tok"]}
    return MoEConfig(**fields, moe_norm_topk=t.get("norm_topk_prob", False) if expert else True, moe_balance="none")
