"""Weights map one to one onto transformers' own models: equal logits, and back again without loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minigpt_cli.config import BigramConfig, ClassicConfig, ModelConfig, ModernConfig, MoEConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.interchange.hf_weights import family, from_hf, to_hf
from minigpt_cli.models.contract import build_model

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
V, T = 11, 8
SIZES = {"block_size": T, "n_layer": 2, "n_head": 4, "n_embd": 32}
MODERN = SIZES | {"zero_init": False, "rms_norm_eps": 1e-5, "rope_theta": 500.0}
CASES: dict[str, ModelConfig] = {
    "gpt2": ClassicConfig(**SIZES),
    "gpt2-bias-tied-tanh": ClassicConfig(**SIZES, bias=True, tie_weights=True, activation="gelu_tanh"),
    "gpt2-relu": ClassicConfig(**SIZES, activation="relu"),
    "gpt2-narrow": ClassicConfig(**SIZES, ffn_mult=1.3),
    "llama": ModernConfig(**MODERN, qk_norm=False),
    "llama-grouped-tied": ModernConfig(**MODERN, qk_norm=False, n_kv_head=2, tie_weights=True),
    "qwen3": ModernConfig(**MODERN, n_kv_head=2),
    "mixtral": MoEConfig(**MODERN, qk_norm=False, moe_norm_topk=True, n_experts=3),
    "qwen3_moe": MoEConfig(**MODERN, n_experts=3, n_kv_head=1),
    "qwen3_moe-norm": MoEConfig(**MODERN, moe_norm_topk=True),
    "qwen2_moe": MoEConfig(**MODERN, qk_norm=False, moe_top_k=1),
}


def random_model(config: ModelConfig) -> torch.nn.Module:
    """Every weight, gains and biases too, far enough from its initial value to show a mistake."""
    model = build_model(config, V, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.2)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    config = CASES[name]
    model = random_model(config)
    hf_config, hf_state = to_hf(config, model.state_dict())
    assert hf_config["model_type"] == family(config) == name.split("-")[0]
    (tmp_path / "config.json").write_text(json.dumps(hf_config), encoding="utf-8")
    save_file(hf_state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    ids = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs.eval()(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back_gives_the_same_weights(name: str) -> None:
    config = CASES[name]
    state = random_model(config).state_dict()
    back_config, back = from_hf(*to_hf(config, state))
    assert family(back_config) == family(config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    same = {
        "block_size",
        "n_layer",
        "n_head",
        "n_embd",
        "tie_weights",
        "bias",
        "activation",
        "rope_theta",
        "rms_norm_eps",
        "n_experts",
        "moe_top_k",
    }
    assert back_config.model_dump(include=same) == config.model_dump(include=same)


def test_what_hugging_face_cannot_express_is_refused() -> None:
    with pytest.raises(UsageError, match="bigram"):
        to_hf(BigramConfig(), {"table": torch.zeros(V, V)})
    config = MoEConfig(**MODERN, moe_balance="bias")
    state = random_model(config).state_dict()
    to_hf(config, state)  # a bias of zero changes no choice
    state["blocks.1.moe.balance_bias"] = torch.tensor([0.1, 0.0, 0.0, 0.0])
    with pytest.raises(UsageError, match="--moe-balance bias"):
        to_hf(config, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "llama"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type"),
        ({"intermediate_size": 40}, "multiples of 16"),
    ],
)
def test_what_we_cannot_express_is_refused(change: dict[str, object], message: str) -> None:
    hf_config, hf_state = to_hf(CASES["llama"], random_model(CASES["llama"]).state_dict())
    with pytest.raises(UsageError, match=message):
        from_hf(hf_config | change, hf_state)


def test_missing_and_extra_weights_are_refused() -> None:
    hf_config, hf_state = to_hf(CASES["llama"], random_model(CASES["llama"]).state_dict())
    with pytest.raises(UsageError, match="does not have"):
        from_hf(hf_config, hf_state | {"model.layers.0.extra.weight": torch.ones(1)})
    del hf_state["model.norm.weight"]
    with pytest.raises(UsageError, match=r"model\.norm\.weight"):
        from_hf(hf_config, hf_state)


def test_gpt2_without_prefix_and_with_mask_buffers_loads() -> None:
    config = CASES["gpt2-bias-tied-tanh"]
    state = random_model(config).state_dict()
    hf_config, hf_state = to_hf(config, state)
    on_the_hub = {name.removeprefix("transformer."): t for name, t in hf_state.items()} | {"h.0.attn.bias": torch.ones(1, 1, T, T)}
    _, back = from_hf(hf_config, on_the_hub)
    assert all(torch.equal(back[key], state[key]) for key in state)
