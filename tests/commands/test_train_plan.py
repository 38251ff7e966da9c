"""What `minigpt train` plans where nothing else is asked for, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.commands.planning import parse_size
from minigpt_cli.config import RunConfig
from minigpt_cli.errors import UsageError
from minigpt_cli.training import plan
from minigpt_cli.training.machine import Machine
from minigpt_cli.training.vocabularies import Text

SLOW = Machine(flops_per_s=5e9, bytes_per_s=1e9, delay_s=1e-3)
PLANNED = ("n_layer", "n_embd", "n_head", "block_size", "dropout", "batch_size", "lr", "muon_lr")


def settings(run: str) -> dict[str, Any]:
    config = RunConfig.model_validate_json(Path(f"runs/{run}/config.json").read_bytes())
    return {**config.model.model_dump(), **config.optim.model_dump()}


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """The speed that is "measured", which a test may change."""
    machines = [SLOW]
    monkeypatch.setattr(plan, "this_machine", lambda *given: machines[0])
    return machines


def test_a_plan_is_saved_as_plain_values_and_repeated_to_the_bit(trained: Path, cli: Any, machines: list[Machine]) -> None:
    done = cli("train", "text.txt", "--time-budget", "0.3s", "--threads", "1", "--n-layer", "1", "--name", "planned", "--json")
    assert done.code == 0, done.err
    notices = json.loads(done.out.splitlines()[0])["notices"]
    assert sum(notice.startswith("plan: ") for notice in notices) == 3
    first = settings("planned")
    assert first["n_layer"] == 1
    assert first["max_steps"] > 0
    assert cli("train", "--config", "runs/planned/config.json", "--name", "again").code == 0
    assert {name: settings("again")[name] for name in PLANNED} == {name: first[name] for name in PLANNED}
    one, other = (Path(f"runs/{run}/last.safetensors").read_bytes() for run in ("planned", "again"))
    assert one == other


def test_a_dry_run_shows_the_plan_and_why(trained: Path, cli: Any, machines: list[Machine]) -> None:
    done = cli("train", "text.txt", "--time-budget", "2s", "--dry-run", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert len(found["why"]) == 3
    config = RunConfig.model_validate(found["config"])
    assert config.optim.max_steps == found["max_steps"] > 0


@pytest.mark.parametrize(
    "flags", [("--max-steps", "3"), ("--preset", "tiny-run"), ("--arch", "classic", "--time-budget", "0.2s", "--n-layer", "1")]
)
def test_nothing_is_planned_for_a_preset_a_number_of_steps_or_another_architecture(
    flags: tuple[str, ...], trained: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object) -> None:
        raise AssertionError("planned")

    monkeypatch.setattr(plan, "this_machine", never)
    done = cli("train", "text.txt", *flags, "--dry-run", "--json", "--block-size", "16")
    assert done.code == 0, done.err
    assert json.loads(done.out)["why"] == []


def test_runs_of_a_group_are_planned_alike_and_are_one_recipe(
    trained: Path, cli: Any, machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(plan, "this_machine", lambda *given: asked.append(given) or SLOW)
    done = cli("train", "text.txt", "--time-budget", "0.1s", "--threads", "1", "--n-layer", "1", "--seeds", "2", "--name", "pair")
    assert done.code == 0, done.err
    assert len(asked) == 1
    records = [json.loads(path.read_text()) for path in Path("runs").glob("*/run.json")]
    records = [record for record in records if record["group"] == "pair"]
    assert len(records) == 2
    assert all(record["left_open"]["model.n_embd"] == "auto" for record in records)
    assert all("model.n_layer" not in record["left_open"] for record in records)
    speeds = Path("runs/.pair.speeds")
    kept = speeds.read_bytes()
    impossible = json.dumps({key: [0.0, -1.0, 1e308] for key in json.loads(kept)}).encode()
    for damaged in (None, b"[]", b'{"a": 1}', b"\x00", impossible):
        if damaged is not None:
            speeds.write_bytes(damaged)
        for path in Path("runs").glob("pair*"):
            shutil.rmtree(path)  # not by the command, which removes the speeds too
        asked.clear()
        done = cli("train", "text.txt", "--time-budget", "0.1s", "--threads", "1", "--n-layer", "1", "--seeds", "2", "--name", "pair")
        assert done.code == 0, done.err
        assert len(asked) == (damaged is not None)
        assert speeds.read_bytes() == kept
    assert cli("runs", "rm", "pair~seed=1337", "--yes").code == 0
    assert speeds.exists()
    assert cli("runs", "rm", "pair*", "--yes").code == 0
    assert not speeds.exists()


@pytest.mark.parametrize(("typed", "size"), [("auto", 0), ("800k", 800_000), ("2.7M", 2_700_000), ("123456", 123_456)])
def test_a_size_is_read_as_a_person_types_it(typed: str, size: int) -> None:
    assert parse_size(typed) == size


@pytest.mark.parametrize("typed", ["", "0", "large", "-5", "1e6", "9" * 15 + "g"])
def test_a_size_that_is_none_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match="number of parameters"):
        parse_size(typed)


def test_a_size_that_no_plan_would_keep_is_refused(trained: Path, cli: Any) -> None:
    done = cli("train", "text.txt", "--size", "100k", "--max-steps", "3")
    assert done.code == 2
    assert "--max-steps leaves nothing to plan" in done.err


def test_byte_pairs_that_are_planned_are_learned_and_kept(
    trained: Path, cli: Any, machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "possible", lambda *given: [Text("bpe", 300, 1000, 300, 1.2, is_cut=False)])
    flags = ("--time-budget", "0.2s", "--threads", "1", "--n-layer", "1", "--block-size", "16")
    done = cli("train", "text.txt", *flags, "--name", "pairs")
    assert done.code == 0, done.err
    config = RunConfig.model_validate_json(Path("runs/pairs/config.json").read_bytes())
    assert (config.data.tokenizer, config.data.vocab_size) == ("bpe", 300)
    assert len(json.loads(Path("runs/pairs/tokenizer.json").read_bytes())["model"]["vocab"]) == 300
    assert cli("train", "--resume", "pairs", "--max-steps", str(config.optim.max_steps + 2)).code == 0
    assert cli("runs", "verify", "pairs").code == 0


def test_print_config_names_what_a_plan_will_decide(cli: Any) -> None:
    sources = cli("train", "--n-layer", "3", "--print-config", "--json").json["sources"]
    assert sources["n_layer"] == "--n-layer"
    assert {name: sources[name] for name in ("n_embd", "batch_size", "tokenizer")} == dict.fromkeys(
        ("n_embd", "batch_size", "tokenizer"), "plan"
    )
    assert "plan" not in cli("train", "--max-steps", "3", "--print-config", "--json").json["sources"].values()


def test_groups_of_another_size_are_other_groups(trained: Path, cli: Any, machines: list[Machine]) -> None:
    flags = ("--time-budget", "0.1s", "--threads", "1", "--seeds", "2", "--block-size", "16")
    for size in ("60k", "110k"):
        assert cli("train", "text.txt", *flags, "--size", size).code == 0
    records = [json.loads(path.read_text()) for path in Path("runs").glob("*/run.json")]
    groups = {record["group"]: record["n_params"] for record in records if record["group"]}
    assert len(groups) == 2
