"""minigpt compare: verdicts on real runs in every form of output, groups of seeds, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt_cli import cli as cli_module
from minigpt_cli.evaluation.recipes import observations, repeat_notice
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.records import FileRecord
from minigpt_cli.storage import atomic_io


@pytest.fixture(scope="module")
def four_once(tmp_path_factory: pytest.TempPathFactory, trained_once: Path) -> Path:
    """A folder with `first`, its twin in all but the seed, and two seeds of another recipe with other tokens."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(trained_once, folder, dirs_exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        same = ["train", "--config", "runs/first/config.json"]
        assert cli_module.run([*same, "--name", "fit", "--seed", "7"]) == 0
        for seed in "12":
            assert cli_module.run([*same, "--name", f"bpe-{seed}", "--seed", seed, "--tokenizer", "bpe", "--vocab-size", "270"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def four(four_once: Path, home: Path) -> Path:
    """The working folder, holding a copy of the four runs."""
    shutil.copytree(four_once, home, dirs_exist_ok=True)
    return home


def test_json_is_what_cli_md_promises(cli, four: Path) -> None:
    document = cli("compare", "first", "bpe-1", "--json").json
    assert document["n_chars"] == 510
    assert [run["run"] for run in document["runs"]] == ["first", "bpe-1"]
    assert document["runs"][0]["n_tokens"] > document["runs"][1]["n_tokens"]
    (pair,) = document["pairs"]
    a, b = (run["nats_per_char"] for run in document["runs"])
    assert pair["delta_nats_per_char"] == pytest.approx(a - b)
    low, high = pair["ci95"]
    assert low <= pair["delta_nats_per_char"] <= high
    told_apart = pair["p_value"] < 0.05 and not low <= 0 <= high
    assert pair["verdict"] == (("a_better" if a < b else "b_better") if told_apart else "indistinguishable")
    assert pair["question"] == "weights"
    assert {"tokenizer", "vocab_size", "seed"} <= document["differences"].keys()


def test_scores_are_those_of_eval(cli, four: Path) -> None:
    document = cli("compare", "first", "fit", "bpe-2", "--json").json
    for run in document["runs"]:
        assert run["nats_per_char"] == cli("eval", run["run"], "--json").json["nats_per_char"]
    assert len(document["pairs"]) == 3


def test_another_way_of_reading_is_said_with_the_scores(cli, four: Path) -> None:
    usual, recent = (cli("compare", "first", "fit", *flags).out.splitlines()[0] for flags in ([], ["--stride", "8", "--recent", "40"]))
    assert "windows" not in usual
    assert recent == f"{usual}; windows slide by 8 tokens, with the last 40 tokens"
    scored = [cli("eval", "first", "--recent", n, "--json").json for n in ("0", "40")]
    assert [one["recent"] for one in scored] == [0, 40]
    assert scored[0]["nats_per_char"] != scored[1]["nats_per_char"]


def test_groups_of_seeds_speak_of_recipes(cli, four: Path) -> None:
    by_name = cli("compare", "f*", "bpe-*", "--json").json
    by_config = cli("compare", "*", "--group-by", "config", "--json").json
    for document in (by_name, by_config):
        (pair,) = document["pairs"]
        assert pair["question"] == "recipes"
        assert [group["n"] for group in document["groups"]] == [2, 2]
        assert {frozenset(group["runs"]) for group in document["groups"]} == {frozenset({"first", "fit"}), frozenset({"bpe-1", "bpe-2"})}
    assert "seed" not in by_name["differences"]  # the runs of each side differ in it
    assert "includes new seeds" in cli("compare", "f*", "bpe-*").out


def test_a_run_repeated_with_its_seed_is_one_observation(cli, four: Path) -> None:
    for name in ("first", "bpe-1"):  # in all but the last bits, which threads and attention path decide
        assert cli("train", "--config", f"runs/{name}/config.json", "--name", f"{name}-again", "--attention", "sdpa").code == 0
    done = cli("compare", "first*", "bpe-1*", "--json")
    assert [run["run"] for run in done.json["runs"]] == ["first", "bpe-1"]
    assert [pair["question"] for pair in done.json["pairs"]] == ["weights"]
    assert done.json["groups"] == []
    assert [line.split(",")[0] for line in done.err.splitlines() if "Warning" in line] == [
        f"Warning: {name}-again has the recipe and the seed ({seed}) of {name}" for name, seed in (("first", 1337), ("bpe-1", 1))
    ]
    assert "train --seeds" in done.err


def test_a_copied_run_is_one_observation_whatever_its_seed_says(four: Path) -> None:
    shutil.copytree("runs/bpe-1", "runs/bpe-3")
    config = Path("runs/bpe-3/config.json")
    config.write_text(config.read_text().replace('"seed": 1', '"seed": 3'))
    record = Run(Path("runs/bpe-3")).record
    files = {**record.files, "config.json": FileRecord(sha256=atomic_io.sha256(config.read_bytes()), bytes=config.stat().st_size)}
    Run(Path("runs/bpe-3")).file("run.json").write_text(record.model_copy(update={"files": files}).to_json())
    runs = [Run(Path("runs", name)) for name in ("bpe-1", "bpe-2", "bpe-3")]
    own, repeats = observations(runs)
    assert [run.name for run in own] == ["bpe-1", "bpe-2"]
    assert [repeat_notice(*pair).split(",")[0] for pair in repeats] == ["bpe-3 has the weights of bpe-1"]


def test_the_terminal_shows_verdicts_as_sentences(cli, four: Path) -> None:
    done = cli("compare", "first", "bpe-1", "--prompt", "to be", "--seed", "3")
    assert done.code == 0
    for part in ("settings that differ", "scores", "verdict", "by kind of character", "most different", "not about recipes", "one prompt"):
        assert part in done.out, part
    assert "is better than" in done.out or "indistinguishable" in done.out


def test_the_same_prompt_and_seed_give_the_same_samples(cli, four: Path) -> None:
    arguments = ["compare", "first", "fit", "--prompt", "to", "--seed", "3", "--json"]
    assert cli(*arguments).json["samples"] == cli(*arguments).json["samples"]


def test_all_runs_are_scored_on_another_text(cli, four: Path) -> None:
    (four / "other.txt").write_text("to suffer the question:\n" * 9, encoding="utf-8")
    document = cli("compare", "first", "bpe-1", "--data", "other.txt", "--json").json
    assert document["n_chars"] == 216
    (four / "snow.txt").write_text("to suffer the ☃:\n" * 9, encoding="utf-8")
    done = cli("compare", "bpe-1", "first", "--data", "snow.txt")
    assert done.code == 2
    assert "run 'first': the char tokenizer does not know '☃'" in done.err


def test_markdown_is_a_table_to_paste(cli, four: Path) -> None:
    lines = cli("compare", "first", "fit", "--md").out.splitlines()
    assert lines[0].startswith("|")
    assert set(lines[1]) <= set("|-: ")
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert any(line.startswith("- ") for line in lines)


@pytest.mark.parametrize("ending", ["html", "svg", "png"])
def test_plots_are_self_contained_files(cli, four: Path, ending: str) -> None:
    done = cli("compare", "first", "bpe-1", "--plot", f"out.{ending}", "--prompt", "be <b>")
    if "does not know" in done.err:
        done = cli("compare", "first", "bpe-1", "--plot", f"out.{ending}", "--prompt", "be ")
    if ending != "html" and "needs the extra" in done.err:
        pytest.skip("matplotlib is not installed")
    assert done.code == 0
    content = (four / f"out.{ending}").read_bytes()
    if ending == "png":
        assert content.startswith(b"\x89PNG")
        return
    text = content.decode()
    assert "nats per char" in text
    assert "first" in text
    if ending == "html":
        assert "http" not in text.replace("http://www.w3.org", "")
        assert "<script" not in text
        assert "prefers-color-scheme: dark" in text
        assert text.count('class="intervals"') == 4  # verdict, scores, kinds of character, positions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first"], "two runs"),
        (["first", "first"], "two sides"),
        (["first", "nobody"], "nobody"),
        (["first", "no*"], "no*"),
        (["first", "f*"], "two sides"),
        (["first", "fit", "--group-by", "config"], "one recipe"),
        (["fi*"], "'fi*' matches 2 seeds of one recipe: compare needs two runs or more"),
        (["*"], "give a name with * for each recipe, or --group-by config"),
        (["first", "fit", "--split", "test"], "--test-frac"),
        (["first", "fit", "--plot", "x.gif"], ".png"),
        (["first", "fit", "--md", "--json"], "cannot be used together"),
        (["first", "fit", "--stride", "99"], "block size"),
        (["first", "shifted"], "--data FILE"),
        (
            ["first", "[b-f][ip][te]*"],
            "'fit' and 'bpe-1' differ in tokenizer, vocab_size): give a name with * for each recipe, or --group-by",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(cli, four: Path, arguments: list[str], message: str) -> None:
    if "shifted" in arguments:
        assert cli("train", "--config", "runs/first/config.json", "--train-frac", "0.8", "--name", "shifted").code == 0
    done = cli("compare", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert message in done.err.splitlines()[-1]


def test_kept_scores_compare_without_torch(four: Path) -> None:
    code = (
        "import sys; from minigpt_cli.cli import run; print(run(['compare', 'first', 'fit', '--json'])); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=four, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("0")
