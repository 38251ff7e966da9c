"""How much memory is there: of the machine, of control groups of both versions, of `ulimit`; and which errors say that it ran out."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest

from minigpt_cli.cli import run
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.storage import memory

NO_LIMIT_V1 = "9223372036854771712"


def groups(root: Path, of_process: str, mounts: str, files: dict[str, str]) -> int:
    """What a process may have whose /proc says `of_process` and `mounts`, where the groups hold `files`."""
    everything = {"proc/self/cgroup": of_process, "proc/self/mountinfo": mounts} | {f"sys/fs/cgroup/{p}": text for p, text in files.items()}
    for name, text in everything.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", encoding="utf-8")
    return memory.available_in_groups(root)


def v2(shown: str = "/", where: str = "/sys/fs/cgroup") -> str:
    return f"41 31 0:38 {shown} {where} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def v1(shown: str = "/", where: str = "/sys/fs/cgroup/memory") -> str:
    return f"34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n35 31 0:32 {shown} {where} rw - cgroup cgroup rw,memory"


def limit(maximum: str, used: str, at: str = "", **more: str) -> dict[str, str]:
    """The files of a group of version 2."""
    names = {"memory.max": maximum, "memory.current": used, **{name.replace("_", ".", 1): text for name, text in more.items()}}
    return {f"{at}{name}": text for name, text in names.items()}


def limit_v1(maximum: str, used: str, at: str, **more: str) -> dict[str, str]:
    names = {"memory.limit_in_bytes": maximum, "memory.usage_in_bytes": used, "memory.use_hierarchy": "1"}
    return {f"{at}{name}": text for name, text in (names | {n.replace("_", ".", 1): text for n, text in more.items()}).items()}


def test_a_container_that_is_shown_its_own_group_as_the_top(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/", v2(), limit("1000000", "400000")) == 600_000


def test_a_nested_group_is_asked_for_its_own_limit(tmp_path: Path) -> None:
    files = limit("500000", "100000", "user.slice/app.scope/")
    assert groups(tmp_path, "0::/user.slice/app.scope", v2(), files) == 400_000


def test_the_lowest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    files = limit("900000", "100000", "a/b/c/") | limit("max", "0", "a/b/") | limit("300000", "250000", "a/") | limit("max", "0")
    assert groups(tmp_path, "0::/a/b/c", v2(), files) == 50_000


def test_pressure_from_memory_high_counts_like_a_limit(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/a", v2(), limit("900000", "100000", "a/", memory_high="200000")) == 100_000


def test_files_in_the_page_cache_do_not_count_as_used(tmp_path: Path) -> None:
    stat = "anon 100\ninactive_file 150000\nactive_file 50000\nfile 300000"
    assert groups(tmp_path, "0::/a", v2(), limit("1000000", "900000", "a/", memory_stat=stat)) == 300_000


def test_version_1_is_asked_where_memory_is_counted(tmp_path: Path) -> None:
    files = limit_v1("700000", "200000", "memory/box/", memory_stat="cache 9\ntotal_inactive_file 100000\ninactive_file 5")
    files |= limit_v1(NO_LIMIT_V1, "5000000", "memory/")
    assert groups(tmp_path, "5:cpuset:/elsewhere\n4:memory:/box\n0::/", v1() + "\n" + v2(where="/sys/fs/cgroup/unified"), files) == 600_000


def test_version_1_counts_memory_and_swap_together_where_that_is_the_lower_limit(tmp_path: Path) -> None:
    swap = {"memory_memsw.limit_in_bytes": "800000", "memory_memsw.usage_in_bytes": "750000"}
    assert groups(tmp_path, "4:memory:/box", v1(), limit_v1("700000", "200000", "memory/box/", **swap)) == 50_000


@pytest.mark.parametrize(("hierarchy", "left"), [("1", 10_000), ("0", 500_000)])
def test_version_1_counts_what_is_below_only_with_hierarchy(hierarchy: str, left: int, tmp_path: Path) -> None:
    files = limit_v1("700000", "200000", "memory/a/b/") | limit_v1("300000", "290000", "memory/a/")
    files["memory/a/memory.use_hierarchy"] = hierarchy
    assert groups(tmp_path, "4:memory:/a/b", v1(), files) == left


def test_in_a_hybrid_the_version_that_counts_memory_is_found(tmp_path: Path) -> None:
    mounts = v2(where="/sys/fs/cgroup/unified") + "\n" + v1()
    files = limit_v1("700000", "200000", "memory/a/") | {"unified/a/cgroup.procs": "1"}
    assert groups(tmp_path, "4:memory:/a\n0::/a", mounts, files) == 500_000


def test_a_container_without_a_namespace_is_shown_its_group_at_the_mount(tmp_path: Path) -> None:
    files = limit_v1("700000", "200000", "memory/")
    assert groups(tmp_path, "4:memory:/docker/0123", v1(shown="/docker/0123"), files) == 500_000
    assert groups(tmp_path, "4:memory:/../../elsewhere", v1(), files) == 500_000


def test_a_mount_with_a_space_in_its_path(tmp_path: Path) -> None:
    mounts = v2(where="/sys/fs/cgroup/my\\040groups")
    assert groups(tmp_path, "0::/", mounts, limit("1000000", "400000", "my groups/")) == 600_000


def test_a_group_that_uses_more_than_its_limit_leaves_nothing(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/", v2(), limit("1000000", "1400000")) == 0


def test_without_groups_or_limits_there_is_no_bound(tmp_path: Path) -> None:
    assert memory.available_in_groups(tmp_path) == 1 << 40
    assert groups(tmp_path, "0::/", v2(), limit("max", "400000")) == 1 << 40


def test_memory_is_asked_for() -> None:
    assert memory.available_memory() > 1 << 20
    memory.check_memory(1, "nothing")
    with pytest.raises(MiniGPTError, match="of memory"):
        memory.check_memory(1 << 60, "a model")


def test_unknown_memory_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert memory.available_memory() == memory.physical_memory() // 2
    monkeypatch.setattr(os, "sysconf", lambda _: refuse())
    assert memory.physical_memory() == 1 << 40


@pytest.mark.parametrize(("kind", "page"), [(resource.RLIMIT_AS, 10), (resource.RLIMIT_DATA, 4)])
def test_limits_of_the_shell_are_kept(kind: int, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"statm": "10 5 1 1 0 4 0", "meminfo": "MemTotal: 9 kB\nMemAvailable: 900 kB\n"}
    monkeypatch.setattr(Path, "read_text", lambda self, *_, **__: told.get(self.name, ""))
    assert memory.available_memory() == 900 << 10
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (500_000, 500_000) if asked == kind else (resource.RLIM_INFINITY,) * 2)
    assert memory.available_memory() == 500_000 - page * resource.getpagesize()


def test_threads_that_cannot_be_started_are_one_line_with_a_number_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.check_threads(3)
    start, count = threading.Thread.start, 0

    def limited(thread: threading.Thread) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    before = threading.active_count()
    with pytest.raises(MiniGPTError, match=r"only 2 of 8 threads .* --threads 2"):
        memory.check_threads(8)
    assert threading.active_count() == before


# ---- errors

OUT_OF_MEMORY = [
    MemoryError(),
    RuntimeError("could not create a primitive"),
    RuntimeError("could not create a memory object"),
    RuntimeError("could not execute a primitive"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
    RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
]
SOMETHING_ELSE = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("could not create a primitive descriptor for the matmul primitive. Run workload with ONEDNN_VERBOSE=all"),
    ValueError("out of memory"),
    ImportError("No module named 'torch'"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_every_way_in_which_memory_runs_out_is_known_and_ends_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert memory.ran_out(error)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("minigpt_cli.cli.get_command", lambda _: fail)
    assert run(["runs", "list"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "Error: out of memory: close other programs, raise the limit, or use a smaller model, batch or text"
    ]


@pytest.mark.parametrize("error", SOMETHING_ELSE, ids=str)
def test_another_error_is_not_called_memory(error: Exception) -> None:
    assert not memory.ran_out(error)
