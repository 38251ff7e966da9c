"""What is recorded of the machine and the code: everything that the last bits depend on, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import minigpt_cli
from minigpt_cli.accel import expert_kernels, kernels, muon, products
from minigpt_cli.training import environment, resuming

CPU = torch.device("cpu")


def here() -> dict[str, str]:
    return environment.computed_by(CPU, compiled_graph=False)


def test_an_unchanged_environment_gives_no_reason() -> None:
    assert resuming.inexact_reasons(here(), here()) == []


def test_a_compiled_run_on_a_gpu_is_not_called_exact() -> None:
    compiled = here() | {"cuda": "12.8", "compiler": "triton 3.4"}
    assert len(resuming.inexact_reasons(compiled, compiled)) == 1
    assert resuming.inexact_reasons(here() | {"cuda": "12.8"}, here() | {"cuda": "12.8"}) == []


@pytest.mark.parametrize(
    "name",
    [
        "ONEDNN_MAX_CPU_ISA",
        "DNNL_MAX_CPU_ISA",
        "MKL_CBWR",
        "MKL_ENABLE_INSTRUCTIONS",
        "ATEN_CPU_CAPABILITY",
        "OMP_DYNAMIC",
        "TORCHDYNAMO_DISABLE",
    ],
)
def test_a_variable_that_changes_a_library_is_a_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    before = here()
    monkeypatch.setenv(name, "avx2")
    assert resuming.inexact_reasons(before, here()) == [f"{name} was not set and is now avx2"]


@pytest.mark.parametrize(
    "name", ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "ONEDNN_VERBOSE", "TORCHINDUCTOR_CACHE_DIR", "TORCH_COMPILE_DEBUG"]
)
def test_a_variable_that_changes_no_bit_is_not_a_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = here()
    monkeypatch.setenv(name, "1")
    assert here() == before


def test_kernels_that_are_missing_or_built_differently_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    before = here()
    for module in (kernels, expert_kernels, products, muon):
        monkeypatch.setattr(module, "library", lambda: None)
    monkeypatch.setattr(kernels, "attention_library", lambda: None)
    assert here()["kernels"] == "torch"
    if before["kernels"] == "torch":
        pytest.skip("no C compiler")
    assert len(resuming.inexact_reasons(before, here())) == 1


def test_threads_and_the_instructions_in_use_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    before = here()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert {name for name, value in here().items() if value != before[name]} == {"the number of threads", "instructions"}


def test_code_that_computes_is_recorded_and_display_code_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "minigpt_cli"
    shutil.copytree(Path(minigpt_cli.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(environment, "__file__", str(copy / "training" / "environment.py"))
    found = []
    for changed in (None, "display/words.py", "models/layers.py"):
        if changed:
            with (copy / changed).open("a", encoding="utf-8") as file:
                file.write("\n")
        environment._code.cache_clear()
        found.append(here()["minigpt"])
    environment._code.cache_clear()
    assert found[0] == found[1] != found[2]


def test_a_run_without_this_record_gives_a_reason() -> None:
    assert len(resuming.inexact_reasons({}, here())) == 1
