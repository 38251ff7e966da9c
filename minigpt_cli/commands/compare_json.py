"""What `compare --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from minigpt_cli.runstore.store import Run

if TYPE_CHECKING:
    from minigpt_cli.display.comparison import Compared
    from minigpt_cli.evaluation.comparison import Pair, Part, Side
    from minigpt_cli.evaluation.scores import Score


def document(found: Compared, groups: Sequence[tuple[str, Sequence[Run]]], differences: dict[str, list[Any]]) -> dict[str, Any]:
    """The document, with the settings that differ by name. `p_value` is adjusted for the number of pairs, which the verdict rests on."""
    score = found.sides[0].scores[0]
    document: dict[str, Any] = {
        "text_sha256": score.text_sha256,
        "n_chars": score.n_chars,
        "n_answers": score.n_answers,
        "runs": [
            _run_document(side, run, run_score) for side, (_, runs) in zip(found.sides, groups, strict=True)
            for run, run_score in zip(runs, side.scores, strict=True)
        ],
        "groups": [
            {"group": side.name, "runs": [run.name for run in runs], **asdict(side.group), "ci95": list(side.ci95)}
            for side, (_, runs) in zip(found.sides, groups, strict=True)
            if len(runs) > 1
        ],
        "pairs": [_pair_document(pair) for pair in found.pairs],
        "differences": differences,
        "by_kind": [{"kind": p.name, "share": p.share, "nats_per_char": _by_name(found.names, p)} for p in found.kinds],
        "by_position": [{"tokens_before": p.name, "share": p.share, "nats_per_char": _by_name(found.names, p)} for p in found.positions],
        "passages": [{"start": p.start, "text": p.text, "delta_nats_per_char": p.delta} for p in found.passages],
    }  # fmt: skip
    if found.prompt is not None:
        document["prompt"] = found.prompt
        document["samples"] = [{"run": name, "text": text} for name, text in found.samples]
    return document


def _by_name(names: Sequence[str], part: Part) -> dict[str, float]:
    return dict(zip(names, part.nats_per_char, strict=True))


def _run_document(side: Side, run: Run, score: Score) -> dict[str, Any]:
    record = run.record
    return {
        "run": run.name,
        "group": side.name if len(side.scores) > 1 else None,
        "nats_per_char": score.nats_per_char,
        "ci95": list(score.ci95),
        "nats_per_token": score.nats_per_token,
        "bits_per_byte": score.bits_per_byte,
        "n_tokens": score.n_tokens,
        "arch": record.arch,
        "tokenizer": record.tokenizer,
        "n_params": record.n_params,
        "n_active_params": record.n_active_params,
        "tokens_seen": record.tokens_seen,
        "elapsed_s": record.elapsed_s,
    }


def _pair_document(pair: Pair) -> dict[str, Any]:
    return {
        "a": pair.a,
        "b": pair.b,
        "delta_nats_per_char": pair.test.delta,
        "ci95": [pair.test.low, pair.test.high],
        "p_value": pair.p_holm,
        "p_value_unadjusted": pair.test.p_value,
        "verdict": pair.verdict,
        "question": pair.question,
        "block_chars": pair.test.block,
        "further_seeds": pair.outlook.further_seeds if pair.outlook else None,
        "text_factor": pair.outlook.text_factor if pair.outlook else None,
    }
