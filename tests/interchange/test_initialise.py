"""Weights from elsewhere laid over a fresh model: what fits, what does not, and what is bridged."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt_cli import checkpoints
from minigpt_cli.config import ClassicConfig, DataConfig, ModernConfig
from minigpt_cli.errors import MiniGPTError, RunDamaged, RunNotFound, UsageError
from minigpt_cli.interchange import huggingface
from minigpt_cli.interchange.initialise import Report, initial_weights, model_settings, open_source
from minigpt_cli.models.contract import build_model
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import safetensors
from minigpt_cli.tokenization.char import CharTokenizer
from minigpt_cli.tokenization.contract import Tokenizer, TrainingText

MakeRun = Callable[..., Run]
MakeTokenizer = Callable[..., Tokenizer]


def chars(text: str) -> CharTokenizer:
    return CharTokenizer.build(DataConfig(), TrainingText.of(text))


def logits(config: Any, vocab_size: int, weights: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    model = build_model(config, vocab_size)
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0]


def test_a_run_gives_its_best_weights_bit_for_bit(make_run: MakeRun, family: str) -> None:
    run = make_run(model=family)
    source = open_source("demo", RunStore(run.dir.parent))
    weights, report = initial_weights(source, run.config.model, checkpoints.load(run).tokenizer)
    state = checkpoints.load(run).model.state_dict()
    assert report.matches
    assert (report.kind, report.sha256) == ("run", run.record.files["best.safetensors"].sha256)
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)


def test_a_run_is_found_by_its_directory_and_an_unknown_name_says_what_was_tried(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    assert open_source(run.dir).label == "demo"
    with pytest.raises(RunNotFound, match="neither a file, a Hugging Face directory, nor a run"):
        open_source("dmeo", RunStore(run.dir.parent))
    with pytest.raises(UsageError, match="neither a run, a Hugging Face directory"):
        open_source(tmp_path)


def test_a_hugging_face_directory_gives_weights_settings_and_tokenizer(make_run: MakeRun, tmp_path: Path, family: str) -> None:
    loaded = checkpoints.load(make_run(model=family))
    huggingface.export(loaded, tmp_path / "hf")
    source = open_source(tmp_path / "hf")
    assert source.config is not None
    assert source.tokenizer is not None
    weights, report = initial_weights(source, source.config, source.tokenizer)
    assert report.matches
    assert model_settings(source)["n_embd"] == 32
    ids = [1, 2, 3, 4]
    torch.testing.assert_close(
        logits(source.config, source.tokenizer.vocab_size, weights, ids), loaded.model(torch.tensor([ids])).logits[0].detach()
    )


def nanogpt_files(folder: Path, bias: bool) -> tuple[dict[str, torch.Tensor], list[str]]:
    """What nanoGPT's train.py and prepare.py leave behind, for a model of its own shapes; random weights."""
    C, V, T = 16, 11, 8
    torch.manual_seed(1)
    shapes = {"wte": (V, C), "wpe": (T, C), "ln_f": (C,)}
    for i in range(2):
        block = {"ln_1": (C,), "attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "ln_2": (C,)}
        block |= {"mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C)}
        shapes |= {f"h.{i}.{name}": shape for name, shape in block.items()}
    state = {f"_orig_mod.transformer.{name}.weight": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    if bias:
        state |= {
            name.replace("weight", "bias"): torch.randn(t.shape[0]) * 0.1
            for name, t in list(state.items())
            if "wte" not in name and "wpe" not in name
        }
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    args = {"n_layer": 2, "n_head": 2, "n_embd": C, "block_size": T, "bias": bias, "vocab_size": V, "dropout": 0.1}
    (folder / "out").mkdir()
    (folder / "data" / "tiny").mkdir(parents=True)
    checkpoint = {"model": state, "optimizer": {"state": {}}, "model_args": args, "iter_num": 5, "config": {"dataset": "tiny"}}
    torch.save(checkpoint, folder / "out" / "ckpt.pt")
    characters = sorted("abcdefghij ")
    meta = {"vocab_size": V, "itos": dict(enumerate(characters)), "stoi": {c: i for i, c in enumerate(characters)}}
    (folder / "data" / "tiny" / "meta.pkl").write_bytes(pickle.dumps(meta))
    return {name.removeprefix("_orig_mod."): t for name, t in state.items()}, characters


@pytest.mark.parametrize("bias", [False, True])
def test_nanogpt_computes_the_same_here(tmp_path: Path, bias: bool) -> None:
    """Against the arithmetic of nanoGPT's model.py written out: exact GELU, matrices stored output first, tied head."""
    from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

    state, characters = nanogpt_files(tmp_path, bias)
    source = open_source(tmp_path / "out")
    assert source.kind == "nanogpt"
    assert source.tokenizer is not None
    assert source.tokenizer.decode(range(11)) == "".join(characters)
    assert isinstance(source.config, ClassicConfig)
    weights, report = initial_weights(source, source.config, source.tokenizer)
    assert report.matches

    def get(name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        return state[f"transformer.{name}.weight"], state.get(f"transformer.{name}.bias")

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, (16,), *get(name), 1e-5)

    ids = [3, 1, 4, 1, 5]
    x = get("wte")[0][ids] + get("wpe")[0][:5]
    for i in range(2):
        q, k, v = linear(norm(x, f"h.{i}.ln_1"), *get(f"h.{i}.attn.c_attn")).split(16, dim=1)
        heads = [t.view(5, 2, 8).transpose(0, 1) for t in (q, k, v)]
        attended = scaled_dot_product_attention(*heads, is_causal=True).transpose(0, 1).reshape(5, 16)
        x = x + linear(attended, *get(f"h.{i}.attn.c_proj"))
        x = x + linear(gelu(linear(norm(x, f"h.{i}.ln_2"), *get(f"h.{i}.mlp.c_fc"))), *get(f"h.{i}.mlp.c_proj"))
    expected = norm(x, "ln_f") @ state["lm_head.weight"].T
    torch.testing.assert_close(logits(source.config, 11, weights, ids), expected, atol=1e-5, rtol=1e-5)


def test_nanogpt_without_its_characters_names_the_paths_it_tried(tmp_path: Path) -> None:
    nanogpt_files(tmp_path, bias=False)
    (tmp_path / "data" / "tiny" / "meta.pkl").unlink()
    source = open_source(tmp_path / "out" / "ckpt.pt")
    assert source.tokenizer is None
    assert any("meta.pkl" in note for note in source.notes)


@pytest.mark.parametrize("naming", ["ours", "theirs", "wrapped", "headless"])
def test_bare_files_fit_under_any_usual_naming(make_run: MakeRun, tmp_path: Path, family: str, naming: str) -> None:
    loaded = checkpoints.load(make_run(model=family))
    state = dict(loaded.model.state_dict())
    if naming != "ours":
        huggingface.export(loaded, tmp_path / "hf")
        state, _ = huggingface.read_weights(tmp_path / "hf")
    if naming == "wrapped":
        state = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    if naming == "headless":  # GPT-2 on the hub is saved without its outermost name
        state = {name.removeprefix("transformer.").removeprefix("model."): tensor for name, tensor in state.items()}
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    source = open_source(tmp_path / "weights.pt")
    assert source.config is None
    weights, report = initial_weights(source, loaded.config.model, loaded.tokenizer)
    assert report.matches, report
    assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.model.state_dict().items())


def test_what_does_not_fit_is_refused_with_counts_unless_partial(make_run: MakeRun) -> None:
    run = make_run(model="qwen3")
    tokenizer = checkpoints.load(run).tokenizer
    deeper = run.config.model.model_copy(update={"n_layer": 3, "ffn_mult": 1.0, "qk_norm": False})
    with pytest.raises(UsageError, match=r"11 loaded, 6 missing, 4 unexpected, 4 wrongly shaped.*--partial") as caught:
        initial_weights(open_source(run.dir), deeper, tokenizer)
    assert "\n" not in str(caught.value)
    weights, report = initial_weights(open_source(run.dir), deeper, tokenizer, partial=True, seed=5)
    fresh = build_model(deeper, tokenizer.vocab_size, 5).state_dict()
    state = checkpoints.load(run).model.state_dict()
    assert weights.keys() == fresh.keys()
    for name, _ in report.loaded:
        assert torch.equal(weights[name], state[name])
    for name, *_ in [*report.missing, *report.misshaped]:
        assert torch.equal(weights[name], fresh[name])
    assert {name for name, _ in report.unexpected} == {f"blocks.{i}.attention.{x}_norm.weight" for i in range(2) for x in "qk"}


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (float("-inf"), torch.bfloat16), (1e300, torch.float64)])
def test_weights_that_are_not_finite_in_float32_are_refused_by_name(
    make_run: MakeRun, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    loaded = checkpoints.load(make_run())
    state = {name: tensor.to(dtype) for name, tensor in loaded.model.state_dict().items()}
    state["final_norm.weight"][0] = value
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(RunDamaged, match=r"weights\.pt is damaged: tensor 'final_norm\.weight'"):
        initial_weights(open_source(tmp_path / "weights.pt"), loaded.config.model, loaded.tokenizer)


def test_nothing_that_fits_is_an_error_even_when_partial(tmp_path: Path) -> None:
    torch.save({"strange": torch.zeros(3)}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match="nothing in"):
        initial_weights(open_source(tmp_path / "x.pt"), ModernConfig(), chars("ab"), partial=True)


def row_of(weights: dict[str, torch.Tensor], tokenizer: Tokenizer, character: str) -> torch.Tensor:
    return weights["token_embedding.weight"][int(tokenizer.encode(character)[0])]


@pytest.mark.parametrize("new_text", ["abc", "abcdefgh", "hgfedcba and more", "h"])
def test_vocabularies_are_matched_by_the_text_of_their_tokens(make_run: MakeRun, new_text: str) -> None:
    old = chars("abcdefgh")
    run = make_run(model="llama", kind=old)
    new = chars(new_text)
    weights, report = initial_weights(open_source(run.dir), run.config.model, new)
    state = checkpoints.load(run).model.state_dict()
    assert report.matches
    assert weights["head.weight"].shape[0] == new.vocab_size
    for character in set(new_text):
        expected = row_of(state, old, character) if character in "abcdefgh" else state["token_embedding.weight"].mean(0)
        noise = 0 if character in "abcdefgh" else 0.05 * state["token_embedding.weight"].std().item()
        torch.testing.assert_close(row_of(weights, new, character), expected, atol=noise, rtol=0)


def nats_per_token(model: torch.nn.Module, ids: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def test_rows_of_new_tokens_differ_and_are_the_same_for_one_seed(make_run: MakeRun) -> None:
    run = make_run(model="llama", kind=chars("abcdefgh"))
    new = chars("abcdefghxyz")
    first, again, other = (initial_weights(open_source(run.dir), run.config.model, new, seed=seed)[0] for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("token_embedding.weight", "head.weight"):
        x, y, z = first[name][8:]
        assert not torch.equal(x, y)
        assert not torch.equal(y, z)
        assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("model", ["llama", "llama-tied", "gpt2", "gpt2-tanh-tied", "mixtral", "bigram"])
def test_an_extended_vocabulary_scores_the_old_text_as_before_or_says_that_it_does_not(make_run: MakeRun, model: str) -> None:
    """Random weights may have states in every direction, so that no row is improbable for all; trained ones do not."""
    run = make_run(model={"arch": "bigram"} if model == "bigram" else model, kind=chars("abcdefgh"))
    loaded = checkpoints.load(run)
    new = chars("éabcdefgh!?你好")
    weights, report = initial_weights(open_source(run.dir), run.config.model, new)
    extended = build_model(run.config.model, new.vocab_size)
    extended.load_state_dict(weights)
    text = "".join("abcdefgh"[(i * i + i // 5) % 8] for i in range(800))
    models = ((loaded.model, loaded.tokenizer), (extended.eval(), new))
    before, after = (nats_per_token(m, torch.tensor(t.encode(text).astype("int64")).view(-1, 16)) for m, t in models)
    assert any("change the score" in note for note in report.notes) == (abs(after - before) > 1e-4)
    assert model in ("llama", "llama-tied", "mixtral") or after == pytest.approx(before, abs=1e-4)


def test_what_another_tokenizer_forgets_is_said(make_run: MakeRun) -> None:
    run = make_run(model="llama", kind=chars("abcdefghijklmno"))
    notes = initial_weights(open_source(run.dir), run.config.model, chars("abcx"))[1].notes
    assert any("12 of their 15 tokens, which our tokenizer lacks: 'd' 'e' 'f' 'g' 'h' 'i' 'j' 'k' …" in note for note in notes), notes
    assert not any(
        "forgotten" in note for note in initial_weights(open_source(run.dir), run.config.model, chars("abcdefghijklmnop"))[1].notes
    )


def test_matched_vocabulary_predicts_the_same_characters(make_run: MakeRun) -> None:
    old, new = chars("abcdefgh"), chars("ghabcdef!?")
    run = make_run(model="gpt2", kind=old)
    weights, _ = initial_weights(open_source(run.dir), run.config.model, new)
    before = checkpoints.load(run).model(torch.tensor([old.encode("badge").tolist()])).logits[0].detach()
    after = logits(run.config.model, new.vocab_size, weights, new.encode("badge").tolist())
    torch.testing.assert_close(after[:, new.encode("abcdefgh").tolist()], before)
    assert (after[:, new.encode("!?").tolist()] < after.max(1, keepdim=True).values).all()


def test_bigram_tables_are_matched_in_rows_and_columns(make_run: MakeRun) -> None:
    old, new = chars("abcd"), chars("dcbax")
    run = make_run(model={"arch": "bigram"}, kind=old)
    weights, _ = initial_weights(open_source(run.dir), run.config.model, new)
    table = checkpoints.load(run).model.state_dict()["table"]
    for a in "abcd":
        for b in "abcd":
            i, j = (int(n) for n in new.encode(a + b))
            p, q = (int(n) for n in old.encode(a + b))
            assert weights["table"][i, j] == table[p, q]


def test_vocabularies_without_a_common_token_are_refused(make_run: MakeRun) -> None:
    run = make_run(model="llama", kind=chars("abc"))
    with pytest.raises(UsageError, match="no token in common"):
        initial_weights(open_source(run.dir), run.config.model, chars("xyz"))


def test_a_smaller_block_cuts_learned_positions_and_a_larger_one_needs_partial(make_run: MakeRun) -> None:
    run = make_run(model="gpt2")
    tokenizer = checkpoints.load(run).tokenizer
    state = checkpoints.load(run).model.state_dict()
    shorter = run.config.model.model_copy(update={"block_size": 8})
    weights, report = initial_weights(open_source(run.dir), shorter, tokenizer)
    assert torch.equal(weights["position_embedding.weight"], state["position_embedding.weight"][:8])
    assert any("32" in note and "8" in note for note in report.notes)
    longer = run.config.model.model_copy(update={"block_size": 64})
    with pytest.raises(UsageError, match=r"position_embedding.weight has shape 32x32 there and 64x32 here"):
        initial_weights(open_source(run.dir), longer, tokenizer)


def test_rotary_models_take_any_block(make_run: MakeRun) -> None:
    run = make_run(model="qwen3")
    config = run.config.model.model_copy(update={"block_size": 512})
    assert initial_weights(open_source(run.dir), config, checkpoints.load(run).tokenizer)[1].matches


def test_rows_that_round_a_vocabulary_up_are_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    loaded = checkpoints.load(make_run(model="gpt2-tanh-tied"))
    state = dict(loaded.model.state_dict())
    size, width = state["token_embedding.weight"].shape
    padded = torch.cat([state["token_embedding.weight"], torch.full((64 - size % 64, width), 9.0)])
    torch.save(state | {"token_embedding.weight": padded}, tmp_path / "padded.pt")
    weights, report = initial_weights(open_source(tmp_path / "padded.pt"), loaded.config.model, loaded.tokenizer)
    assert report.matches
    assert torch.equal(weights["token_embedding.weight"], state["token_embedding.weight"])
    assert any("padding" in note for note in report.notes)


def test_rows_of_another_vocabulary_are_not_removed_as_padding(make_run: MakeRun, tmp_path: Path) -> None:
    loaded = checkpoints.load(make_run(model="llama"))
    state = dict(loaded.model.state_dict())
    longer = torch.cat([state["token_embedding.weight"]] * 2)[: state["token_embedding.weight"].size(0) + 3]
    torch.save(state | {"token_embedding.weight": longer}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"1 wrongly shaped"):
        initial_weights(open_source(tmp_path / "other.pt"), loaded.config.model, loaded.tokenizer)


def test_the_source_is_never_written_to(make_run: MakeRun) -> None:
    run = make_run()
    before = {p: p.read_bytes() for p in run.dir.rglob("*") if p.is_file()}
    weights, _ = initial_weights(open_source(run.dir), run.config.model, checkpoints.load(run).tokenizer)
    for tensor in weights.values():
        tensor.zero_()
    assert {p: p.read_bytes() for p in run.dir.rglob("*") if p.is_file()} == before


def test_safetensors_alone_takes_the_tokenizer_beside_it(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "alone").mkdir()
    for name in ("best.safetensors", "tokenizer.json"):
        (tmp_path / "alone" / name).write_bytes(run.file(name).read_bytes())
    source = open_source(tmp_path / "alone" / "best.safetensors")
    assert source.kind == "tensors"
    assert source.tokenizer is not None
    assert initial_weights(source, run.config.model, source.tokenizer)[1].matches


def test_a_checkpoint_in_a_run_is_that_run(make_run: MakeRun) -> None:
    run = make_run()
    source = open_source(run.file("last.safetensors"))
    assert (source.kind, source.config) == ("run", run.config.model)
    assert source.sha256 == run.record.files["last.safetensors"].sha256


def test_report_counts_are_one_line() -> None:
    report = Report("x", "run", "0", [("a", "1")], [], [("b", "2")], [], [])
    assert report.counts() == "1 loaded, 0 missing, 1 unexpected, 0 wrongly shaped"
    assert not report.matches


def test_sharded_directories_are_put_together(make_run: MakeRun, tmp_path: Path) -> None:
    import json

    from minigpt_cli.storage import atomic_io

    loaded = checkpoints.load(make_run(model="llama"))
    huggingface.export(loaded, tmp_path / "hf")
    tensors, _ = huggingface.read_weights(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        with atomic_io.staged(tmp_path / "hf" / file) as (fd, temporary):
            safetensors.write(fd, {n: tensors[n] for n in part}, {})
        temporary.rename(tmp_path / "hf" / file)
    index = tmp_path / "hf" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, part in files.items() for n in part}}))
    back = huggingface.read(tmp_path / "hf")
    assert all(torch.equal(back.tensors[n], t) for n, t in loaded.model.state_dict().items())
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(UsageError, match="own folder"):
        huggingface.read(tmp_path / "hf")


def test_a_source_that_claims_more_than_this_machine_holds_is_refused_before_memory_is_spent(tmp_path: Path) -> None:
    nanogpt_files(tmp_path, bias=False)
    content = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    content["model_args"] |= {"n_embd": 1 << 16, "n_layer": 64, "n_head": 1}
    torch.save(content, tmp_path / "out" / "ckpt.pt")
    source = open_source(tmp_path / "out")
    assert source.config is not None
    assert source.tokenizer is not None
    with pytest.raises(MiniGPTError, match="of memory"):
        initial_weights(source, source.config, source.tokenizer)


@pytest.mark.parametrize("change", [{"n_embd": 10**400}, {"n_head": 0}, {"layer_norm_epsilon": 10**400}, {"n_layer": -1}, {"n_embd": {}}])
def test_a_hostile_configuration_of_hugging_face_is_one_line(make_run: MakeRun, tmp_path: Path, change: dict[str, Any]) -> None:
    huggingface.export(checkpoints.load(make_run(model="gpt2")), tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MiniGPTError) as caught:
        open_source(tmp_path / "hf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [[], {"weight_map": []}, {"weight_map": {"a": ["b"]}}, {"weight_map": {"a": "../b"}}, {}])
def test_an_index_that_names_no_files_is_one_line(tmp_path: Path, index: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="does not name files"):
        open_source(tmp_path)
