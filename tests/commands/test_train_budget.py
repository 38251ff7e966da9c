"""A time budget is kept by the run, and the run is repeated and resumed to the bit from what it wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.config import RunConfig
from minigpt_cli.training import clock, meter, planner
from minigpt_cli.training.speed import Speed


def settings(run: str) -> RunConfig:
    return RunConfig.model_validate_json(Path(f"runs/{run}/config.json").read_bytes())


@pytest.mark.parametrize("step_s", [0.2, 1e-6])
def test_a_plan_that_was_wrong_is_mended_and_repeated_to_the_bit(
    step_s: float, trained: Path, cli: Any, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = tiny.index("--max-steps")
    flags = [*tiny[:at], *tiny[at + 2 :], "--time-budget", "1s", "--eval-every", "10", "--threads", "1"]
    monkeypatch.setattr(planner, "measure_speed", lambda *given: Speed(step_s, 1e-3, 0))
    monkeypatch.setattr(clock, "_SMOOTHED_S", 0.05)
    monkeypatch.setattr(meter, "_EVERY_S", 0.0)
    monkeypatch.setattr("minigpt_cli.training.trainer._TOLD", 1e9)  # only what has to be told
    monkeypatch.setattr(planner, "most_steps", lambda *given: 10**9)
    monkeypatch.setattr("minigpt_cli.training.trainer.most_steps", lambda *given: 10**9)
    done = cli("train", "text.txt", *flags, "--name", "kept", "--json")
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    planned = [events[0]["max_steps"], *(event["max_steps"] for event in events if event["event"] == "planned")]
    steps = settings("kept").optim.max_steps
    assert planned[-1] == steps
    assert steps > 1.5 * planned[0] if step_s > 1e-3 else steps < planned[0] / 1.5
    assert events[-1]["step"] == steps
    told = 0
    for event in events:
        told = event.get("max_steps", told)
        assert event.get("step", 0) <= told
    assert cli("train", "--config", "runs/kept/config.json", "--name", "again").code == 0
    kept, again = (Path(f"runs/{run}/last.safetensors").read_bytes() for run in ("kept", "again"))
    assert kept == again
    assert cli("runs", "verify", "kept").code == 0
