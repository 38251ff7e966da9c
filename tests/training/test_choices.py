"""Measured choices are made once for a machine and do not depend on other programs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minigpt_cli.config import ModernConfig
from minigpt_cli.training import choices

CPU = torch.device("cpu")
WAYS: dict[str, Callable[[], object]] = {"one": lambda: None, "other": lambda: None}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(choices, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def answering(seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "measured", lambda ways, device: dict(seconds))


def test_the_first_measurement_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering({"one": 1.0, "other": 2.0}, monkeypatch)
    assert choices.fastest({"shape": 1}, WAYS, CPU) == {"one": 1.0, "other": 2.0}
    answering({"one": 9.0, "other": 2.0}, monkeypatch)  # as with another program running
    assert choices.fastest({"shape": 1}, WAYS, CPU) == {"one": 1.0, "other": 2.0}
    assert choices.fastest({"shape": 2}, WAYS, CPU) == {"one": 9.0, "other": 2.0}


def test_other_kernels_or_libraries_are_measured_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering({"one": 1.0, "other": 2.0}, monkeypatch)
    choices.fastest({}, WAYS, CPU)
    answering({"one": 3.0, "other": 2.0}, monkeypatch)
    monkeypatch.setattr(choices, "computed_by", lambda device, compiled_graph: {"torch": "other"})
    assert choices.fastest({}, WAYS, CPU)["one"] == 3.0


def test_processes_that_ask_at_once_get_one_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(ways: object, device: object) -> dict[str, float]:
        asked.append(1)
        time.sleep(0.05)
        return {"one": float(len(asked)), "other": 1.5}

    monkeypatch.setattr(choices, "measured", measured)
    answers: list[dict[str, float]] = []
    threads = [threading.Thread(target=lambda: answers.append(choices.fastest({}, WAYS, CPU))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [{"one": 1.0, "other": 1.5}] * 6


def test_without_a_lock_the_first_answer_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices.locks, "acquire", lambda path, patience_s: None)

    def slowly(ways: object, device: object) -> dict[str, float]:
        answering({"one": 1.0, "other": 2.0}, monkeypatch)
        choices.fastest({}, WAYS, CPU)  # meanwhile another asks and answers
        return {"one": 3.0, "other": 2.0}

    monkeypatch.setattr(choices, "measured", slowly)
    assert choices.fastest({}, WAYS, CPU)["one"] == 1.0


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"seconds": {"one": 1.0}}', '{"seconds": {"one": -1.0, "other": 1.0}}', '{"seconds": 3}']
)
def test_a_damaged_answer_is_measured_again_and_replaced(content: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering({"one": 1.0, "other": 2.0}, monkeypatch)
    choices.fastest({}, WAYS, CPU)
    (kept,) = (cache / "choices").glob("*.json")
    kept.write_text(content, encoding="utf-8")
    answering({"one": 3.0, "other": 2.0}, monkeypatch)
    assert choices.fastest({}, WAYS, CPU)["one"] == 3.0
    answering({"one": 4.0, "other": 2.0}, monkeypatch)
    assert choices.fastest({}, WAYS, CPU)["one"] == 3.0


def test_without_a_cache_folder_it_is_measured_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(choices, "cache_folder", lambda: tmp_path / "file" / "cache")
    for seconds in (1.0, 2.0):
        answering({"one": seconds, "other": 3.0}, monkeypatch)
        assert choices.fastest({}, WAYS, CPU)["one"] == seconds


def test_time_in_which_another_program_has_the_processor_does_not_count() -> None:
    def works() -> None:
        until = time.thread_time() + 2e-3
        while time.thread_time() < until:
            pass

    found = choices.measured({"works": works, "waits": lambda: time.sleep(4e-3)}, CPU)
    assert found["waits"] < found["works"]


def test_measuring_leaves_the_threads_as_they_were(cache: Path) -> None:
    threads = torch.get_num_threads()
    model = ModernConfig(block_size=16, n_layer=3, n_head=2, n_kv_head=1, n_embd=16, dropout=0.1)
    found = choices.attention_paths(model, 4, torch.float32, CPU)
    assert found.keys() == {"plain", "sdpa"}
    assert torch.get_num_threads() == threads
