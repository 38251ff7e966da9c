"""What `compare` found, in every form that it is asked for: format, Markdown, JSON, a picture, a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_cli.display import console, format
from minigpt_cli.errors import UsageError
from minigpt_cli.escaping import markdown, one_line
from minigpt_cli.runstore.store import Run

if TYPE_CHECKING:
    from minigpt_cli.display.charts import Curve
    from minigpt_cli.evaluation.comparison import Pair, Part, Passage, Side
    from minigpt_cli.evaluation.eval_target import Target
    from minigpt_cli.evaluation.scores import Score

_X = {"steps": "step", "tokens": "tokens_seen", "seconds": "elapsed_s"}


@dataclass(frozen=True)
class Compared:
    """Everything that was found out."""

    groups: Sequence[tuple[str, Sequence[Run]]]
    sides: Sequence[Side]
    pairs: Sequence[Pair]
    target: Target
    text: str
    kinds: Sequence[Part]
    positions: Sequence[Part]
    passages: Sequence[Passage]  # of the first two sides
    differences: dict[str, list[Any]]  # by setting, a value for each side


def _extra(found: Compared) -> list[tuple[int, float]]:
    """Parameters and mean seconds of training of each side."""
    return [(runs[0].record.n_params, sum(run.record.elapsed_s for run in runs) / len(runs)) for _, runs in found.groups]


def _what(found: Compared) -> str:
    """Which text was scored."""
    corpus = found.groups[0][1][0].record.corpus
    split = {"val": "validation", "test": "test", "train": "training"}[found.target.split]
    name = found.target.label or f"{split} split of {corpus.label if corpus else 'their text'}"
    score = found.sides[0].scores[0]
    return f"{name}{format.answers_alone(score.n_answers)}: {score.n_chars:,} characters, sha256 {score.text_sha256[:12]}"


def _shown_differences(found: Compared) -> list[tuple[str, list[str]]]:
    from minigpt_cli.commands.config_fields import show_value

    return [(name, ["-" if v is None else show_value(v) for v in row]) for name, row in found.differences.items()]


def print_comparison(found: Compared, samples: list[tuple[str, str]], prompt: str, x: str) -> None:
    from minigpt_cli.display import comparison as show
    from minigpt_cli.display.charts import terminal_chart
    from minigpt_cli.display.run_tables import print_differences

    names = [side.name for side in found.sides]
    console.write(f"text    {one_line(_what(found))}")
    show.heading("settings that differ")
    print_differences(names, _shown_differences(found))
    show.heading("scores")
    show.print_scores(found.sides, _extra(found))
    show.print_verdicts(found.pairs)
    show.print_parts("by kind of character, nats per character", names, found.kinds)
    show.print_parts("by tokens before it in the window, nats per character", names, found.positions)
    show.print_passages(names[0], names[1], found.passages)
    screen = console.stdout()
    chart = terminal_chart(_curves(found, x), width=min(screen.width, 110), height=14, colour=screen.is_terminal and not screen.no_color)
    if chart:
        show.heading(f"validation loss, nats per character, against {x}")
        console.write(chart)
    if samples:
        show.print_samples(prompt, samples)


def print_markdown(found: Compared) -> None:
    from minigpt_cli.display.comparison import SCORE_COLUMNS, scope_lines, score_rows, verdict_sentence
    from minigpt_cli.display.tables import as_markdown

    rows = sorted(score_rows(found.sides, _extra(found)), key=lambda row: row[1])
    used = [i for i in range(len(SCORE_COLUMNS)) if i == 0 or any(row[i] for row in rows)]
    columns = [SCORE_COLUMNS[i] for i in used]
    table = as_markdown([c.name for c in columns], [[row[i] for i in used] for row in rows], [c.right for c in columns])
    lines = [f"- {markdown(verdict_sentence(pair))}" for pair in found.pairs] + ["", *map(markdown, scope_lines(found.pairs))]
    console.write(f"{table}\n\n" + "\n".join(lines) + f"\n\nOn the {markdown(_what(found))}.")


def _curves(found: Compared, x: str) -> list[Curve]:
    """Validation curves in nats per character: a run's own, or the mean of a recipe's seeds where all have been evaluated."""
    import numpy as np

    from minigpt_cli.display.charts import Curve

    curves = []
    for name, runs in found.groups:
        each = [[(float(getattr(e, _X[x])), float(e.nats_per_char)) for e in run.metrics() if e.nats_per_char is not None] for run in runs]
        each = [points for points in each if points]
        if not each:
            continue
        if len(each) == 1:
            curves.append(Curve(name, [p[0] for p in each[0]], [p[1] for p in each[0]]))
            continue
        low, high = max(points[0][0] for points in each), min(points[-1][0] for points in each)
        at = [p[0] for p in each[0] if low <= p[0] <= high]
        lines = [np.interp(at, [p[0] for p in points], [p[1] for p in points]) for points in each]
        curves.append(Curve(f"{name} (mean of {len(each)})", at, np.mean(lines, axis=0).tolist()))
    return curves


def write_plot(path: Path, found: Compared, x: str, samples: list[tuple[str, str]], prompt: str, *, dark: bool) -> None:
    curves = _curves(found, x)
    if path.suffix.lower() != ".html":
        from minigpt_cli.display.pictures import save_chart

        save_chart(path, curves, x_label=x, y_label="validation loss (nats per character)", dark=dark)
        return
    from minigpt_cli.display.comparison_page import PageContent, comparison_page
    from minigpt_cli.storage.atomic_io import write_atomic

    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent}: make it first")
    content = PageContent(
        text=_what(found),
        sides=found.sides,
        extra=_extra(found),
        pairs=found.pairs,
        differences=_shown_differences(found),
        kinds=found.kinds,
        positions=found.positions,
        passages=found.passages,
        curves=curves,
        x_label=x,
        prompt=prompt,
        samples=samples,
    )
    write_atomic(path, comparison_page(content))


def document(found: Compared, samples: list[tuple[str, str]], prompt: str | None) -> dict[str, Any]:
    """The document of --json. `p_value` is adjusted for the number of pairs, so that it agrees with the verdict."""
    names = [side.name for side in found.sides]
    score = found.sides[0].scores[0]
    document: dict[str, Any] = {
        "text_sha256": score.text_sha256,
        "n_chars": score.n_chars,
        "n_answers": score.n_answers,
        "runs": [
            _run_document(side, run, run_score) for side, (_, runs) in zip(found.sides, found.groups, strict=True)
            for run, run_score in zip(runs, side.scores, strict=True)
        ],
        "groups": [
            {"group": side.name, "runs": [run.name for run in runs], **asdict(side.group), "ci95": list(side.ci95)}
            for side, (_, runs) in zip(found.sides, found.groups, strict=True)
            if len(runs) > 1
        ],
        "pairs": [_pair_document(pair) for pair in found.pairs],
        "differences": found.differences,
        "by_kind": [{"kind": p.name, "share": p.share, "nats_per_char": _by_name(names, p)} for p in found.kinds],
        "by_position": [{"tokens_before": p.name, "share": p.share, "nats_per_char": _by_name(names, p)} for p in found.positions],
        "passages": [{"start": p.start, "text": p.text, "delta_nats_per_char": p.delta} for p in found.passages],
    }  # fmt: skip
    if prompt is not None:
        document["prompt"], document["samples"] = prompt, [{"run": name, "text": text} for name, text in samples]
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
