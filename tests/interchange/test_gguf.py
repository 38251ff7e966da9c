"""GGUF files against llama.cpp itself: the same ids, the same logits, the same greedy text, for every family and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from minigpt_cli import checkpoints
from minigpt_cli.errors import UsageError
from minigpt_cli.interchange import gguf
from minigpt_cli.interchange.gguf_vocabulary import CONTROL, UNUSED, vocabulary
from minigpt_cli.interchange.hf_weights import to_hf
from minigpt_cli.tokenization.bytelevel import CHARACTER_OF_BYTE

TEXT = "Where are  you, old friend? né à Zürich\n\tdon't — 漢字 🙂 1234 , end . "


def char_json(text: str = TEXT) -> str:
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(sorted(set(text)))}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return str(tokenizer.to_str())


def bpe_json(vocab_size: int = 290) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator([TEXT, "the cat sat on the mat, the friend of the old friend"] * 3, trainer)
    return str(tokenizer.to_str())


def byte_json() -> str:
    document = json.loads(bpe_json(257))
    document["model"]["merges"] = []
    document["model"]["vocab"] = {c: byte for byte, c in CHARACTER_OF_BYTE.items()}
    return json.dumps(document)


TOKENIZERS = {"char": char_json, "byte": byte_json, "bpe": bpe_json}
COMMON = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "head_dim": 8, "intermediate_size": 48, "rope_theta": 5000.0, "rms_norm_eps": 1e-5, "attention_bias": False,
    "tie_word_embeddings": False,
}  # fmt: skip
MOE = COMMON | {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": []}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "activation_function": "gelu_new"},
    "llama": {"model_type": "llama"} | COMMON,
    "llama-tied": {"model_type": "llama"} | COMMON | {"tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"} | COMMON,
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2} | COMMON,
    "qwen3moe": {"model_type": "qwen3_moe", "norm_topk_prob": True} | MOE,
    "dots1": {"model_type": "qwen3_moe", "norm_topk_prob": False} | MOE,
    "qwen2moe": {"model_type": "qwen2_moe", "norm_topk_prob": False, "shared_expert_intermediate_size": 16, "qkv_bias": False} | MOE,
}


def random_model(family: str, vocab_size: int, folder: Path) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    """A transformers model with weights large enough for clear decisions, and what it saves: its config and tensors."""
    from safetensors.torch import load_file

    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    settings = dict(FAMILIES[family])
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), vocab_size=vocab_size, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.3)
            if "norm" in name or "ln_" in name:
                parameter.add_(1.0)
            if "shared_expert." in name:
                parameter.zero_()
    model.save_pretrained(folder)
    return model, json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    defaults = module.llama_cpp.llama_model_default_params

    def without_repacking() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    monkeypatch.setattr(module.llama_cpp, "llama_model_default_params", without_repacking)
    return module


def opened(llama_cpp: Any, path: Path) -> Any:
    """The model in llama.cpp, without weights repacked for AMX: its kernels for q8_0 crash on some virtual machines."""
    return llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1, flash_attn=False)


def exported(tmp_path: Path, family: str, kind: str, dtype: str = "f32") -> tuple[Any, Tokenizer, Path]:
    tokenizer_json = TOKENIZERS[kind]()
    tokenizer = Tokenizer.from_str(tokenizer_json)
    model, config, tensors = random_model(family, tokenizer.get_vocab_size(), tmp_path / "hf")
    gguf.write(tmp_path / "model.gguf", "test", config, tensors, tokenizer_json, dtype)
    return model, tokenizer, tmp_path / "model.gguf"


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_the_same_logits(llama_cpp: Any, tmp_path: Path, family: str) -> None:
    model, tokenizer, path = exported(tmp_path, family, "char")
    llama = opened(llama_cpp, path)
    ids = tokenizer.encode(TEXT).ids
    assert llama.tokenize(TEXT.encode()) == ids
    llama.eval(ids)
    theirs = torch.tensor(np.array(llama.scores[: len(ids), : tokenizer.get_vocab_size()]))
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0]
    # ggml looks GELU up in a float16 table: GPT-2 cannot be nearer than that.
    torch.testing.assert_close(theirs, ours, atol=0.05 if family == "gpt2" else 2e-3, rtol=1e-2 if family == "gpt2" else 1e-3)


@pytest.mark.parametrize("dtype", gguf.DTYPES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_llama_cpp_continues_greedily_with_the_same_characters(llama_cpp: Any, tmp_path: Path, kind: str, dtype: str) -> None:
    model, tokenizer, path = exported(tmp_path, "llama", kind, dtype)
    llama = opened(llama_cpp, path)
    ids = torch.tensor([tokenizer.encode("old friend").ids])
    for _ in range(24):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    answer = llama("old friend", max_tokens=24, temperature=0.0, repeat_penalty=1.0)["choices"][0]
    assert answer["finish_reason"] == "length"
    expected = tokenizer.decode(ids[0].tolist()).removeprefix("old friend")
    same = len(expected) if dtype == "f32" else 3  # rounded weights may decide a close call otherwise, but not at once
    assert answer["text"][:same] == expected.replace("�", "")[:same]  # llama-cpp-python drops bytes that are not UTF-8


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_llama_cpp_cuts_and_joins_text_as_the_tokenizer_does(llama_cpp: Any, tmp_path: Path, kind: str) -> None:
    _, tokenizer, path = exported(tmp_path, "llama", kind)
    llama = opened(llama_cpp, path)
    for text in (TEXT, "  a  n ", "dd\n\n\nnd" if kind == "char" else "l'été <|no such token|>\r\n x", "漢字漢"):
        if kind == "char":
            text = "".join(c for c in text if c in TEXT)
        ids = tokenizer.encode(text).ids
        assert llama.tokenize(text.encode()) == ids
        assert b"".join(llama.detokenize([i]) for i in ids).decode() == text


def test_end_token_is_never_the_most_probable(tmp_path: Path) -> None:
    words = vocabulary(char_json(), len(set(TEXT)))
    assert words.added
    assert words.end_id == len(set(TEXT))
    _, config, tensors = random_model("llama", len(set(TEXT)), tmp_path)
    head = dict(gguf.renamed("llama", config, tensors, words))["output.weight"]
    logits = np.random.default_rng(0).normal(size=(10_000, 32)) @ head.T
    assert (logits[:, -1] < logits[:, :-1].max(axis=1)).all()


def test_existing_end_token_is_used_and_padding_rows_are_unused() -> None:
    document = json.loads(bpe_json())
    size = len(document["model"]["vocab"])
    document["added_tokens"] = [{"id": size, "content": "<|endoftext|>", "special": True}]
    words = vocabulary(json.dumps(document), size + 3)
    assert (words.end_id, words.added, len(words.tokens)) == (size, False, size + 3)
    assert words.types[size:] == [CONTROL, UNUSED, UNUSED]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"normalizer": {"type": "NFC"}}, "NFC"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
        ({"model": {"type": "WordLevel", "vocab": {"word": 0}}}, "'word'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "byte-level"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}}, "pre-tokenizer"),
    ],
)
def test_tokenizers_that_llama_cpp_would_cut_otherwise_are_refused(change: dict[str, Any], says: str) -> None:
    document = json.loads(bpe_json()) | change
    with pytest.raises(UsageError, match=says):
        vocabulary(json.dumps(document), 1000)


@pytest.mark.parametrize(("dtype", "steps"), [("q8_0", 127), ("q5_0", 16), ("q4_0", 8)])
def test_rounded_weights_are_within_a_step_of_those_of_the_run(make_run: Any, tmp_path: Path, dtype: str, steps: int) -> None:
    library = pytest.importorskip("gguf", reason="the gguf library is not installed")
    loaded = checkpoints.load(make_run("demo", "qwen3"))
    gguf.export(loaded, tmp_path / "out", dtype)
    config, tensors = to_hf(loaded.config.model, loaded.model.state_dict())
    words = vocabulary(loaded.tokenizer.to_json(), config["vocab_size"])
    exact = dict(gguf.renamed("qwen3", config, tensors, words))
    read = {tensor.name: tensor for tensor in library.GGUFReader(tmp_path / "out" / f"demo-{dtype}.gguf").tensors}
    assert read.keys() == exact.keys()
    assert read["blk.0.attn_q.weight"].tensor_type.name == dtype.upper()
    for name, tensor in read.items():
        kind = tensor.tensor_type.name.lower()
        assert kind == gguf.storage(name, exact[name], dtype)
        if name in ("token_embd.weight", "output.weight"):
            assert kind == "q8_0"  # no coarser, whatever the others are
        values, wanted = library.dequantize(tensor.data, tensor.tensor_type), exact[name]
        if kind == "f32":
            assert (values == wanted).all()
            continue
        blocks = wanted.reshape(-1, 32)
        step = np.abs(blocks).max(axis=1, keepdims=True) / (127 if kind == "q8_0" else steps)
        assert (np.abs(values.reshape(-1, 32) - blocks) <= 1.01 * step).all(), name


@pytest.mark.parametrize("dtype", ["q4_k", "q5_k"])
def test_what_the_library_cannot_write_is_refused_and_the_formats_are_named(make_run: Any, tmp_path: Path, dtype: str) -> None:
    with pytest.raises(UsageError, match=f"has no --dtype {dtype}: f32, f16, q8_0, q5_0, q4_0"):
        gguf.export(checkpoints.load(make_run()), tmp_path / "out", dtype)
    assert not (tmp_path / "out").exists()


def test_activations_and_dtypes_that_gguf_lacks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--activation relu"):
        gguf.architecture(FAMILIES["gpt2"] | {"activation_function": "relu"})
    with pytest.raises(UsageError, match="q5"):
        gguf.write(tmp_path / "x.gguf", "x", FAMILIES["gpt2"], {}, char_json(), "q5")
    assert not list(tmp_path.iterdir())
