"""minigpt from Python: what the commands do, as functions and objects. `from minigpt_cli import Run, train, compare, leaderboard`.

The commands and these functions share one implementation, so that a run trained here is the run that `minigpt train` makes. Every error is
a MiniGPTError whose message says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, overload

from minigpt_cli import threads
from minigpt_cli.display import waiting
from minigpt_cli.runstore.store import RunStore

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from minigpt_cli.commands.train_context import Outcome
    from minigpt_cli.commands.train_context import Training as Events
    from minigpt_cli.config import RunConfig
    from minigpt_cli.display.comparison import Compared
    from minigpt_cli.evaluation.scores import Score
    from minigpt_cli.events import Event
    from minigpt_cli.generation.open_run import LoadedModel
    from minigpt_cli.runstore.records import RunRecord

Names = str | Path
_T = TypeVar("_T")


class SamplingSettings(TypedDict, total=False):
    """How tokens are chosen; what is left out is as `style` says."""

    style: Literal["conservative", "default", "creative"]
    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


class Table(Sequence[dict[str, Any]]):
    """Rows, each a dict with the same keys; a notebook shows them as a table."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = [dict(row) for row in rows]

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> Table: ...
    def __getitem__(self, at: int | slice) -> dict[str, Any] | Table:
        return Table(self._rows[at]) if isinstance(at, slice) else self._rows[at]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self._rows)) or "Table([])"

    def _repr_html_(self) -> str:
        from minigpt_cli.display.notebook import rows_html

        return rows_html(self._rows)

    def to_pandas(self) -> Any:
        """A pandas DataFrame. Raises MiniGPTError if pandas is not installed."""
        try:
            import pandas
        except ImportError:
            from minigpt_cli.errors import MiniGPTError

            raise MiniGPTError("to_pandas needs pandas: pip install pandas") from None
        return pandas.DataFrame(self._rows)


@dataclass(frozen=True, repr=False)
class TextScore:
    """How well a run predicts a text."""

    nats_per_char: float
    ci95: tuple[float, float]  # of nats_per_char
    nats: npt.NDArray[np.float64]  # of every character, (len(text),)
    text: str  # what was scored: of conversations the answers alone
    bits_per_byte: float
    perplexity: float  # of tokens; depends on the tokenizer
    text_sha256: str

    def __float__(self) -> float:
        return self.nats_per_char

    def __repr__(self) -> str:
        low, high = self.ci95
        return f"{self.nats_per_char:.4f} nats per character (95 %: {low:.4f} to {high:.4f}) on {len(self.text):,} characters"

    def _repr_html_(self) -> str:
        from minigpt_cli.display.notebook import surprise_html
        from minigpt_cli.display.pages.page import remark

        return remark(repr(self)) + surprise_html(self.text, self.nats.tolist())


@dataclass(frozen=True, repr=False)
class Comparison:
    """Runs on the same characters: scores, and a verdict for each pair."""

    runs: Table
    pairs: Table  # delta_nats_per_char = a − b: negative where a is better
    differences: dict[str, list[Any]]  # settings that differ, a value for each side
    verdicts: tuple[str, ...]  # a sentence for each pair

    def __repr__(self) -> str:
        return "\n".join(self.verdicts)

    def _repr_html_(self) -> str:
        from minigpt_cli.display.notebook import rows_html
        from minigpt_cli.display.pages.page import remark

        return "".join([*map(remark, self.verdicts), rows_html(self.runs)])

    def to_pandas(self) -> Any:
        """The pairs as a pandas DataFrame."""
        return self.pairs.to_pandas()


class Run:
    """A run: `Run("bard")`, by the start of its name, "latest", "top", or the path of its folder; `Run("bard@2000")` takes the weights of a
    step that it keeps. Raises MiniGPTError if there is none."""

    def __init__(self, name: Names = "latest", *, runs_dir: Names | None = None) -> None:
        self._run = RunStore(runs_dir).find(str(name))
        self._models: dict[str, LoadedModel] = {}

    @property
    def name(self) -> str:
        return self._run.name

    @property
    def dir(self) -> Path:
        """The folder with all of the run's files."""
        return self._run.dir

    @property
    def record(self) -> RunRecord:
        """What run.json says now: status, sizes, the best step and its score, and the machine."""
        return self._run.refresh().record

    @property
    def config(self) -> RunConfig:
        """Every setting of the run, as a plain value."""
        return self._run.refresh().config

    @property
    def status(self) -> str:
        """`running`, `finished`, `interrupted`, `failed`, or `crashed`."""
        return self._run.refresh().status

    @property
    def nats_per_char(self) -> float | None:
        """The best checkpoint's score on the validation split; None before the first evaluation."""
        return best.nats_per_char if (best := self.record.best) else None

    @property
    def kept_steps(self) -> list[int]:
        """The steps whose weights are kept (`keep_every`), each a `ckpt` for `generate`, `score` and `export`."""
        from minigpt_cli.runstore.weights import kept_steps

        return kept_steps(self.record)

    @property
    def metrics(self) -> Table:
        """Every evaluation so far; losses in nats per token."""
        return Table([event.model_dump(mode="json", exclude={"event", "run"}) for event in self._run.metrics()])

    def __repr__(self) -> str:
        record, score = self.record, self.nats_per_char
        shown = "not scored yet" if score is None else f"{score:.4f} nats per character"
        return f"Run({self.name!r}: {record.arch}, {record.n_params:,} parameters, {shown}, {self.status})"

    def _repr_html_(self) -> str:
        from minigpt_cli.display.notebook import rows_html

        record = self.record
        facts = {"run": self.name, "status": self.status, "arch": record.arch, "parameters": record.n_params}
        return rows_html([{**facts, "nats per character": self.nats_per_char, "steps": record.stop_step, "seconds": record.elapsed_s}])

    @overload
    def generate(
        self, prompt: str = ..., *, stream: Literal[False] = ..., max_new_tokens: int = ..., seed: int | None = ...,
        stop: Sequence[str] = ..., chat: bool = ..., ckpt: str | None = ..., **sampling: Unpack[SamplingSettings],
    ) -> str: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: str = ..., *, stream: Literal[True], max_new_tokens: int = ..., seed: int | None = ...,
        stop: Sequence[str] = ..., chat: bool = ..., ckpt: str | None = ..., **sampling: Unpack[SamplingSettings],
    ) -> Iterator[str]: ...  # fmt: skip
    def generate(
        self,
        prompt: str = "",
        *,
        stream: bool = False,
        max_new_tokens: int = 500,
        seed: int | None = None,
        stop: Sequence[str] = (),
        chat: bool = False,
        ckpt: str | None = None,
        **sampling: Unpack[SamplingSettings],
    ) -> str | Iterator[str]:
        """The text that continues `prompt` (the answer to it with `chat`), or with `stream` its pieces as they are made.

        It ends after `max_new_tokens`, before a text in `stop`, or where a document or an answer ends. The same `seed` gives the same text;
        None: another each time. Raises MiniGPTError, also for characters that the run does not know.
        """
        from minigpt_cli.commands.generate import new_seed, question, sampling_of
        from minigpt_cli.generation.engine import GenerationRequest

        loaded = self._model(ckpt)
        asked, ends = question(loaded, prompt) if chat else (prompt, loaded.ends)
        chosen = sampling_of(sampling.pop("style", "default"), **sampling)
        seed = new_seed() if seed is None else seed
        request = GenerationRequest(loaded.prompt_ids(asked), chosen, max_new_tokens, seed=seed, stop=stop, ends=ends)
        pieces = (step.text for step in loaded.steps(request))
        return pieces if stream else "".join(pieces)

    def _model(self, ckpt: str | None) -> LoadedModel:
        """The weights, read once for every save."""
        from minigpt_cli.generation.open_run import open_model

        ckpt = self._run.checkpoint_to_read(ckpt)
        key = f"{ckpt} {self.record.updated_at}"
        if key not in self._models:
            self._models = {key: _quietly(lambda: open_model(self._run, ckpt))}
        return self._models[key]

    def score(
        self,
        text: str | None = None,
        *,
        split: Literal["val", "test", "train"] = "val",
        stride: int = 0,
        recent: int = 0,
        ckpt: str | None = None,
    ) -> TextScore:
        """The score of `text`, or of a split of the run's own text. Scores of splits and texts are kept, so a second time is quick."""
        from minigpt_cli.evaluation.eval_target import Target
        from minigpt_cli.evaluation.evaluate_run import evaluate_run

        ckpt = self._run.checkpoint_to_read(ckpt)
        target = Target(split, text, "" if text is None else "the given text", ckpt=ckpt, stride=stride, recent=recent)
        return _text_score(_quietly(lambda: evaluate_run(self._run.refresh(), target, device=_device).score))

    def export(self, format: str, out: Names, *, dtype: str | None = None, ckpt: str | None = None) -> Path:
        """The folder or file `out` with the run in the format of another program, as `minigpt runs export` writes it."""
        from minigpt_cli.commands.interchange import export_run

        return _quietly(lambda: export_run(self._run, Path(out), format, dtype, self._run.checkpoint_to_read(ckpt))[1].out)


class Training(Iterator["Event"]):
    """A training that goes on as its events are read; `run` is there after the last one. Left before its end, it keeps its last save."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.run: Run | None = None
        self.interrupted = False  # by a signal; everything is saved

    def __next__(self) -> Event:
        try:
            return next(self._events)
        except StopIteration as end:
            outcome: Outcome | None = end.value
            if outcome is not None:
                self.run, self.interrupted = Run(outcome.run.dir), outcome.signal_number is not None
            raise
        finally:
            waiting.remove()

    def close(self) -> None:
        """Stop now; the run stays as of its last save."""
        self._events.close()


@overload
def train(
    source: Names | Sequence[Names] | None = ..., *, stream: Literal[False] = ..., name: str | None = ..., preset: str | None = ...,
    resume: Names | None = ..., init_from: Names | None = ..., runs_dir: Names | None = ..., quiet: bool = ..., **settings: Any,
) -> Run: ...  # fmt: skip
@overload
def train(
    source: Names | Sequence[Names] | None = ..., *, stream: Literal[True], name: str | None = ..., preset: str | None = ...,
    resume: Names | None = ..., init_from: Names | None = ..., runs_dir: Names | None = ..., quiet: bool = ..., **settings: Any,
) -> Training: ...  # fmt: skip
def train(
    source: Names | Sequence[Names] | None = None,
    *,
    stream: bool = False,
    name: str | None = None,
    preset: str | None = None,
    resume: Names | None = None,
    init_from: Names | None = None,
    runs_dir: Names | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run | Training:
    """Train a run on `source`, as `minigpt train` does, and return it; with `stream` its events, to be read one by one.

    `settings` are those of the command line: `train("notes.txt", arch="moe", time_budget="3m")`. Progress goes to stderr unless `quiet`.
    Ctrl-C finishes the step, saves, and raises KeyboardInterrupt; `train(resume=name)` continues to the same bits.
    Raises MiniGPTError, before anything is written where the settings are wrong.
    """
    threads.share_cores()
    from minigpt_cli.commands.config_sources import flatten, override
    from minigpt_cli.commands.init_from import Origin
    from minigpt_cli.commands.sweeping import Group
    from minigpt_cli.commands.train_context import Context
    from minigpt_cli.commands.train_run import train_new, train_on
    from minigpt_cli.data.sources.open_source import open_sources

    flags, store = flatten(settings, "train()"), RunStore(runs_dir)
    if resume is not None:
        _refuse_with_resume(source=source, name=name, preset=preset, init_from=init_from)
        run = store.find(str(resume))
        training = Training(train_on(Context(RunStore(run.dir.parent), quiet=quiet), run, lambda saved: override(saved, flags)))
    else:
        if source is not None:
            flags["source"] = [str(one) for one in ([source] if isinstance(source, str | Path) else source)]
        context = Context(store, origin=Origin(str(init_from), store) if init_from is not None else None, quiet=quiet)
        resolved = Group(context, flags, preset, None).resolved()
        open_sources(resolved.config.data)
        training = Training(train_new(context, resolved, name))
    if stream:
        return training
    for _ in training:
        pass
    made = training.run
    assert made is not None  # a training that ends without an error has a run
    if training.interrupted:
        raise KeyboardInterrupt(f"step {made.record.stop_step:,} is saved: train(resume={made.name!r}) continues")
    return made


def _refuse_with_resume(**given: Any) -> None:
    from minigpt_cli.errors import UsageError

    if wrong := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"resume continues a run with its own settings: leave out {', '.join(wrong)}")


def compare(
    *runs: Names | Run, data: Names | None = None, split: Literal["val", "test"] = "val", runs_dir: Names | None = None
) -> Comparison:
    """Which of two or more runs is really better: all of them on the same characters, as `minigpt compare` does it.

    A name with `*` is all runs that match, as seeds of one recipe. `data` names a text to score instead of the validation split.
    """
    from minigpt_cli.commands.compare import compared, document, scored, sides_named
    from minigpt_cli.commands.evaluate import target_of
    from minigpt_cli.display.comparison import verdict_sentence

    names = [f"{run.dir}{run._run.label.removeprefix(run._run.name)}" if isinstance(run, Run) else str(run) for run in runs]

    def work() -> tuple[Compared, dict[str, Any]]:
        groups = sides_named(RunStore(runs_dir), names)
        target = target_of(split, None if data is None else str(data), {}, [run for _, side in groups for run in side])
        found = compared(groups, scored(groups, target, "auto"), target)
        return found, document(found, groups)

    found, content = _quietly(work)
    sentences = tuple(map(verdict_sentence, found.pairs))
    return Comparison(Table(content["runs"]), Table(content["pairs"]), content["differences"], sentences)


def leaderboard(*, where: str | None = None, tags: Sequence[str] = (), budget: str | None = None, runs_dir: Names | None = None) -> Table:
    """All scored runs, best first within each text, with statistical ties marked: a row for each, as `minigpt runs leaderboard --json`."""
    from minigpt_cli.commands.leaderboard import ranked
    from minigpt_cli.commands.run_fields import select

    runs = select(RunStore(runs_dir).runs(), where=where, tags=list(tags))
    return Table([row.model_dump(mode="json") for row in _quietly(lambda: ranked(runs, budget))])


def _text_score(score: Score) -> TextScore:
    of_score = {name: getattr(score, name) for name in ("nats_per_char", "ci95", "bits_per_byte", "perplexity", "text_sha256")}
    return TextScore(nats=score.char_nats, text=score.text.decode(), **of_score)


def _device() -> str:
    from minigpt_cli.commands.evaluate import device_chooser

    return device_chooser("auto")()


def _quietly(work: Callable[[], _T]) -> _T:
    """The result of `work`; the line that commands show while they load is removed at its end."""
    threads.share_cores()
    try:
        return work()
    finally:
        waiting.remove()
