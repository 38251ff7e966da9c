"""minigpt eval: score a run on every character of a text once, without sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from minigpt_cli.commands.config_flags import with_settings
from minigpt_cli.commands.config_sources import resolve
from minigpt_cli.commands.options import CheckpointOption, JsonFlag, OptionalRun, RunsDir, check_page, complete_source, option, switch
from minigpt_cli.config import CLEANING, READING
from minigpt_cli.display import console, waiting
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

if TYPE_CHECKING:
    from minigpt_cli.evaluation.baselines import Baselines
    from minigpt_cli.evaluation.eval_target import Target
    from minigpt_cli.evaluation.evaluate_run import Evaluation
    from minigpt_cli.evaluation.overfitting import Memorisation
    from minigpt_cli.evaluation.surprise import Surprising

_SCORE_FIELDS = ("nats_per_token", "nats_per_char", "bits_per_byte", "perplexity", "n_tokens", "n_chars", "n_bytes")
_ONE = "Print this one number alone"
_ON_PAGE = 12  # passages, unless --top says how many


@with_settings(only=(*READING, *CLEANING))
def evaluate(
    run: OptionalRun = None,
    split: Annotated[Literal["val", "test", "train"], typer.Option(help="Which split of the run's own text.")] = "val",
    data: Annotated[str | None, option("FILE", "Score this text instead.", autocompletion=complete_source)] = None,
    text: Annotated[str | None, option("TEXT", "Score this text, as it stands.")] = None,
    ckpt: CheckpointOption = None,
    stride: Annotated[int, option("N", "Slide windows by N tokens, for a longer context; 0: consecutive windows.", min=0)] = 0,
    recent: Annotated[int, option("N", "Expect again what followed similar words among the last N tokens.", min=0)] = 0,
    nats_per_char: Annotated[bool, switch("--nats-per-char", "", panel=_ONE)] = False,
    nats_per_token: Annotated[bool, switch("--nats-per-token", "", panel=_ONE)] = False,
    bits_per_byte: Annotated[bool, switch("--bits-per-byte", "", panel=_ONE)] = False,
    perplexity: Annotated[bool, switch("--perplexity", "exp(nats per token).", panel=_ONE)] = False,
    memorisation: Annotated[bool, switch("--memorisation", "Also: the gap to the training text, and what is copied from it.")] = False,
    top: Annotated[int, option("N", "Also: the N most surprising passages, and what was expected there.", min=0, show_default=False)] = 0,
    html: Annotated[Path | None, option("FILE", "Write a page: the text tinted by surprise, and what was expected.")] = None,
    device: Annotated[Literal["auto", "cpu", "mps", "cuda"], typer.Option(help="Where to compute; auto: a GPU if there is one.")] = "auto",
    fresh: Annotated[bool, switch("--fresh", "Compute the score again, even if it is kept beside the run.")] = False,
    json: JsonFlag = False,
    runs_dir: RunsDir = None,
    *,
    settings: dict[str, Any],
) -> None:
    """\b
    Examples:
      minigpt eval                         the newest run, its validation split
      minigpt eval modern-1 --split test   the split not used for any choice
      minigpt eval top --data book.txt     the best run on a text of yours
      minigpt eval --nats-per-char         one number for a script
      minigpt eval modern-1@2000           as it was after 2,000 steps
      minigpt eval --stride 16             every token with a long context
      minigpt eval --recent 2000           names and words of the text again
      minigpt eval --memorisation          what it copies from its text
      minigpt eval --data book.txt --top 20   what surprised it most
      minigpt eval --text "To be" --html surprise.html

    Scores every character once. A token's nats are shared by the characters it covers, so that runs with different tokenizers
    compare. Of conversations (.jsonl) the answers alone are scored. Scores are kept beside the run; a second time no model is loaded.
    """
    numbers = {"nats_per_char": nats_per_char, "nats_per_token": nats_per_token, "bits_per_byte": bits_per_byte, "perplexity": perplexity}
    wanted = [name for name, on in numbers.items() if on]
    if len(wanted) + json > 1:
        raise UsageError(f"--{wanted[0].replace('_', '-')} prints one number alone: leave out the other kinds of output")
    also = [name for name, on in {"--memorisation": memorisation, "--top": top, "--html": html is not None}.items() if on]
    if also and wanted:
        raise UsageError(f"{also[0]} and --{wanted[0].replace('_', '-')} cannot be used together: choose one")
    if recent and (top or html is not None):
        raise UsageError("--recent changes scores alone: leave out --top and --html, which show what the model itself expected")
    check_page(html)
    store = RunStore(runs_dir)
    chosen = store.find(run or "latest")
    ckpt = chosen.checkpoint_to_read(ckpt)
    if chosen.label != run:
        console.notice(f"scoring {chosen.name}" + (f" ({run})" if run else ", the newest run"))
    from minigpt_cli.evaluation.evaluate_run import baselines_of, evaluate_run

    target = target_of(split, data, settings, [chosen]) if text is None else _given_text(text, split, data, settings, chosen)
    target = replace(target, ckpt=ckpt, stride=stride, recent=recent)
    choose = device_chooser(device)
    with console.progress("reading the run", quiet=json) as advance:
        found = evaluate_run(chosen, target, device=choose, fresh=fresh, advance=partial(advance, f"scoring {chosen.name}"))
    for notice in found.notices:
        console.warn(notice)
    if wanted:
        console.write(f"{getattr(found.score, wanted[0]):.6f}")
        return
    copied = None
    if memorisation:
        from minigpt_cli.evaluation import overfitting

        waiting.show("looking for copies of the training text")
        copied = overfitting.memorisation(chosen, ckpt=ckpt, device=choose)
    surprising = _surprise(found, target, top, html, choose) if top or html is not None else None
    waiting.show("counting the baselines")
    own_training_text = target.text is None and target.split == "train"
    baselines = None if own_training_text or text is not None else baselines_of(found.run, found.score)
    (_write_json if json else _print)(found, target, baselines, copied, surprising)


def _given_text(text: str, split: str, data: str | None, reading: dict[str, Any], run: Run) -> Target:
    """The text of --text to score, cleaned as a prompt is. Raises UsageError for an empty one, or beside another."""
    from minigpt_cli.data.cleaning import cleaned_prompt
    from minigpt_cli.evaluation.eval_target import Target
    from minigpt_cli.tokenization.contract import encoded

    if data is not None or split != "val" or reading:
        other = "--data" if data is not None else f"--split {split}" if split != "val" else f"--{next(iter(reading)).replace('_', '-')}"
        raise UsageError(f"--text is the text itself, and {other} is about another: leave one out")
    if not text:
        raise UsageError("--text is empty: there is no character to score")
    encoded(text)
    return Target(text=cleaned_prompt(run.config.data, text), label="the text given")


def _surprise(found: Evaluation, target: Target, top: int, html: Path | None, device: Callable[[], str]) -> list[Surprising]:
    """The `top` most surprising passages; with `html` the page of the text is written too."""
    from minigpt_cli.evaluation import surprise

    waiting.show("reading what was expected")
    wanted, shown = (top, 0) if html is None else (top or _ON_PAGE, surprise.SHOWN)
    surprising = surprise.surprise(found, target, top=wanted, shown=shown, device=device)
    if html is not None:
        from minigpt_cli.display.pages.surprise import surprise_page
        from minigpt_cli.storage.atomic_io import write_atomic

        write_atomic(html, surprise_page(found, text_of(found.run, target), surprising))
        console.notice(f"wrote {html}")
    return surprising.passages[:top]


def target_of(split: Literal["val", "test", "train"], data: str | None, reading: dict[str, Any], runs: Sequence[Run]) -> Target:
    """The text to score: a split of the runs' own text, or another text, which is cleaned as theirs was. Raises UsageError if both are
    named, or if the runs' texts were cleaned in different ways and no flag says which to use."""
    from minigpt_cli.evaluation.eval_target import Target
    from minigpt_cli.evaluation.evaluate_run import read_text

    if data is None and reading:
        raise UsageError(f"--{next(iter(reading)).replace('_', '-')} says how to read a text: name the text with --data")
    if data is None:
        return Target(split)
    if split != "val":
        raise UsageError(f"--data scores another text, and --split {split} a split of the run's own text: choose one")
    target = read_text(data, resolve(_cleaned_as(runs, reading) | reading).config.data)
    for notice in target.notices:
        console.notice(notice)
    return target


def _cleaned_as(runs: Sequence[Run], reading: dict[str, Any]) -> dict[str, Any]:
    """How the text of the runs was cleaned, where `reading` does not say."""
    found: dict[str, Any] = {}
    for name in (name for name in CLEANING if name not in reading):
        of_run = {getattr(run.config.data, name): run.name for run in runs}
        if len(of_run) > 1:
            (value, a), (_, b) = list(of_run.items())[:2]
            flag, off = f"--{name.replace('_', '-')}", "off" if isinstance(value, str) else ""
            both = f"{flag} nfc or {flag} off" if off else f"{flag} or --no-{flag[2:]}"
            raise UsageError(f"the texts of {a!r} and {b!r} were cleaned in different ways: say how to read this one, with {both}")
        found[name] = next(iter(of_run))
    return found


def text_of(run: Run, target: Target) -> str:
    """The name of the text that is scored."""
    from minigpt_cli.evaluation.eval_target import given_source

    if target.label:
        return target.label
    split = {"val": "validation", "test": "test", "train": "training"}[target.split]
    if given := given_source(run, target.split):
        return f"{split} text {given}"
    return f"{split} split of {run.record.corpus.label if run.record.corpus else 'its text'}"


def device_chooser(device: str) -> Callable[[], str]:
    """A function that chooses the device. Only called before a model runs, since choosing imports torch."""

    def choose() -> str:
        from minigpt_cli.training.planner import choose_device

        return choose_device(device)[0]

    return choose


def _print(
    found: Evaluation,
    target: Target,
    baselines: Baselines | None,
    copied: Memorisation | None,
    surprising: Sequence[Surprising] | None,
) -> None:
    from minigpt_cli.display.evaluation import print_evaluation, print_memorisation, print_surprising, print_test_gap

    print_evaluation(found, text_of(found.run, target), baselines, stride=target.stride, recent=target.recent)
    best = found.run.record.best
    if target.text is None and target.split == "test" and best is not None:
        print_test_gap(best.nats_per_char, found.score.nats_per_char)
    if copied is not None:
        print_memorisation(copied)
    if surprising:
        print_surprising(surprising)


def _write_json(
    found: Evaluation,
    target: Target,
    baselines: Baselines | None,
    copied: Memorisation | None,
    surprising: Sequence[Surprising] | None,
) -> None:
    score, best = found.score, found.run.record.best
    document: dict[str, Any] = {
        "run": found.run.name,
        "ckpt": found.ckpt,
        "step": found.step,
        "split": target.split if target.text is None else None,
        "text_sha256": score.text_sha256,
        "n_answers": score.n_answers,
        "n_documents": score.n_documents,
        "nats_per_char_without_eot": score.nats_per_char_without_ends,
        "perplexity_per_word": score.perplexity_per_word,
        "stride": target.stride,
        "recent": target.recent,
        **{name: getattr(score, name) for name in _SCORE_FIELDS},
        "ci95": {"nats_per_char": list(score.ci95)},
        "baselines": None if baselines is None else asdict(baselines),
    }
    if document["split"] == "test" and best is not None:
        document["selected_val_nats_per_char"] = best.nats_per_char
        document["gap_to_selected"] = score.nats_per_char - best.nats_per_char
    if copied is not None:
        document["memorisation"] = asdict(copied)
    if surprising:
        document["surprising"] = [_passage(passage) for passage in surprising]
    console.write_json(document)


def _passage(passage: Surprising) -> dict[str, Any]:
    peak = passage.peak
    expected = [{"token": name, "probability": p} for name, p in peak.expected]
    return {
        "start": passage.start,
        "place": passage.place,
        "nats_per_char": passage.nats_per_char,
        "text": passage.text,
        "peak": {"token": peak.token, "probability": peak.probability, "nats": peak.nats, "expected": expected},
    }
