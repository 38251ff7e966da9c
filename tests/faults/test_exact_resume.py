"""A run that is interrupted anywhere and resumed equals the uninterrupted run to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minigpt_cli import checkpoints
from minigpt_cli.events import Resumed, Stopped
from minigpt_cli.training import trainer

CASES: dict[str, dict[str, Any]] = {
    "bigram": {"model__arch": "bigram"},
    "classic with dropout": {"model__arch": "classic", "model__dropout": 0.2},
    "classic with sdpa dropout": {"model__arch": "classic", "model__dropout": 0.2, "compute__attention": "sdpa"},
    "modern with muon": {"optim__optimizer": "muon", "optim__schedule": "wsd"},
    "modern in bfloat16": {"optim__optimizer": "muon", "compute__precision": "bf16", "model__dropout": 0.1},
    "mixture of experts": {"model__arch": "moe", "model__dropout": 0.1, "model__n_experts": 3},
    "mixture balanced by bias": {"model__arch": "moe", "model__moe_balance": "bias", "model__n_experts": 3},
    "average of weights": {"optim__ema": 0.9},
    "accumulation and clipping": {"optim__grad_accum": 2, "optim__grad_clip": 0.5, "optim__schedule": "cosine"},
    "checkpointed gradients": {"compute__grad_checkpoint": True, "model__dropout": 0.2},
    "checkpointed fused attention": {"compute__grad_checkpoint": True, "model__dropout": 0.2, "compute__attention": "sdpa"},
    "plateau": {"optim__schedule": "cosine-plateau", "optim__max_steps": 6, "eval__eval_every": 1},
    "random windows, odd end": {"data": {"sampling": "random"}, "optim__max_steps": 11, "optim__schedule": "constant"},
    "early stopping": {"eval__patience": 2, "eval__min_delta": 0.5, "eval__eval_every": 2},
    "automatic min_delta": {"eval__patience": 2, "eval__min_delta": "auto", "eval__eval_every": 2},
    "whole split and saves between": {"eval__eval_iters": 0, "eval__save_every": 3},
    "bpe": {"data": {"tokenizer": "bpe", "vocab_size": 270}},
}


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_ends_bit_for_bit_like_the_uninterrupted(
    case: str, sessions: Any, dataset: Any, tiny_config: Any, everything: Any
) -> None:
    settings, text = tiny_config(**CASES[case]), dataset("bpe" if case == "bpe" else "char")
    whole = sessions.begin("whole", settings, text)
    sessions.train(whole, settings, text)
    expected = everything(whole)
    parts = sessions.begin("parts", settings, text)
    resumed = False
    for stop_at in (1, 3, 1, 2, 1, None):
        sessions.train(parts, settings, text, stop_at=stop_at, resume=resumed)
        resumed = True
    found = everything(parts)
    for part, value in expected.items():
        assert found[part] == value, part


@pytest.mark.parametrize("steps", range(1, 13))
def test_a_run_may_be_interrupted_after_any_step(steps: int, sessions: Any, dataset: Any, tiny_config: Any, everything: Any) -> None:
    settings = tiny_config(optim__max_steps=12, eval__eval_every=5, eval__patience=1, eval__min_delta=0.01, eval__save_every=3)
    whole, parts = (sessions.begin(name, settings, dataset()) for name in ("whole", "parts"))
    sessions.train(whole, settings, dataset())
    sessions.train(parts, settings, dataset(), stop_at=steps)
    sessions.train(parts, settings, dataset(), resume=True)
    assert everything(parts) == everything(whole)


COMPILED: dict[str, dict[str, Any]] = {
    "classic with dropout": {"model__arch": "classic", "model__dropout": 0.2},
    "mixture, averaged, accumulated": {
        "model__arch": "moe",
        "model__moe_balance": "bias",
        "model__dropout": 0.1,
        "optim__ema": 0.9,
        "optim__grad_accum": 2,
    },
    "checkpointed gradients": {"compute__grad_checkpoint": True, "model__dropout": 0.2},
}


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch asks for it while it compiles, and hides the warning
@pytest.mark.parametrize("case", COMPILED)
def test_a_compiled_run_is_resumed_to_the_bit(case: str, sessions: Any, dataset: Any, tiny_config: Any, everything: Any) -> None:
    settings = tiny_config(compute__compile="on", optim__max_steps=9, **COMPILED[case])
    whole, parts = (sessions.begin(name, settings, dataset()) for name in ("whole", "parts"))
    sessions.train(whole, settings, dataset())
    torch.manual_seed(99)  # another process begins with other random numbers
    sessions.train(parts, settings, dataset(), stop_at=5)
    torch.manual_seed(100)
    events = sessions.train(parts, settings, dataset(), resume=True)
    assert everything(parts) == everything(whole)
    assert next(e for e in events if isinstance(e, Resumed)).exact


def test_other_libraries_are_reported_in_one_line_and_recorded(
    sessions: Any, dataset: Any, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_config(optim__max_steps=6)
    run = sessions.begin("run", settings, dataset())
    sessions.train(run, settings, dataset(), stop_at=2)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    sessions.train(run, settings, dataset(), stop_at=2, resume=True)
    again = sessions.train(run, settings, dataset(), resume=True)
    assert next(e for e in again if isinstance(e, Resumed)).exact  # nothing has changed since the second session
    first, second = run.refresh().record.resume_exact_history
    assert (first.exact, second.exact) == (False, True)
    assert first.reasons == ["MKL_CBWR was not set and is now COMPATIBLE", "ONEDNN_MAX_CPU_ISA was not set and is now AVX2"]
    assert run.record.computed_by["ONEDNN_MAX_CPU_ISA"] == "AVX2"


@pytest.mark.parametrize("lost", ["generator.default.0", "graphs"])
def test_state_that_a_save_cannot_continue_is_reported(lost: str, sessions: Any, dataset: Any, tiny_config: Any) -> None:
    settings = tiny_config(optim__max_steps=6)
    run = sessions.begin("run", settings, dataset())
    sessions.train(run, settings, dataset(), stop_at=2)
    point = checkpoints.load_resume(run)
    tensors = {name: tensor for name, tensor in point.resume.items() if name != lost}
    state = {**point.resume_state, "recompiled": lost == "graphs"}
    checkpoints.save(run, point.record, last=point.last, resume=tensors, resume_state=state)
    events = sessions.train(run, settings, dataset(), resume=True)
    resumed = next(e for e in events if isinstance(e, Resumed))
    assert not resumed.exact
    assert len(resumed.notices) == 1


@pytest.mark.parametrize("max_steps", [8, 6], ids=["at an evaluation", "at the one that ends the run"])
@pytest.mark.parametrize(
    ("eval_changes", "reason"),
    [({"target_loss": 50.0}, "target_loss"), ({"patience": 1, "min_delta": 9.0}, "early_stopping"), ({}, "max_steps")],
)
def test_a_run_killed_after_its_last_save_ends_for_the_same_reason(
    eval_changes: dict[str, Any],
    reason: str,
    max_steps: int,
    sessions: Any,
    dataset: Any,
    tiny_config: Any,
    killed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = max_steps if "target_loss" in eval_changes else 4
    changes = {f"eval__{name}": value for name, value in eval_changes.items()}
    settings = tiny_config(optim__max_steps=max_steps, eval__eval_every=8 if first == max_steps else 4, **changes)
    whole, parts = (sessions.begin(name, settings, dataset()) for name in ("whole", "parts"))
    *_, stopped = sessions.train(whole, settings, dataset())
    assert isinstance(stopped, Stopped)
    assert stopped.stop_reason == reason

    def dies(*_: Any, **__: Any) -> None:
        raise killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate_run", dies)
        with pytest.raises(killed):
            sessions.train(parts, settings, dataset())
    assert parts.refresh().record.status == "running"
    *_, resumed = sessions.train(parts, settings, dataset(), resume=True)
    assert (resumed.stop_reason, resumed.step) == (stopped.stop_reason, stopped.step)
