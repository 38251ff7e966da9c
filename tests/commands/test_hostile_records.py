"""A run whose record holds what no run can have is shown as unreadable, with the reason, and never breaks a command over the others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.commands.provenance import new_record
from minigpt_cli.commands.serve import listed
from minigpt_cli.errors import MiniGPTError, RunDamaged
from minigpt_cli.evaluation import baselines, cache
from minigpt_cli.events import Evaluated
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import Annotations, RunRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage import atomic_io

from .conftest import Cli, record

HUGE = 10**400
RECORDS: dict[str, tuple[tuple[str, ...], Any]] = {
    "params": (("n_params",), HUGE),
    "active": (("n_active_params",), HUGE),
    "tokens": (("tokens_seen",), HUGE),
    "steps": (("stop_step",), 1 << 63),
    "vocabulary": (("vocab_size",), -1),
    "seconds": (("elapsed_s",), 1e308),
    "best": (("best", "nats_per_char"), 1e308),
    "best-negative": (("best", "nats_per_char"), -1e308),
    "interval": (("best", "ci95"), [-1e308, 1e308]),
    "best-step": (("best", "step"), HUGE),
    "reason": (("stop_reason",), "bored"),
    "status": (("status",), "asleep"),
    "yesterday": (("created_at",), "yesterday"),
    "no-zone": (("created_at",), "2026-01-01"),
    "year-1": (("created_at",), "0001-01-01T00:00:00+23:59"),
    "year-9999": (("updated_at",), "9999-12-31T23:59:59-23:59"),
    "long-label": (("corpus", "label"), "x" * 5000),
    "surrogate": (("arch",), "\ud800"),
    "many-splits": (("corpus", "splits"), {str(i): {"sha256": "", "n_tokens": 1, "n_chars": 1, "n_bytes": 1} for i in range(100)}),
    "deep": (("argv",), [[[]]]),
    "versions": (("versions",), {"torch": ["2"]}),
}


def signed(content: dict[str, Any]) -> str:
    """The text of a run.json that vouches for itself, whatever it holds."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return json.dumps({**content, "checksum": hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()})


def content_of(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(record(name).to_json())
    del content["checksum"]
    return content


def changed(name: str) -> str:
    (*path, last), value = RECORDS[name]
    content = inner = content_of(name)
    for key in path:
        inner = inner[key]
    inner[last] = value
    return signed(content)


@pytest.mark.parametrize("name", RECORDS)
def test_impossible_values_in_a_record_are_refused_when_it_is_read(name: str) -> None:
    assert RunRecord.from_json(signed(content_of(name)).encode(), "run.json").name == name
    with pytest.raises(RunDamaged, match=r"^run\.json is not [^\n]{10,400}$"):
        RunRecord.from_json(changed(name).encode(), "run.json")


@pytest.fixture
def crowd(trained: Path, make_run: Callable[..., Run]) -> RunStore:
    """A real run, one that was never trained, and a hostile one for each case."""
    make_run("second")
    store = RunStore("runs")
    for name in RECORDS:
        run = store.create(f"bad-{name}")
        atomic_io.write_atomic(run.file("run.json"), changed(name))
    return store


@pytest.mark.parametrize(
    "command",
    [
        "runs list", "runs list --csv", "runs list --md", "runs leaderboard", "runs leaderboard --csv", "runs leaderboard --md",
        "runs leaderboard --fold-seeds", "runs leaderboard --budget tokens", "runs list --where n_params<1e9 --sort created_at",
        "runs watch bad-reason first --once --json", "runs plot bad-params first",
        "runs plot bad-best first --html page.html", "runs show latest",
    ],
)  # fmt: skip
def test_hostile_runs_break_no_command_over_all_runs(command: str, crowd: RunStore, cli: Cli) -> None:
    done = cli(*command.split())
    assert done.code == 0, done.err
    everything = done.out + done.err
    assert "first" in everything or "second" in everything or "validation" in everything or "wrote page.html" in everything
    if "--where" not in command and "show" not in command:
        assert "bad-" in everything


def test_the_list_says_why_each_is_unreadable(crowd: RunStore, cli: Cli) -> None:
    rows = {row["run"]: row for row in cli("runs", "list", "--json").json}
    for name in RECORDS:
        assert rows[f"bad-{name}"]["status"] == "damaged"
        assert "is not" in rows[f"bad-{name}"]["reason"]
    assert {row["run"] for row in rows.values() if row["status"] != "damaged"} == {"first", "second"}


def test_the_server_lists_the_runs_that_it_can_read(crowd: RunStore) -> None:
    assert [run.name for run in listed(crowd)] == ["first"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("step", HUGE), ("tokens_seen", HUGE), ("elapsed_s", 1e308), ("lr", 1e308), ("run", "\ud800"), ("expert_load", [[2.0]]),
     ("patience_left", -1)],
)  # fmt: skip
def test_a_hostile_line_of_metrics_is_refused(field: str, value: Any, make_run: Callable[..., Run]) -> None:
    sound = Evaluated(
        run="r", step=1, train_loss=1, val_loss=1, nats_per_char=1, lr=1e-3, tokens_seen=1, tokens_per_s=1, elapsed_s=1, is_best=True
    )
    run = make_run("a")
    run.append(sound)
    assert list(run.metrics()) == [sound]
    run.file("metrics.jsonl").write_text(json.dumps(sound.model_dump() | {field: value}) + "\n")
    with pytest.raises(RunDamaged, match="line 1"):
        list(run.metrics())


def test_a_huge_loss_counts_as_not_finite() -> None:
    for loss in (1e300, -1e300, float("nan"), float("inf"), HUGE):
        assert record("a", final_val_loss=loss).final_val_loss is None


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("optim", "max_steps", 10**30), ("eval", "time_limit", 1e308), ("eval", "min_delta", 1e308), ("data", "source", "x" * 5000),
     ("optim", "warmup_steps", HUGE), ("data", "tokenizer", "\udfff")],
)  # fmt: skip
def test_a_hostile_configuration_is_refused(section: str, field: str, value: Any, make_run: Callable[..., Run], cli: Cli) -> None:
    run = make_run("a")
    assert run.config.seed == 1337
    content = run.config.model_dump(mode="json")
    content[section][field] = value
    run.file("config.json").write_text(json.dumps(content))
    with pytest.raises(RunDamaged, match=r"config\.json is not"):
        _ = run.refresh().config
    make_run("b")
    for command in (["runs", "list"], ["runs", "leaderboard", "--fold-seeds"], ["runs", "list", "--where", "lr<1"]):
        assert cli(*command).code == 0


@pytest.mark.parametrize(
    "annotations",
    ['{"tags": ["\\ud800"]}', '{"note": "' + "n" * 200_000 + '"}', json.dumps({"tags": ["t"] * 2000}), json.dumps({"tags": ["t" * 100]})],
)
def test_hostile_annotations_are_refused_and_stay_out_of_tables(annotations: str, make_run: Callable[..., Run], cli: Cli) -> None:
    run = make_run("a")
    run.file("annotations.json").write_text(annotations)
    with pytest.raises(RunDamaged, match=r"annotations\.json is not"):
        _ = run.annotations
    assert cli("runs", "list").code == 0


def test_what_could_not_be_read_again_is_not_written(make_run: Callable[..., Run]) -> None:
    run = make_run("a")
    with pytest.raises(MiniGPTError, match=r"^run 'a' cannot be recorded: tokens_seen"):
        run.write_record(run.record.model_copy(update={"tokens_seen": HUGE}))
    assert run.refresh().record.tokens_seen == 5000


def test_a_name_that_is_not_utf8_is_refused_in_one_line_or_recorded_without_what_is_not(trained: Path, cli: Cli) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    try:
        shutil.copy("text.txt", name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    for command in (["tokenize", name], ["train", name, "--max-steps", "1"], ["runs", "note", "first", name]):
        done = cli(*command)
        assert done.code == 2
        assert "is not UTF-8" in done.err
    assert "\ufffd" in new_record("a", preset=None).argv[-1] or "?" in new_record("a", preset=None).argv[-1]


def hostile_score(folder: Path, key: cache.ScoreKey, **figures: Any) -> None:
    """Change the figures of a kept score, with the checksum that belongs to them."""
    from safetensors.numpy import load, save

    path = key.path(folder)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length])["__metadata__"], load(data)
    header["score"] = json.dumps(json.loads(header["score"]) | figures)
    header["head_sha256"] = cache._sha256(header["key"], header["score"], header["cell"], tensors["cells"])
    path.write_bytes(save(tensors, header))


@pytest.mark.parametrize(
    "figures", [{"nats_per_char": 1e308}, {"n_tokens": HUGE}, {"block_chars": 0}, {"n_chars": "many"}, {"n_chars": 2}, {"more": 1}]
)
def test_a_hostile_kept_score_is_ignored(figures: dict[str, Any], trained: Path) -> None:
    from minigpt_cli.evaluation.eval_target import Target, score_key

    run = RunStore("runs").find("first")
    key = score_key(run, Target())
    assert cache.find(run.dir, key) is not None
    hostile_score(run.dir, key, **figures)
    assert cache.find(run.dir, key) is None


def test_a_pipe_or_a_huge_file_instead_of_a_kept_score_is_ignored(tmp_path: Path) -> None:
    key = cache.ScoreKey("w", "t")
    path = key.path(tmp_path)
    path.parent.mkdir()
    os.mkfifo(path)
    assert cache.find(tmp_path, key) is None
    assert cache.find_cells(tmp_path, key) is None
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert cache.find(tmp_path, key) is None
    os.mkfifo(tmp_path / "baselines")
    assert baselines.find_kept(tmp_path / "baselines") is None
    (tmp_path / "huge").write_text(json.dumps(dict.fromkeys(("uniform", "unigram", "bigram", "xz", "xz_alone"), 1e308)))
    assert baselines.find_kept(tmp_path / "huge") is None


def test_json_with_deep_nesting_or_half_a_surrogate_pair_is_refused() -> None:
    assert atomic_io.parse_json(b'{"a": [[["[[[["]]]}' + b" " * 200, "it") == {"a": [[["[[[["]]]}
    assert atomic_io.parse_json(b'"\\ud83d\\ude00"', "it") == "\N{GRINNING FACE}"
    for data in (b"[" * 150 + b"]" * 150, b'{"a":' * 100_000):
        with pytest.raises(RunDamaged, match="nested too deeply"):
            atomic_io.parse_json(data, "it")
    for data in (b'"\\ud800"', b'{"\\uDC00": 1}'):
        with pytest.raises(RunDamaged, match=r"half of a surrogate pair, \\u"):
            atomic_io.parse_json(data, "it")


def test_a_note_is_bounded(make_run: Callable[..., Run], cli: Cli) -> None:
    make_run("a")
    assert cli("runs", "note", "a", "x" * 200_000).code == 2
    assert Annotations(note="x").note == "x"
