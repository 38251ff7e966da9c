"""A run that is interrupted anywhere and resumed is, to the bit, the run that never was."""

from __future__ import annotations

from typing import Any

import pytest

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
    "plateau": {"optim__schedule": "cosine-plateau", "optim__max_steps": 6, "eval__eval_every": 1},
    "random windows, odd end": {"data": {"sampling": "random"}, "optim__max_steps": 11, "optim__schedule": "constant"},
    "early stopping": {"eval__patience": 2, "eval__min_delta": 0.5, "eval__eval_every": 2},
    "automatic min_delta": {"eval__patience": 2, "eval__min_delta": "auto", "eval__eval_every": 2},
    "whole split and saves between": {"eval__eval_iters": 0, "eval__save_every": 3},
    "bpe": {"data": {"tokenizer": "bpe", "vocab_size": 270}},
}


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_ends_bit_for_bit_like_the_uninterrupted(
    case: str, sittings: Any, dataset: Any, tiny_config: Any, everything: Any
) -> None:
    settings, text = tiny_config(**CASES[case]), dataset("bpe" if case == "bpe" else "char")
    whole = sittings.begin("whole", settings, text)
    sittings.train(whole, settings, text)
    expected = everything(whole)
    parts = sittings.begin("parts", settings, text)
    resumed = False
    for stop_at in (1, 3, 1, 2, 1, None):
        sittings.train(parts, settings, text, stop_at=stop_at, resume=resumed)
        resumed = True
    found = everything(parts)
    for part, value in expected.items():
        assert found[part] == value, part


@pytest.mark.parametrize("steps", range(1, 13))
def test_a_run_may_be_interrupted_after_any_step(steps: int, sittings: Any, dataset: Any, tiny_config: Any, everything: Any) -> None:
    settings = tiny_config(optim__max_steps=12, eval__eval_every=5, eval__patience=1, eval__min_delta=0.01, eval__save_every=3)
    whole, parts = (sittings.begin(name, settings, dataset()) for name in ("whole", "parts"))
    sittings.train(whole, settings, dataset())
    sittings.train(parts, settings, dataset(), stop_at=steps)
    sittings.train(parts, settings, dataset(), resume=True)
    assert everything(parts) == everything(whole)
