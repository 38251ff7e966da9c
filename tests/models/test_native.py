"""What the C kernels say of themselves."""

from __future__ import annotations

from minigpt_cli.models.allocator import keep_freed_memory
from minigpt_cli.models.native import operations


def test_what_is_in_use_has_a_name() -> None:
    assert operations.in_use() in ("tiles", "c", "torch")


def test_keeping_freed_memory_is_possible_or_refused_quietly() -> None:
    assert keep_freed_memory() in (True, False)
