"""Building the C kernels: kept, refused when unsafe, and done without when there is no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from minigpt_cli.storage import native_build

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A C file, and an empty cache to build it in."""
    if os.name != "posix":
        pytest.skip("nothing is built here")
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setattr(native_build, "cache_folder", lambda: cache)
    monkeypatch.delenv("MINIGPT_NATIVE", raising=False)
    native_build.forget()
    path = tmp_path / "small.c"
    path.write_text(SOURCE, encoding="utf-8")
    yield path
    native_build.forget()


def built(source: Path) -> list[Path]:
    return sorted((source.parent / "cache").iterdir())


def test_a_source_is_built_once_and_again_when_it_changes(source: Path) -> None:
    library = native_build.load(source)
    if library is None:
        pytest.skip("no C compiler")
    assert library.answer() == 42
    (first,) = built(source)
    written = first.stat().st_mtime_ns
    native_build.forget()
    assert native_build.load(source) is not None
    assert first.stat().st_mtime_ns == written
    source.write_text(SOURCE.replace("42", "43"), encoding="utf-8")
    native_build.forget()
    changed = native_build.load(source)
    assert changed is not None
    assert changed.answer() == 43
    assert len(built(source)) == 2


def test_a_source_that_does_not_compile_is_tried_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("not C", encoding="utf-8")
    assert native_build.load(source) is None
    monkeypatch.setattr(native_build.subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    native_build.forget()
    assert native_build.load(source) is None


def compiler(source: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """A compiler of this text, the only one that there is."""
    path = source.parent / "mycc"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    native_build.forget()
    return path


def test_a_repaired_compiler_is_tried_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (real := shutil.which("cc")):
        pytest.skip("no C compiler")
    broken = compiler(source, monkeypatch, "echo 'mycc: fatal error: stdio.h: No such file' >&2; echo once >> $0.log; exit 1")
    for _ in range(2):
        native_build.forget()
        assert native_build.load(source) is None
        assert native_build.why_not(source) == f"{broken} failed: mycc: fatal error: stdio.h: No such file"
    assert Path(f"{broken}.log").read_text() == "once\n"
    compiler(source, monkeypatch, f'exec {real} "$@"')
    library = native_build.load(source)
    assert library is not None
    assert (library.answer(), native_build.why_not(source)) == (42, "")


def test_the_same_compiler_is_tried_again_after_a_day(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = compiler(source, monkeypatch, "echo tried >> $0.log; exit 1")
    assert native_build.load(source) is None
    (note,) = built(source)
    os.utime(note, (note.stat().st_mtime - 25 * 3600,) * 2)
    native_build.forget()
    assert native_build.why_not(source) == f"{broken} failed: it ended with 1"
    assert Path(f"{broken}.log").read_text() == "tried\n" * 2


@pytest.mark.parametrize("note", ["not JSON", "[]", "{}", '{"compiler": 1, "failure": "x"}'])
def test_a_failure_note_that_cannot_be_read_is_ignored(note: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = compiler(source, monkeypatch, "echo tried >> $0.log; exit 1")
    assert native_build.load(source) is None
    built(source)[0].write_text(note, encoding="utf-8")
    native_build.forget()
    assert native_build.load(source) is None
    assert Path(f"{broken}.log").read_text() == "tried\n" * 2


def hide_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    native_build.forget()


def executable(path: Path, script: str = "exit 1") -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_compilers_are_looked_for_in_a_fixed_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CC, cc, gcc, clang, and last the one that a Python package brings."""
    hide_compilers(monkeypatch)
    paths = [executable(tmp_path / "bin" / name) for name in ("mycc", "cc", "gcc", "clang")] + [executable(tmp_path / "ziglang" / "zig")]
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CC", "mycc")
    module = ModuleType("ziglang")
    module.__file__ = str(tmp_path / "ziglang" / "__init__.py")
    monkeypatch.setitem(sys.modules, "ziglang", module)
    for path in paths:
        assert native_build._compiler().path == path
        Path(path).unlink()
    with pytest.raises(native_build._NotHere, match=r"pip install 'minigpt-cli\[native\]'"):
        native_build._compiler()


def test_the_compiler_of_the_package_ziglang_keeps_its_files_in_the_folder_of_the_build(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_compilers(monkeypatch)
    said = 'echo "$1 $ZIG_GLOBAL_CACHE_DIR $ZIG_LOCAL_CACHE_DIR" >> $0.log; exit 1'
    zig = executable(tmp_path / "ziglang" / "zig", said)
    module = ModuleType("ziglang")
    module.__file__ = str(tmp_path / "ziglang" / "__init__.py")
    monkeypatch.setitem(sys.modules, "ziglang", module)
    assert native_build.load(source) is None
    command, *folders = Path(f"{zig}.log").read_text().split()
    assert command == "cc"
    assert [Path(folder).parent for folder in folders] == [tmp_path / "cache"] * 2
    assert not any(Path(folder).exists() for folder in folders)


@pytest.mark.parametrize("reason", ["switched off", "no compiler", "folder of others", "no folder"])
def test_without_a_compiler_or_a_safe_folder_there_is_no_library(source: Path, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason == "switched off":
        monkeypatch.setenv("MINIGPT_NATIVE", "0")
    elif reason == "no compiler":
        hide_compilers(monkeypatch)
    elif reason == "no folder":
        monkeypatch.setattr(native_build, "cache_folder", lambda: None)
    else:
        if native_build.load(source) is None:
            pytest.skip("no C compiler")
        built(source)[0].chmod(0o777)
        native_build.forget()
    assert native_build.load(source) is None
    said = {
        "switched off": "MINIGPT_NATIVE=0",
        "no compiler": "no C compiler",
        "no folder": "cache folder",
        "folder of others": "others",
    }
    assert said[reason] in native_build.why_not(source)


def test_a_library_that_cannot_be_loaded_says_so(source: Path) -> None:
    source.with_name("cache").joinpath(f"small-{native_build._fingerprint(source, ())}.so").write_bytes(b"cut short")
    assert native_build.load(source) is None
    assert "cannot be loaded" in native_build.why_not(source)


def test_a_source_is_built_again_when_a_header_changes_that_its_headers_include(source: Path) -> None:
    folder = source.parent
    source.write_text('#include "sub/one.h"\nint answer(void) { return ONE; }\n', encoding="utf-8")
    (folder / "sub").mkdir()
    (folder / "sub/one.h").write_text('#include "../two.h"\n#define ONE TWO\n', encoding="utf-8")
    for number in (42, 43):
        (folder / "two.h").write_text(f"#define TWO {number}\n", encoding="utf-8")
        native_build.forget()
        library = native_build.load(source)
        if library is None:
            pytest.skip("no C compiler")
        assert library.answer() == number


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc on Linux")
def test_a_parallel_source_finds_an_openmp_library_that_its_owner_keeps_to_itself(source: Path) -> None:
    """As torch does on aarch64."""
    source.write_text("int omp_get_thread_num(void); int answer(void) { return 42 + omp_get_thread_num(); }\n", encoding="utf-8")
    openmp = subprocess.run(["gcc", "-print-file-name=libgomp.so.1"], capture_output=True, text=True, check=True).stdout.strip()
    program = (
        "import ctypes, os; from pathlib import Path; from minigpt_cli.storage import native_build\n"
        f"ctypes.CDLL({openmp!r}, mode=os.RTLD_LOCAL)\n"
        f"native_build.cache_folder = lambda: Path({str(source.parent / 'cache')!r})\n"
        f"library = native_build.load(Path({str(source)!r}), ('-fopenmp',))\n"
        f"print(library.answer() if library else native_build.why_not(Path({str(source)!r}), ('-fopenmp',)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "42"
