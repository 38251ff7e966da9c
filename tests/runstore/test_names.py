"""Names of runs: what is refused, and who gets which."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt_cli.errors import MiniGPTError, UsageError
from minigpt_cli.runstore.store import RunStore, resolve_runs_dir


@pytest.mark.parametrize("name", ["a", "modern-1", "lr=1e-4,dropout=0.1", "été", "x" * 100, "a.b+c@d~e"])
def test_a_plain_name_is_accepted(store: RunStore, name: str) -> None:
    assert store.create(name).dir.is_dir()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc",
        "-rf",
        ".hidden",
        "a\n",
        "a\x1b[31m",
        "a\x00b",
        "a b",
        "x" * 101,
        "日" * 80,
        "latest",
        "top",
        "a.tmp",
        "a.",
        "_a",
    ],
)
def test_a_name_that_could_do_harm_is_refused_in_one_line(store: RunStore, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        store.create(name)
    assert all(c.isprintable() for c in str(caught.value))
    assert not store.dir.exists()


@pytest.mark.parametrize(
    "name",
    ["a\u202eb", "m\u043edern", "\u0430", "\u0391b", "\ufb01ne", "\uff4dodern", "x\u00b2", "mod\u200bern", "mod\u0065\u0301rn",
     "\u212aelvin", "a ", "a\u00a0b", "\u0561\u0062", "mo\u217dern", "\u24b6"],
)  # fmt: skip
def test_a_name_of_look_alike_letters_is_refused_in_one_line(store: RunStore, name: str) -> None:
    store.create("a")
    with pytest.raises(UsageError) as caught:
        store.create(name)
    assert all(c.isprintable() for c in str(caught.value))
    assert store.names() == ["a"]


@pytest.mark.parametrize(("first", "second"), [("modern", "Modern"), ("coco", "сосо"), ("straße", "STRASSE"), ("έ", "Έ"), ("oxo", "οχο")])
def test_two_runs_may_not_look_alike(store: RunStore, first: str, second: str) -> None:
    run, other = store.create(first), store.create("other")
    with pytest.raises(UsageError, match="looks like"):
        store.create(second)
    with pytest.raises(UsageError, match="looks like"):
        store.rename(other, second)
    assert store.rename(run, second).name == second  # of the run itself another writing is free


@pytest.mark.parametrize("name", ["модель", "μ-2", "日本語-bpe", "ملف", "été.v2", "안녕", "ⲁ-1"])
def test_names_of_one_alphabet_are_accepted(store: RunStore, name: str) -> None:
    assert store.create(name).dir.is_dir()


def test_a_name_that_exists_is_refused_and_automatic_names_count_on(store: RunStore) -> None:
    store.create("modern-7")
    assert store.create(None, "modern").name == "modern-8"
    with pytest.raises(UsageError, match="exists already"):
        store.create("modern-7")


def test_two_processes_cannot_get_the_same_automatic_name(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("modern-1")
    monkeypatch.setattr(RunStore, "names", lambda self: [])  # what a racing process saw before the other's mkdir
    assert store.create(None, "modern").name == "modern-2"


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MiniGPTError, match="cannot create"):
        RunStore(tmp_path / "file" / "runs").create("a")


def test_where_runs_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIGPT_RUNS_DIR", raising=False)
    assert resolve_runs_dir() == Path("runs")
    monkeypatch.setenv("MINIGPT_RUNS_DIR", "elsewhere")
    assert resolve_runs_dir() == Path("elsewhere")
    assert resolve_runs_dir("here") == Path("here")
