"""The C sources for a processor that this machine is not; tests/benchmarks/other_processors.py runs them there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

SOURCES = ("accel/kernels.c", "accel/experts.c", "accel/attention.c", "generation/decoders/csrc/decoder.c", "tokenization/words.c")
CROSS = shutil.which("aarch64-linux-gnu-gcc")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The benchmark as a module."""
    path = Path(__file__).with_name("benchmarks") / "other_processors.py"
    spec = importlib.util.spec_from_file_location("other_processors", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_c_source_is_compiled(script: ModuleType) -> None:
    package = Path(__file__).parents[1] / "minigpt_cli"
    assert {str(path.relative_to(package)) for path in package.rglob("*.c")} == set(SOURCES) == set(script.SOURCES)


@pytest.mark.skipif(CROSS is None, reason="no cross compiler: apt-get install gcc-aarch64-linux-gnu")
@pytest.mark.parametrize("source", SOURCES)
def test_c_sources_compile_for_aarch64(source: str, script: ModuleType) -> None:
    assert script.errors_of(source, [CROSS, "-mcpu=neoverse-n1"]) == ""


@pytest.mark.skipif("MINIGPT_AARCH64" not in os.environ, reason="MINIGPT_AARCH64 names no folder that other_processors.py prepared")
def test_kernels_and_decoder_agree_with_the_formulas_on_aarch64(script: ModuleType) -> None:
    tests = ("accel/test_kernels.py", "generation/test_decoders.py")
    arguments = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *(str(Path(__file__).with_name("") / name) for name in tests)]
    assert script.run(Path(os.environ["MINIGPT_AARCH64"]).resolve(), arguments) == 0
