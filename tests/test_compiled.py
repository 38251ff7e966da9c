"""Building the C kernels: kept, refused when unsafe, and done without when there is no compiler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt_cli import compiled

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A C file, and an empty cache to build it in."""
    if os.name != "posix":
        pytest.skip("nothing is built here")
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setattr(compiled, "_cache_folder", lambda: cache)
    monkeypatch.delenv("MINIGPT_NATIVE", raising=False)
    compiled.load.cache_clear()
    path = tmp_path / "small.c"
    path.write_text(SOURCE, encoding="utf-8")
    yield path
    compiled.load.cache_clear()


def built(source: Path) -> list[Path]:
    return sorted((source.parent / "cache").iterdir())


def test_a_source_is_built_once_and_again_when_it_changes(source: Path) -> None:
    library = compiled.load(source)
    if library is None:
        pytest.skip("no C compiler")
    assert library.answer() == 42
    (first,) = built(source)
    written = first.stat().st_mtime_ns
    compiled.load.cache_clear()
    assert compiled.load(source) is not None
    assert first.stat().st_mtime_ns == written
    source.write_text(SOURCE.replace("42", "43"), encoding="utf-8")
    compiled.load.cache_clear()
    changed = compiled.load(source)
    assert changed is not None
    assert changed.answer() == 43
    assert len(built(source)) == 2


def test_a_source_that_does_not_compile_is_tried_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("not C", encoding="utf-8")
    assert compiled.load(source) is None
    monkeypatch.setattr(compiled.subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    compiled.load.cache_clear()
    assert compiled.load(source) is None


@pytest.mark.parametrize("reason", ["switched off", "no compiler", "folder of others", "no folder"])
def test_without_a_compiler_or_a_safe_folder_there_is_no_library(source: Path, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason == "switched off":
        monkeypatch.setenv("MINIGPT_NATIVE", "0")
    elif reason == "no compiler":
        monkeypatch.setenv("PATH", str(source.parent))
        monkeypatch.delenv("CC", raising=False)
    elif reason == "no folder":
        monkeypatch.setattr(compiled, "_cache_folder", lambda: None)
    else:
        if compiled.load(source) is None:
            pytest.skip("no C compiler")
        built(source)[0].chmod(0o777)
        compiled.load.cache_clear()
    assert compiled.load(source) is None
