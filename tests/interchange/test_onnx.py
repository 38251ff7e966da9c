"""ONNX: onnxruntime gives the logits of the textbook, with a cache, at any length."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import minigpt_cli
from minigpt_cli import checkpoints
from minigpt_cli.errors import MissingExtra, UsageError
from minigpt_cli.models.contract import build_model
from minigpt_cli.tokenization.pretrained import load_tokenizer


class Session:
    """A file in onnxruntime."""

    def __init__(self, path: Path) -> None:
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        self.model = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.shapes = {value.name: value.shape for value in self.model.get_inputs()}

    def past(self, batch: int) -> list[Any]:
        """No keys and values."""
        return [np.zeros((batch, shape[1], 0, shape[3]), np.float32) for name, shape in self.shapes.items() if name != "input_ids"]

    def step(self, ids: Any, past: list[Any]) -> tuple[Any, list[Any]]:
        """Logits (B, T, V), and the keys and values that are now there."""
        logits, *present = self.model.run(None, dict(zip(self.shapes, [ids, *past], strict=True)))
        return logits, present


@pytest.fixture
def needs_exporter() -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")


MODELS: dict[str, dict[str, Any]] = {
    "classic": {"arch": "classic", "n_layer": 1, "activation": "gelu_tanh", "bias": True},
    "modern": {"arch": "modern", "n_layer": 2, "n_kv_head": 2},
    "moe": {"arch": "moe", "n_layer": 1, "moe_norm_topk": True},
}


@pytest.mark.usefixtures("needs_exporter")
@pytest.mark.parametrize("arch", MODELS)
def test_onnxruntime_gives_the_same_logits_in_one_call_and_token_by_token(arch: str, make_run: Any, tmp_path: Path, text: str) -> None:
    from minigpt_cli.interchange import onnx

    loaded = checkpoints.load(make_run("bard", {"block_size": 64, "n_head": 4, "n_embd": 32, **MODELS[arch]}, "byte"))
    onnx.export(loaded, tmp_path / "bard.onnx")
    model = build_model(loaded.config.model, loaded.tokenizer.vocab_size).eval()
    model.load_state_dict(loaded.model.state_dict())
    ids = torch.randint(0, loaded.tokenizer.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids).logits.numpy()
    session, tokens = Session(tmp_path / "bard.onnx"), ids.numpy()
    whole, _ = session.step(tokens, session.past(3))
    assert np.abs(whole - expected).max() < 1e-4
    past, parts = session.past(3), []
    for begin, end in ((0, 7), (7, 8), (8, 9), (9, 20)):
        logits, past = session.step(tokens[:, begin:end], past)
        assert past[0].shape[2] == end
        parts.append(logits)
    assert np.abs(np.concatenate(parts, axis=1) - expected).max() < 1e-4
    facts = session.model.get_modelmeta().custom_metadata_map
    assert load_tokenizer(facts["tokenizer.json"]).encode(text).tolist() == loaded.tokenizer.encode(text).tolist()
    assert facts["block_size"] == "64"
    assert str(Path(onnx.__file__).parent).encode() not in (tmp_path / "bard.onnx").read_bytes()  # no path of this machine
    if arch == "modern":
        assert written_by_the_program_of_the_docs(tmp_path) == greedy(model, loaded.tokenizer)


def written_by_the_program_of_the_docs(folder: Path) -> str:
    page = (Path(minigpt_cli.__file__).parent / "docs" / "other-tools.md").read_text("utf-8")
    program = next(block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "onnxruntime" in block)
    written = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(written):
        exec(program, {})
    return written.getvalue().removesuffix("\n")


def greedy(model: torch.nn.Module, tokenizer: Any) -> str:
    ids = tokenizer.encode("ROMEO:").tolist()
    for _ in range(40):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize(("name", "dtype", "says"), [("x", "f32", "does not end in .onnx"), ("x.onnx", "f16", "has no --dtype f16")])
def test_what_is_not_written_is_refused(make_run: Any, tmp_path: Path, name: str, dtype: str, says: str) -> None:
    from minigpt_cli.interchange import onnx

    with pytest.raises(UsageError, match=says):
        onnx.export(checkpoints.load(make_run()), tmp_path / name, dtype)
    assert not (tmp_path / name).exists()


@pytest.mark.usefixtures("needs_exporter")
def test_a_model_without_keys_and_values_is_refused(make_run: Any, tmp_path: Path) -> None:
    from minigpt_cli.interchange import onnx

    run = make_run("table", {"arch": "bigram", "block_size": 8})
    with pytest.raises(UsageError, match="--arch bigram keeps none"):
        onnx.export(checkpoints.load(run), tmp_path / "x.onnx")


def test_without_the_library_the_extra_is_named(make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from minigpt_cli.interchange import onnx

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"pip install 'minigpt-cli\[onnx\]'"):
        onnx.export(checkpoints.load(make_run()), tmp_path / "x.onnx")
