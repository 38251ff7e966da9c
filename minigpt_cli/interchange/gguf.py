"""Export a run as a GGUF file, which llama.cpp, Ollama and LM Studio open.

The weights first get their Hugging Face names (hf_weights.py), so this is a table of names and three special cases:

- llama.cpp's `llama` rotates neighbouring pairs (2i, 2i+1) where Hugging Face rotates halves (i, i + D/2): rows of q and
  k are put in that order. `qwen3`, `qwen2moe` and `dots1` rotate halves.
- `qwen3moe` renormalises the router's weights over the chosen experts; `qwen2moe` does not, but has no QK-norm. QK-norm
  without renormalising is `dots1`: its shared expert is written as zeros, and each query head gets its keys and values.
- llama.cpp needs an end token: it gets the mean of all output rows, so that its logit is the mean of the others and
  never the largest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from minigpt_cli.checkpoints import Loaded
from minigpt_cli.data.chat import END, TEMPLATE
from minigpt_cli.data.opening import opening_of
from minigpt_cli.errors import MissingExtra, UsageError
from minigpt_cli.escaping import file_name, one_line
from minigpt_cli.interchange.folders import new_folder
from minigpt_cli.interchange.gguf_vocabulary import Vocabulary, vocabulary
from minigpt_cli.interchange.hf_weights import to_hf
from minigpt_cli.interchange.huggingface import Exported
from minigpt_cli.interchange.model_card import gguf_card, modelfile
from minigpt_cli.storage import atomic_io

Array = npt.NDArray[np.float32]
_FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7, "q5_0": 8, "q4_0": 2}
DTYPES = tuple(_FILE_TYPE)
_ROUNDED = ("q8_0", "q5_0", "q4_0")  # the library reads the k-quants (q4_k, q5_k) but does not write them
_BLOCK = 32  # numbers that share one scale in them

_ROOTS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight",
    "transformer.ln_f.bias": "output_norm.bias",
}
_IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_EXPERT = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
_NAME = re.compile(r"^(?:model\.layers|transformer\.h)\.(\d+)\.(.+)\.(weight|bias)$")
_EXPERT_NAME = re.compile(r"^model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight$")


def export(loaded: Loaded, out: Path, dtype: str = "f16") -> Exported:
    """Write `out/` with the GGUF file, a Modelfile for Ollama and a card. Raises UsageError, before writing, for what GGUF lacks."""
    name = loaded.record.name
    file = f"{file_name(name)}-{dtype}.gguf"
    config, tensors = to_hf(loaded.config.model, loaded.model.state_dict())
    tokenizer_json = loaded.tokenizer.to_json()
    arch = architecture(config)
    library(dtype)
    vocabulary(tokenizer_json, config["vocab_size"])
    atomic_io.check_space(out, 6 * sum(t.numel() for t in tensors.values()))
    with new_folder(out) as folder:
        write(folder / file, name, config, tensors, tokenizer_json, dtype)
        (folder / "Modelfile").write_text(modelfile(file, loaded.config.model.block_size), encoding="utf-8")
        prompt = opening_of(loaded.record, loaded.tokenizer).raw
        card = gguf_card(loaded, arch, file, file_name(name).lower(), prompt)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Exported(out, ["Modelfile", "README.md", file], arch)


def architecture(config: dict[str, Any]) -> str:
    """llama.cpp's architecture for a Hugging Face config. Raises UsageError, with the setting, if there is none."""
    kind = config["model_type"]
    if kind == "gpt2":
        # llama.cpp reads GELU from a table in float16, which rounds more than the tanh formula differs from the exact one.
        if config["activation_function"] not in ("gelu_new", "gelu"):
            raise UsageError(f"GGUF cannot express --activation {config['activation_function']}: its GPT-2 has only GELU; use --format hf")
        return "gpt2"
    if kind == "qwen3_moe":
        return "qwen3moe" if config["norm_topk_prob"] else "dots1"
    if kind == "qwen2_moe" and config["norm_topk_prob"]:
        raise UsageError("GGUF cannot express a Qwen2-MoE that renormalises its router; export with --format hf")
    return {"llama": "llama", "mixtral": "llama", "qwen3": "qwen3", "qwen2_moe": "qwen2moe"}[kind]


def write(path: Path, name: str, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer_json: str, dtype: str) -> None:
    """Write one GGUF file from a model in its Hugging Face form."""
    gguf = library(dtype)
    arch = architecture(config)
    vocab = vocabulary(tokenizer_json, config["vocab_size"])
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(one_line(name))
    writer.add_file_type(_FILE_TYPE[dtype])
    if dtype in _ROUNDED:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_shape(writer, arch, config)
    _write_vocabulary(writer, vocab)
    for tensor_name, values in renamed(arch, config, tensors, vocab):
        kind = storage(tensor_name, values, dtype)
        if kind in _ROUNDED:
            raw = gguf.GGMLQuantizationType[kind.upper()]
            writer.add_tensor(tensor_name, gguf.quantize(values, raw), raw_dtype=raw)
        else:
            writer.add_tensor(tensor_name, values.astype(np.float16 if kind == "f16" else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def library(dtype: str) -> Any:
    """The gguf library. Raises UsageError for an unknown number format, MissingExtra if it is not installed."""
    if dtype not in DTYPES:
        raise UsageError(f"--format gguf has no --dtype {dtype}: {', '.join(DTYPES)}")
    try:
        import gguf
    except ImportError:
        raise MissingExtra("the GGUF format", "gguf") from None
    return gguf


def storage(name: str, values: Array, dtype: str) -> str:
    """The number format of one tensor: always f32 for gains, biases, positions and routers; f16 for rows that blocks cannot divide; at
    least q8_0 for the embedding and the head."""
    if dtype == "f32" or values.ndim == 1 or name.startswith("position_embd") or "ffn_gate_inp" in name:
        return "f32"
    if dtype in _ROUNDED and values.shape[-1] % _BLOCK:
        return "f16"
    return "q8_0" if dtype in _ROUNDED and name in ("token_embd.weight", "output.weight") else dtype


def _write_shape(writer: Any, arch: str, config: dict[str, Any]) -> None:
    gpt2 = arch == "gpt2"
    width, heads = (config["n_embd"], config["n_head"]) if gpt2 else (config["hidden_size"], config["num_attention_heads"])
    writer.add_context_length(config["n_positions"] if gpt2 else config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["n_layer"] if gpt2 else config["num_hidden_layers"])
    writer.add_head_count(heads)
    if gpt2:
        writer.add_feed_forward_length(_inner(config))
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_head_count_kv(heads if arch == "dots1" else config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    head_size = config.get("head_dim") or width // heads
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(rope_theta(config))
    if experts := config.get("num_local_experts") or config.get("num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if arch == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if arch == "dots1":
        writer.add_leading_dense_block_count(0)
        writer.add_expert_shared_count(1)
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_weights_norm(False)
        writer.add_uint32(f"{arch}.expert_gating_func", 1)  # softmax over all experts


def _inner(config: dict[str, Any]) -> int:
    return config.get("n_inner") or 4 * int(config["n_embd"])


def rope_theta(config: dict[str, Any]) -> float:
    """The base of the rotary frequencies, in either form of the config."""
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("rope_theta", config.get("rope_theta", 10_000.0)))


def _write_vocabulary(writer: Any, vocab: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocab.pattern)
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    writer.add_token_merges(vocab.merges)
    writer.add_bos_token_id(vocab.end_id)
    writer.add_eos_token_id(vocab.end_id)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if END in vocab.tokens:
        writer.add_chat_template(TEMPLATE)


def renamed(arch: str, config: dict[str, Any], tensors: dict[str, Tensor], vocab: Vocabulary) -> Iterator[tuple[str, Array]]:
    """Every tensor under llama.cpp's name, in its layout."""
    experts: dict[tuple[int, str], dict[int, Array]] = {}
    for name, tensor in tensors.items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings") and arch != "qwen2moe":
            continue  # llama.cpp uses the embedding if there is no head; its qwen2moe needs one
        values = tensor.detach().float().cpu().numpy()
        if match := _EXPERT_NAME.match(name):
            experts.setdefault((int(match[1]), f"ffn_{_EXPERT[match[3]]}_exps"), {})[int(match[2])] = values
            continue
        yield _place(arch, config, name, values, vocab)
    for (layer, name), parts in experts.items():
        yield f"blk.{layer}.{name}.weight", np.stack([parts[i] for i in range(len(parts))])  # (experts, out, in)
    if arch == "qwen2moe" and "lm_head.weight" not in tensors:
        yield _place(arch, config, "lm_head.weight", tensors["model.embed_tokens.weight"].detach().float().cpu().numpy(), vocab)
    yield from _fillers(arch, config, tensors)


def _place(arch: str, config: dict[str, Any], name: str, values: Array, vocab: Vocabulary) -> tuple[str, Array]:
    if name in _ROOTS:
        target = _ROOTS[name]
        if vocab.added and target in ("token_embd.weight", "output.weight"):
            values = np.concatenate([values, values.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)])
        return target, values
    match = _NAME.match(name)
    if not match or (match[2] not in _IN_BLOCK and match[2] != "mlp.shared_expert_gate"):
        raise UsageError(f"GGUF has no name for the tensor {name}; export with --format hf")
    layer, part, kind = match.groups()
    if part == "mlp.shared_expert_gate":
        # llama.cpp computes this sigmoid as silu(x) / x, which is NaN at x = 0. For a shared expert of zeros any other gate will do.
        return f"blk.{layer}.ffn_gate_inp_shexp.weight", values.reshape(-1) if values.any() else np.ones(values.size, np.float32)
    if arch == "gpt2" and values.ndim == 2:
        values = np.ascontiguousarray(values.T)  # Conv1D keeps (in, out)
    if arch == "dots1" and part in ("self_attn.k_proj", "self_attn.v_proj"):
        values = repeated_heads(values, config["num_key_value_heads"], config["num_attention_heads"])
    if arch == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
        values = neighbouring_pairs(values, config["num_attention_heads"] if part.endswith("q_proj") else config["num_key_value_heads"])
    return f"blk.{layer}.{_IN_BLOCK[part]}.{kind}", values


def neighbouring_pairs(weight: Array, n_head: int) -> Array:
    """Rows (H D, C) of a projection reordered so that rotating pairs (2i, 2i+1) equals rotating (i, i + D/2) before."""
    halves = weight.reshape(n_head, 2, weight.shape[0] // n_head // 2, *weight.shape[1:])  # (H, 2, D/2, C)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def repeated_heads(weight: Array, n_kv_head: int, n_head: int) -> Array:
    """Rows (K D, C) of a grouped projection written out for each of the H heads (H D, C)."""
    return np.repeat(weight.reshape(n_kv_head, -1, weight.shape[1]), n_head // n_kv_head, axis=0).reshape(-1, weight.shape[1])


def _fillers(arch: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[tuple[str, Array]]:
    """Tensors of zeros that llama.cpp needs and the model does not have."""
    if arch == "gpt2":
        width = config["n_embd"]
        sizes = dict.fromkeys(("attn_norm", "attn_output", "ffn_norm", "ffn_down"), width)
        sizes |= {"attn_qkv": 3 * width, "ffn_up": _inner(config)}
        places = {gguf: hf for hf, gguf in _IN_BLOCK.items() if hf.startswith(("ln_", "attn.", "mlp.c_"))}
        for layer in range(config["n_layer"]):
            for part, size in sizes.items():
                if f"transformer.h.{layer}.{places[part]}.bias" not in tensors:
                    yield f"blk.{layer}.{part}.bias", np.zeros(size, np.float32)
        if "transformer.ln_f.bias" not in tensors:
            yield "output_norm.bias", np.zeros(width, np.float32)
    if arch == "dots1":
        width, inner = config["hidden_size"], config["moe_intermediate_size"]
        for layer in range(config["num_hidden_layers"]):
            for part, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
                yield f"blk.{layer}.ffn_{part}_shexp.weight", np.zeros(shape, np.float32)
