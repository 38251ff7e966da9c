"""Several processes train the same run as one process: same steps, same losses, common decisions, and they stop together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from minigpt_cli.config import DataConfig, RunConfig
from minigpt_cli.data.encoding import prepared
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import RunRecord
from minigpt_cli.training.distributed import World
from minigpt_cli.training.planner import resolve
from minigpt_cli.training.resuming import on_processes

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")

SHAPE = ["--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--block-size", "16", "--seed", "3"]
TINY = [*SHAPE, *["--precision", "fp32", "--attention", "plain", "--threads", "1"]]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "minigpt_cli"]

Processes = Callable[..., list[Any]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(
        "".join(f"line {i}: the {['quick', 'slow', 'red'][i % 3]} fox counts to {i * 7 % 97}.\n" for i in range(600)), encoding="utf-8"
    )
    return path


def evaluations(ended: list[Any]) -> list[dict[str, Any]]:
    """What the first process measured; the others are silent."""
    assert [(e.code, e.out, e.err) for e in ended[1:]] == [(0, "", "")] * (len(ended) - 1)
    assert ended[0].code == 0, ended[0].err
    return [event for event in map(json.loads, ended[0].out.splitlines()) if event["event"] == "evaluated"]


def record(folder: Path, name: str) -> RunRecord:
    return Run(folder / "runs" / name).record


def test_two_processes_have_the_losses_of_one_over_fifty_steps(tmp_path: Path, text: Path, processes: Processes) -> None:
    common = ["train", "text.txt", *TINY, "--max-steps", "50", "--eval-every", "10", "--keep-every", "25", "--json"]
    one = evaluations(processes(tmp_path, [*common, "--name", "one", "--batch-size", "8"]))
    two = evaluations(processes(tmp_path, [*common, "--name", "two", "--batch-size", "4"], size=2))
    assert [e["step"] for e in two] == [10, 20, 30, 40, 50]
    for a, b in zip(one, two, strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-3)
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-3)
        assert a["tokens_seen"] == b["tokens_seen"]
    kept = record(tmp_path, "two").kept
    assert list(kept) == list(record(tmp_path, "one").kept) == ["step-000025.safetensors", "step-000050.safetensors"]
    assert kept["step-000050.safetensors"] == record(tmp_path, "two").files["best.safetensors"]


def test_two_processes_mask_documents_as_one_does(tmp_path: Path, text: Path, processes: Processes) -> None:
    common = ["train", "text.txt", "--documents", "lines", *TINY, "--max-steps", "6", "--eval-every", "3", "--json"]
    common += ["--document-mask", "--batch-size", "4"]
    one = evaluations(processes(tmp_path, [*common, "--name", "one", "--grad-accum", "2"]))
    two = evaluations(processes(tmp_path, [*common, "--name", "two"], size=2))
    assert [e["val_loss"] for e in two] == pytest.approx([e["val_loss"] for e in one], abs=1e-5)


def test_a_run_resumed_on_fewer_and_more_processes_takes_the_same_steps(tmp_path: Path, text: Path, processes: Processes) -> None:
    """Losses go on as if nothing had happened, tokens are counted as they were seen, and it is said that the bits are not the same.
    With whole weights and with sharded ones."""
    settings = [
        "--optimizer",
        "adamw",
        "--grad-clip",
        "0.5",
        "--ema",
        "0",
        "--schedule",
        "constant",
        "--warmup-steps",
        "0",
        "--eval-every",
        "5",
        "--json",
    ]
    common = ["train", "text.txt", *TINY, *settings, "--keep-every", "5"]
    straight = evaluations(processes(tmp_path, [*common, "--name", "straight", "--batch-size", "8", "--max-steps", "15"]))
    for name, sharded in (("whole", []), ("sharded", ["--fsdp"])):
        begin = [*common, *sharded, "--name", name, "--batch-size", "4", "--max-steps", "5"]
        seen = evaluations(processes(tmp_path, begin, size=2))
        for steps, size, flags in ((10, 1, []), (15, 2, sharded)):
            seen += evaluations(processes(tmp_path, ["train", "--resume", name, "--max-steps", str(steps), "--json", *flags], size=size))
        assert [e["val_loss"] for e in seen] == pytest.approx([e["val_loss"] for e in straight], abs=1e-3)
        assert [e["tokens_seen"] for e in seen] == [e["tokens_seen"] for e in straight]
        moved = record(tmp_path, name)
        assert moved.tokens_seen == 15 * 8 * 16
        assert list(moved.kept) == ["step-000005.safetensors", "step-000010.safetensors", "step-000015.safetensors"]
        for session, (before, now) in zip(moved.resume_exact_history, ((2, 1), (1, 2)), strict=True):
            assert not session.exact
            assert f"the number of processes was {before} and is now {now}" in session.reasons


def test_tokens_are_counted_as_seen_where_a_step_cannot_be_divided(tmp_path: Path, text: Path, processes: Processes) -> None:
    common = ["train", "text.txt", *TINY, "--schedule", "constant", "--eval-every", "5", "--batch-size", "3", "--name", "odd", "--json"]
    seen = evaluations(processes(tmp_path, [*common, "--max-steps", "5"]))
    seen += evaluations(processes(tmp_path, ["train", "--resume", "odd", "--max-steps", "15", "--json"], size=2))
    assert [e["tokens_seen"] for e in seen] == [5 * 3 * 16, 5 * 3 * 16 + 5 * 6 * 16, 5 * 3 * 16 + 10 * 6 * 16]
    odd = record(tmp_path, "odd")
    assert odd.tokens_seen == seen[-1]["tokens_seen"]
    assert "the number of windows in a step was 3 and is now 6" in odd.resume_exact_history[0].reasons


@pytest.mark.parametrize(
    ("batch", "accum", "before", "now", "wanted"),
    [(4, 1, 2, 1, (4, 2)), (4, 2, 1, 2, (4, 1)), (4, 1, 1, 2, (2, 1)), (6, 1, 2, 3, (4, 1)), (3, 1, 1, 2, (3, 1))],
)
def test_windows_of_a_step_are_divided_among_the_processes(batch: int, accum: int, before: int, now: int, wanted: tuple[int, int]) -> None:
    config = RunConfig.model_validate({"optim": {"batch_size": batch, "grad_accum": accum}, "compute": {"fsdp": before > 1}})
    moved, notices = on_processes(config, before, now)
    assert (moved.optim.batch_size, moved.optim.grad_accum) == wanted
    assert moved.compute.fsdp == (before > 1 and now > 1)
    assert len(notices) == 1


def test_processes_on_unequal_machines_agree_on_everything(tmp_path: Path, text: Path, processes: Processes) -> None:
    """Another clock, memory, thread count, arithmetic speed, validation loss and environment in the second process change nothing there
    alone: configuration, steps, end and weights are one."""
    facts = [tmp_path / f"facts{rank}.json" for rank in range(2)]
    flags = ["--time-budget", "2s", "--batch-size", "64", "--auto-batch", "--patience", "3", "--eval-every", "2", "--json"]
    ended = processes(tmp_path, ["train", "text.txt", *SHAPE, *flags], size=2, hook="unequal", values=tuple(map(str, facts)))
    assert [e.code for e in ended] == [0, 0], [e.err for e in ended]
    first, second = (json.loads(path.read_text()) for path in facts)
    weights = [first.pop("weights"), second.pop("weights")]
    assert first == second
    assert weights[0] == weights[1]
    assert first["config"]["optim"]["lr"] == RunConfig().optim.lr
    assert (first["config"]["compute"]["precision"], first["config"]["compute"]["threads"]) == ("bf16", 1)
    assert first["config"]["optim"]["batch_size"] < 64, "the second has not the memory for more"


def test_sweeps_and_searches_are_led_by_one_process(tmp_path: Path, text: Path, processes: Processes) -> None:
    """One failing run among them ends none of the processes; one process speaks."""
    common = ["train", "text.txt", *TINY, "--batch-size", "4", "--max-steps", "4", "--eval-every", "2"]
    sweep = processes(tmp_path, [*common, "--name", "g", "--sweep", "block_size=8,100000,4", "--seeds", "2"], size=2)
    assert [e.code for e in sweep] == [1, 0], [e.err for e in sweep]
    assert sweep[0].out.count("block_size  nats/char") == 1, "one table, of the first process"
    assert "group g: 4 runs, 2 failed" in sweep[0].err
    assert (sweep[1].out, sweep[1].err) == ("", "")
    assert len([n for n in os.listdir(tmp_path / "runs") if n.startswith("g~")]) == 4
    pytest.importorskip("optuna")
    search = processes(tmp_path, [*common, "--name", "s", "--search", "lr=1e-4..1e-2:log", "--trials", "2"], size=2)
    assert [e.code for e in search] == [0, 0], [e.err for e in search]
    assert (search[1].out, search[1].err) == ("", "")
    assert sorted(n for n in os.listdir(tmp_path / "runs") if n.startswith("s~")) == ["s~t0", "s~t1"]


def test_a_lost_process_ends_the_others_with_one_line_and_a_complete_save(tmp_path: Path, text: Path, processes: Processes) -> None:
    common = ["train", "text.txt", *TINY, "--batch-size", "4", "--max-steps", "100", "--eval-every", "10", "--name", "lost"]
    before = time.monotonic()
    ended = processes(tmp_path, common, size=2, hook="dies_at_step", values=("25", "25"))
    assert time.monotonic() - before < 30
    assert [e.code for e in ended] == [1, -signal.SIGKILL]
    last = ended[0].err.splitlines()[-1]
    assert last.startswith("Error: another process of this training has ended or cannot be reached")
    assert "Traceback" not in ended[0].err
    assert (record(tmp_path, "lost").status, record(tmp_path, "lost").stop_step) == ("failed", 20)
    evaluations(processes(tmp_path, ["train", "--resume", "lost", "--max-steps", "100", "--json"], size=2))


def test_every_process_ends_with_the_exit_code_of_the_signal_that_one_received(tmp_path: Path, text: Path, processes: Processes) -> None:
    common = ["train", "text.txt", *TINY, "--batch-size", "4", "--max-steps", "100", "--eval-every", "10", "--name", "cut"]
    ended = processes(tmp_path, common, size=2, hook="terminated_at_step", values=("15", "15"))
    assert [e.code for e in ended] == [143, 143], [e.err for e in ended]
    assert (record(tmp_path, "cut").stop_reason, record(tmp_path, "cut").stop_step) == ("terminated", 15)


def test_machines_without_a_shared_folder_get_a_clear_error(tmp_path: Path, text: Path, processes: Processes) -> None:
    (tmp_path / "other").mkdir()
    common = ["train", "text.txt", *TINY, "--batch-size", "4", "--max-steps", "4", "--name", "apart"]
    ended = processes(tmp_path, common, size=2, hook="elsewhere", values=(str(tmp_path), str(tmp_path / "other")))
    assert [e.code for e in ended] == [2, 0]
    line = ended[0].err.splitlines()[-1]
    assert "every machine must see the same data and runs folders" in line
    assert "dataset.json is missing" in line
    assert not (tmp_path / "runs" / "apart").exists()


def test_a_signal_to_one_process_stops_and_saves_all(tmp_path: Path, text: Path) -> None:
    """Under torchrun itself, in the middle of a sweep: nothing goes on."""
    endless = ["--batch-size", "4", "--max-steps", "1000000", "--eval-every", "1000000", "--name", "long", "--seeds", "2", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MINIGPT_RUNS_DIR": "runs", "MINIGPT_DATA_DIR": "data"}
    command = [*TORCHRUN, "train", "text.txt", *TINY, *endless]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "started"
        time.sleep(0.5)
        os.kill(children(process.pid)[-1], signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    stopped = [event for event in map(json.loads, out.splitlines()) if event["event"] == "stopped"]
    assert len(stopped) == 1, err
    assert stopped[0]["stop_reason"] == "terminated"
    assert record(tmp_path, "long~seed=3").status == "interrupted"
    assert record(tmp_path, "long~seed=3").stop_step == stopped[0]["step"] > 0
    assert not (tmp_path / "runs" / "long~seed=4").exists()


def children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(line) for line in listing.stdout.split()]


def test_a_dry_run_measures_with_all_processes(tmp_path: Path, text: Path, processes: Processes) -> None:
    flags = ["--dry-run", "--json", "--fsdp", "--optimizer", "adamw", "--ema", "0", "--batch-size", "4", "--max-steps", "100"]
    ended = processes(tmp_path, ["train", "text.txt", *TINY, *flags], size=2)
    assert [e.code for e in ended] == [0, 0], [e.err for e in ended]
    plan = json.loads(ended[0].out)
    assert plan["epochs"] == pytest.approx(100 * 2 * 4 * 16 / 19_823)
    assert not (tmp_path / "runs").exists()


def test_an_optimizer_that_cannot_shard_is_refused_with_fsdp(tmp_path: Path, text: Path) -> None:
    dataset = prepared(DataConfig(source=str(text)), tmp_path)
    config = RunConfig.model_validate({"optim": {"optimizer": "muon", "ema": 0.0}, "compute": {"fsdp": True}})
    with pytest.raises(UsageError, match="--optimizer muon needs them whole: add --optimizer adamw"):
        resolve(config, dataset, World(size=2))


def test_a_single_process_needs_no_channel() -> None:
    world = World()
    assert world.leads
    assert world.lead(lambda: {"a": 1}) == {"a": 1}
    assert world.each(lambda: 2) == 2
    assert world.gather(5) == [5]
