"""The C sources for a processor that this machine is not; tests/benchmarks/other_processors.py runs them there."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest
from benchmarks import other_processors

CROSS = shutil.which("aarch64-linux-gnu-gcc")


def test_every_c_source_is_compiled() -> None:
    package = Path(__file__).parents[1] / "minigpt_cli"
    assert {str(path.relative_to(package)) for path in package.rglob("*.c")} == set(other_processors.SOURCES)


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("gcc") is None, reason="no gcc for x86-64")
@pytest.mark.parametrize("source", other_processors.SOURCES)
def test_c_sources_compile_for_processors_with_matrix_tiles(source: str) -> None:
    assert other_processors.errors_of(source, ["gcc", "-march=sapphirerapids", "-O0"]) == ""


@pytest.mark.skipif(CROSS is None, reason="no cross compiler: apt-get install gcc-aarch64-linux-gnu")
@pytest.mark.parametrize("source", other_processors.SOURCES)
def test_c_sources_compile_for_aarch64(source: str) -> None:
    assert other_processors.errors_of(source, [CROSS, "-mcpu=neoverse-n1"]) == ""


@pytest.mark.skipif("MINIGPT_AARCH64" not in os.environ, reason="MINIGPT_AARCH64 names no folder that other_processors.py prepared")
def test_kernels_and_decoder_agree_with_the_formulas_on_aarch64() -> None:
    tests = ("accel/test_kernels.py", "generation/test_decoders.py")
    arguments = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *(str(Path(__file__).with_name("") / name) for name in tests)]
    assert other_processors.run(Path(os.environ["MINIGPT_AARCH64"]).resolve(), arguments) == 0
