"""Whatever a text, prompt, setting or file of a run holds: the outcome is a result or one line, never a traceback or a hang."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import fuzz_run_directory as fuzz
from harness.results import complaint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_LIMITS = settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two trained runs, and the environment that names them."""
    before, place = dict(os.environ), tmp_path_factory.mktemp("fuzz")
    for name in [name for name in os.environ if name.startswith("MINIGPT_")]:
        del os.environ[name]
    os.environ["NO_COLOR"] = "1"
    fuzz.make_runs(place)
    handlers = {number: signal.signal(number, fuzz.give_up) for number in (signal.SIGALRM, signal.SIGPROF)}
    shutil.copytree(place / "runs", place / "runs-as-made")
    yield place
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(before)


FILES = [
    "run.json",
    "config.json",
    "tokenizer.json",
    "metrics.jsonl",
    "best.safetensors",
    "last.safetensors",
    "resume.safetensors",
    "previous/run.json",
]
EVERY_COMMAND = [
    "runs list", "runs leaderboard", "runs show RUN", "runs verify RUN", "runs plot RUN",
    "generate RUN --max-new-tokens 2 --prompt a", "eval RUN",
    "train --resume RUN --time-limit 1", "runs export RUN --out EXPORTED", "compare RUN good",
]  # fmt: skip


@_LIMITS
@given(
    name=st.sampled_from(FILES),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    cut=st.none() | st.floats(0, 1),
    vouched=st.booleans(),
    command=st.sampled_from(EVERY_COMMAND),
)
def test_any_bytes_of_a_run_may_change(
    name: str, flips: list[tuple[float, int]], cut: float | None, vouched: bool, command: str, folder: Path
) -> None:
    fuzz.restore(folder)
    run = folder / "runs" / "victim"
    data = bytearray((run / name).read_bytes())
    for where, what in flips:
        data[int(where * len(data))] ^= what
    changed = {name: bytes(data[: len(data) if cut is None else int(cut * len(data))])}
    fuzz.write(run, changed | (fuzz.signed(run, changed) if vouched else {}))
    assert fuzz.judge(folder, command) is None


@_LIMITS
@given(seed=st.integers(0, 1 << 32), command=st.sampled_from(EVERY_COMMAND))
def test_hostile_values_with_correct_checksums_break_no_command(seed: int, command: str, folder: Path) -> None:
    fuzz.restore(folder)
    run = folder / "runs" / "victim"
    fuzz.write(run, fuzz.mutated(run, random.Random(seed)))
    assert fuzz.judge(folder, command) is None


@pytest.mark.parametrize("command", EVERY_COMMAND)
@pytest.mark.parametrize("seed", range(4))
def test_links_pipes_folders_and_huge_files_break_no_command(seed: int, command: str, folder: Path) -> None:
    fuzz.restore(folder)
    fuzz.trick(folder / "runs" / "victim", random.Random(seed + len(command)))
    assert fuzz.judge(folder, command) is None


def outcome(arguments: list[str]) -> int:
    """The exit code of a command line, after checking how it ended."""
    code, said = fuzz.call(arguments)
    assert complaint(code, said) is None
    assert not set(said) & (set(map(chr, range(32))) - {"\n"}), said
    return code


TEXTS = st.one_of(
    st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.binary(max_size=300),
    st.text(alphabet="ab\r\n\0\ufeff\u2028é日😀", max_size=300).map(str.encode),
    st.sampled_from(
        [b"", b"\n", b"\xef\xbb\xbf", b"\xef\xbb\xbfabc" * 50, b"a" * 1_000_000, b"a\r\n" * 5000, "😀".encode() * 400, b"\xed\xa0\x80"]
    ),
)


@_LIMITS
@given(text=TEXTS, tokenizer=st.sampled_from(["char", "byte", "bpe"]))
def test_any_text_can_be_given(text: bytes, tokenizer: str, folder: Path) -> None:
    fuzz.restore(folder)
    (folder / "any.txt").write_bytes(text)
    names = sorted(p.name for p in (folder / "runs").iterdir())
    settings_ = [*fuzz.TINY, "--tokenizer", tokenizer, "--vocab-size", "257", "--max-steps", "1", "--name", "any"]
    code = outcome(["train", str(folder / "any.txt"), *settings_])
    assert sorted(p.name for p in (folder / "runs").iterdir()) == (sorted([*names, "any"]) if code == 0 else names)
    if code == 0:
        assert outcome(["eval", "any"]) == 0
        assert outcome(["runs", "verify", "any"]) == 0


@_LIMITS
@given(
    prompt=st.text(max_size=40),
    options=st.lists(st.sampled_from(["--greedy", "--json", "--probs", "--num-samples=2", "--stop=a", "--stop="])),
)
def test_any_prompt_can_be_given(prompt: str, options: list[str], folder: Path) -> None:
    fuzz.restore(folder)
    outcome(["generate", "good", "--max-new-tokens", "3", *options, f"--prompt={prompt}"])


NUMBERS = st.one_of(
    st.integers(-2, 20), st.sampled_from([10**9, 2**63, 10**30, 0.5, 1.5, -0.0, 1e-300, 1e300, float("nan"), float("inf")]), st.floats()
)
SETTINGS = [
    "n-layer",
    "n-head",
    "n-kv-head",
    "n-embd",
    "block-size",
    "batch-size",
    "grad-accum",
    "dropout",
    "lr",
    "muon-lr",
    "weight-decay",
    "beta1",
    "beta2",
    "grad-clip",
    "warmup-steps",
    "min-lr",
    "ema",
    "eval-every",
    "eval-iters",
    "patience",
    "min-delta",
    "target-loss",
    "time-limit",
    "save-every",
    "seed",
    "threads",
    "vocab-size",
    "min-pair-freq",
    "train-frac",
    "test-frac",
    "ffn-mult",
    "rope-theta",
    "rms-norm-eps",
    "init-std",
    "n-experts",
    "moe-top-k",
    "moe-aux-loss-coef",
    "max-steps",
]


@_LIMITS
@given(
    arch=st.sampled_from(["bigram", "classic", "modern", "moe"]),
    chosen=st.dictionaries(st.sampled_from(SETTINGS), NUMBERS | st.text(string.printable, max_size=5), min_size=1, max_size=3),
)
def test_any_setting_can_be_given(arch: str, chosen: dict[str, object], folder: Path) -> None:
    fuzz.restore(folder)
    names = sorted(p.name for p in (folder / "runs").iterdir())
    small = {k: v for k, v in zip(fuzz.TINY[::2], fuzz.TINY[1::2], strict=True) if k not in ("--arch", *(f"--{name}" for name in chosen))}
    if arch == "bigram":
        small = {k: v for k, v in small.items() if k not in ("--n-layer", "--n-head", "--n-embd")}
    flags = [f"{k}={v}" for k, v in small.items()] + [f"--{name}={value}" for name, value in chosen.items()]
    code = outcome(["train", str(folder / "text.txt"), "--arch", arch, "--print-config", *flags])
    assert sorted(p.name for p in (folder / "runs").iterdir()) == names
    if code == 0:  # it may be large: planning must say so, not the machine
        with contextlib.suppress(FileNotFoundError):
            outcome(["train", str(folder / "text.txt"), "--arch", arch, "--name", "any", "--time-limit", "2", *flags])
