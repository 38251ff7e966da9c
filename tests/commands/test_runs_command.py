"""minigpt runs: JSON as promised, groups, ties, damaged folders, filters, annotations."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.config import ClassicConfig, ComputeConfig, ModernConfig, RunConfig
from minigpt_cli.display import console
from minigpt_cli.events import Evaluated
from minigpt_cli.runstore.records import Best, Corpus, SplitRecord
from minigpt_cli.runstore.store import RunStore

LEADERBOARD = (
    "rank run arch tokenizer nats_per_char ci95 val_loss best_step stop_step n_params n_active_params tokens_seen elapsed_s status "
    "text_sha256 tied_with_best"
)


def best(score: float, width: float = 0.05) -> Best:
    return Best(step=8, nats_per_token=score, nats_per_char=score, ci95=(score - width, score + width), whole_split=True)


def evaluation(step: int) -> Evaluated:
    numbers: dict[str, Any] = {
        "train_loss": 2.0,
        "val_loss": 2.1,
        "nats_per_char": 2.1,
        "lr": 1e-3,
        "tokens_seen": step,
        "tokens_per_s": 9.0,
    }
    return Evaluated(run="strange", step=step, elapsed_s=1.0, is_best=True, **numbers)


@pytest.fixture
def three(make_run: Any) -> None:
    make_run("middle", best=best(1.53), n_params=2000)
    make_run("worst", best=best(2.0), config=RunConfig(model=ClassicConfig()), arch="classic")
    make_run("first", best=best(1.5), n_params=3000)
    make_run("unscored", best=None)


def test_leaderboard_json_is_as_promised(three: None, cli: Any) -> None:
    rows = cli("runs", "leaderboard", "--json").json
    assert all(list(row) == LEADERBOARD.split() for row in rows)
    assert [(row["rank"], row["run"], row["tied_with_best"]) for row in rows] == [
        (1, "first", True),
        (2, "middle", True),
        (3, "worst", False),
    ]


def test_runs_on_other_texts_are_ranked_apart(three: None, make_run: Any, cli: Any) -> None:
    split = SplitRecord(sha256="c" * 64, n_tokens=9, n_chars=9, n_bytes=9)
    make_run("elsewhere", best=best(0.5), corpus=Corpus(label="other.txt", sha256="d" * 64, splits={"val": split}))
    rows = cli("runs", "leaderboard", "--json").json
    assert {(row["run"], row["rank"]) for row in rows} == {("first", 1), ("middle", 2), ("worst", 3), ("elsewhere", 1)}
    for form in ([], ["--md"], ["--latex"], ["--fold-seeds"], ["--fold-seeds", "--md"], ["--top", "1"]):
        out = cli("runs", "leaderboard", *form).out
        assert out.count("characters of validation") == 2, form
        assert "other.txt, 9 characters" in out
    assert sorted(row["run"] for row in cli("runs", "leaderboard", "--top", "1", "--json").json) == ["elsewhere", "first"]


def test_csv_has_one_number_a_cell_and_the_text_as_a_column(three: None, cli: Any) -> None:
    for command in (["leaderboard"], ["list"]):
        rows = list(csv.DictReader(io.StringIO(cli("runs", *command, "--csv").out)))
        assert all(float(row["ci95_low"]) < float(row["ci95_high"]) for row in rows if row["ci95_low"])
    assert {row["text"].split(",")[0] for row in csv.DictReader(io.StringIO(cli("runs", "leaderboard", "--csv").out))} == {"text.txt"}


def test_a_latex_table_escapes_names(make_run: Any, cli: Any) -> None:
    make_run("lr_1", best=best(1.5))
    out = cli("runs", "leaderboard", "--latex").out
    assert r"lr\_1" in out
    assert out.count(r"\\") == 2
    assert out.rstrip().endswith(r"\end{tabular}")


def test_a_long_name_is_shortened_before_a_number_is_dropped(make_run: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run("a-very-long-name-of-a-run-with-settings,lr=1e-3", best=best(1.5))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    head, row = (line for line in cli("runs", "leaderboard").out.splitlines() if "nats/char" in line or "1.5000" in line)
    assert "params" in head
    assert "…" in row
    assert "lr=1e-3" in row


def test_shortened_names_can_be_told_apart(make_run: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for rate in ("1e-2", "1e-3", "1e-4"):
        make_run(f"sweep-of-rates~lr={rate},seed=1337", best=best(1.5))
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    rows = [line.split()[1] for line in cli("runs", "leaderboard").out.splitlines() if "1.5000" in line]
    assert len(set(rows)) == 3


def test_table_shows_essential_columns_and_marks_ties(three: None, cli: Any) -> None:
    done = cli("runs", "leaderboard")
    lines = done.out.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip())[:4] == ["#", "run", "nats/char", "95 %"]
    assert lines[1].split()[:3] == ["1", "first", "1.5000"]
    assert "≈" in lines[2]
    assert "≈" not in lines[3]
    assert all(line == line.rstrip() for line in lines)


def test_eighty_columns_lose_no_essential_column(make_run: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run("a-run-with-a-fairly-long-name-for-it", best=best(1.5), n_params=123_456_789, stop_step=100_000, tokens_seen=10**9)
    monkeypatch.setenv("COLUMNS", "80")
    for command, expected in [("leaderboard", ["1.5000", "modern", "1"]), ("list", ["finished", "modern", "1.5000"])]:
        out = cli("runs", command).out
        assert max(map(len, out.splitlines())) <= 80
        assert all(word in out.split() for word in expected)
        assert "a-run-with-a-fairly-long-name" in out


def test_csv_markdown_and_json_hold_the_same_runs(three: None, cli: Any) -> None:
    for command in ("list", "leaderboard"):
        names = [row["run"] for row in cli("runs", command, "--json").json]
        rows = list(csv.DictReader(io.StringIO(cli("runs", command, "--csv").out)))
        assert [row["run"] for row in rows] == names
        table = cli("runs", command, "--md").out.splitlines()
        assert set(table[1]) <= set("|-: ")
        assert len({line.count("|") for line in table}) == 1
        assert len(table) == len(names) + 2


def test_damaged_and_foreign_folders_are_listed_and_break_nothing(three: None, cli: Any, home: Path) -> None:
    (home / "runs" / "foreign").mkdir()
    (home / "runs" / "foreign" / "notes.txt").write_text("mine", encoding="utf-8")
    (home / "runs" / "broken").mkdir()
    (home / "runs" / "broken" / "run.json").write_bytes(b'{"name": "\x1b[2J')
    (home / "runs" / "file").write_text("no run", encoding="utf-8")
    rows = {row["run"]: row for row in cli("runs", "list", "--json").json}
    assert rows["foreign"]["status"] == rows["broken"]["status"] == "damaged"
    assert rows["first"]["status"] == "finished"
    done = cli("runs", "list")
    assert "damaged" in done.out
    assert "\x1b" not in done.out + done.err
    assert [row["run"] for row in cli("runs", "leaderboard", "--json").json] == ["first", "middle", "worst"]
    assert cli("runs", "rm", "broken", "foreign", "--yes").code == 0
    assert not (home / "runs" / "broken").exists()


def test_names_and_notes_cannot_reach_the_terminal(three: None, cli: Any) -> None:
    cli("runs", "note", "first", "bad \x1b]0;title\x07 note")
    for arguments in (["runs", "list"], ["runs", "show", "first"], ["runs", "note", "first"]):
        done = cli(*arguments)
        assert "\x1b" not in done.out + done.err
        assert "\x07" not in done.out + done.err
    assert cli("runs", "show", "first", "--json").json["note"] == "bad \x1b]0;title\x07 note"


def test_where_sort_top_and_tag_choose(three: None, cli: Any) -> None:
    cli("runs", "tag", "middle", "keep", "good")
    cli("runs", "tag", "first", "keep")
    cli("runs", "tag", "middle", "good", "--remove")

    def names(*arguments: str) -> list[str]:
        return [row["run"] for row in cli("runs", *arguments, "--json").json]

    assert names("list", "--tag", "keep", "--sort", "run") == ["first", "middle"]
    assert names("list", "--where", "arch=classic") == ["worst"]
    assert names("list", "--where", "activation=gelu") == ["worst"]
    assert names("list", "--where", "nats_per_char<1.6 and n_layer=4") == ["middle", "first"]  # as they were saved
    assert names("list", "--sort", "-n_params", "--top", "2") == ["first", "middle"]
    assert names("leaderboard", "--where", "not run=first") == ["middle", "worst"]
    assert names("leaderboard", "--top", "1") == ["first"]
    assert names("leaderboard", "--budget", "params=2500") == ["middle", "worst"]
    assert names("leaderboard", "--budget", "params") == ["first", "middle", "worst"]


def test_equal_budget_ranks_the_scores_within_the_budget(trained: Path, cli: Any) -> None:
    rows = cli("runs", "leaderboard", "--budget", "tokens=64", "--json").json
    assert [(row["run"], row["best_step"], row["tokens_seen"]) for row in rows] == [("first", 2, 64)]
    assert cli("runs", "leaderboard", "--budget", "tokens=1", "--json").json == []


def test_seeds_of_one_recipe_fold_into_a_row(make_run: Any, cli: Any) -> None:
    for seed, score in enumerate([1.5, 1.6, 1.7]):
        make_run(f"seed-{seed}", config=RunConfig(seed=seed), best=best(score))
    make_run("other", config=RunConfig(model=ClassicConfig()), best=best(1.55))
    rows = cli("runs", "leaderboard", "--fold-seeds", "--json").json
    assert [(row["rank"], row["n"]) for row in rows] == [(1, 1), (2, 3)]
    assert rows[1]["nats_per_char"] == pytest.approx(1.6)
    assert rows[1]["standard_error"] == pytest.approx(0.1 / 3**0.5)
    assert "±0.0577" in cli("runs", "leaderboard", "--fold-seeds").out


def test_what_is_measured_is_not_part_of_a_recipe_and_one_seed_counts_once(make_run: Any, cli: Any) -> None:
    for name, compute in (("seed-1", {"attention": "plain"}), ("seed-2", {"attention": "sdpa", "threads": 2}), ("again", {"threads": 3})):
        seed = 1 if name == "again" else int(name[-1])
        make_run(name, config=RunConfig(seed=seed, compute=ComputeConfig.model_validate(compute)), best=best(1.5 + seed / 10))
    done = cli("runs", "leaderboard", "--fold-seeds", "--json")
    assert [(row["n"], row["runs"]) for row in done.json] == [(2, ["again", "seed-2"])]
    assert "seed-1 has the recipe and the seed (1) of again" in done.err


def test_budget_and_sort_go_together_with_each_other_and_with_folded_seeds(make_run: Any, cli: Any) -> None:
    for name, early, late, arch in (("a", 2.0, 1.9, ModernConfig()), ("b", 2.5, 1.5, ClassicConfig())):
        run = make_run(name, config=RunConfig(model=arch), best=best(late), tokens_seen=20)
        for step, loss in ((10, early), (20, late)):
            run.append(evaluation(step).model_copy(update={"val_loss": loss, "nats_per_char": loss}))

    def rows(*arguments: str) -> list[dict[str, Any]]:
        return cli("runs", "leaderboard", "--json", *arguments).json

    assert [row["run"] for row in rows()] == ["b", "a"]
    assert [(row["run"], row["nats_per_char"]) for row in rows("--budget", "tokens=10", "--sort", "nats_per_char")] == [
        ("a", 2.0),
        ("b", 2.5),
    ]
    assert [row["run"] for row in rows("--budget", "tokens=10", "--sort", "-val_loss")] == ["b", "a"]
    assert [(row["runs"], row["nats_per_char"]) for row in rows("--fold-seeds", "--budget", "tokens=10")] == [(["a"], 2.0), (["b"], 2.5)]
    assert [row["runs"] for row in rows("--fold-seeds", "--sort", "-nats_per_char")] == [["a"], ["b"]]
    assert "did you mean 'rank'" in cli("runs", "leaderboard", "--fold-seeds", "--sort", "ranc").err


def test_show_names_everything_once(trained: Path, cli: Any) -> None:
    out = cli("runs", "show").out
    for word in ("first", "finished", "nats per character", "text.txt", "modern", "n_layer", "command"):
        assert word in out
    document = cli("runs", "show", "first", "--json").json
    assert document["config"]["model"]["n_layer"] == 1
    assert document["evaluations"] == 2


def test_latest_and_top_and_prefix_name_runs(three: None, cli: Any) -> None:
    def shown(name: str) -> str:
        return str(cli("runs", "show", name, "--json").json["run"])

    assert (shown("top"), shown("mid"), shown("latest")) == ("first", "middle", "unscored")
    done = cli("runs", "show")
    assert "unscored" in done.err


def test_rename_moves_and_refuses_a_name_that_exists(three: None, cli: Any) -> None:
    assert cli("runs", "rename", "first", "best-one").code == 0
    assert RunStore("runs").find("best-one").record.name == "best-one"
    assert cli("runs", "rename", "middle", "worst").code == 2
    assert cli("runs", "rename", "middle", "../out").code == 2


def test_removing_asks_and_off_a_terminal_needs_yes(three: None, cli: Any, home: Path) -> None:
    done = cli("runs", "rm", "first")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert (home / "runs" / "first").exists()
    assert cli("runs", "rm", "firs", "--yes").code == 2  # never by prefix
    assert cli("runs", "rm", "first", "--yes").code == 0
    assert not (home / "runs" / "first").exists()


def test_verify_finds_a_flipped_bit(trained: Path, cli: Any) -> None:
    assert cli("runs", "verify", "first", "--json").json["ok"] is True
    path = Path("runs/first/best.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = cli("runs", "verify", "first")
    assert done.code == 1
    assert "✗" in done.out


def test_diff_shows_only_what_differs(three: None, cli: Any) -> None:
    differences = cli("runs", "diff", "first", "worst", "--json").json["differences"]
    assert differences["arch"] == ["modern", "classic"]
    assert "lr" not in differences
    assert cli("runs", "diff", "first", "first").out.strip() == "no difference"
    assert cli("runs", "diff", "first").code == 2


def test_watch_shows_a_finished_run_and_ends(trained: Path, cli: Any) -> None:
    done = cli("runs", "watch", "first")
    assert (done.code, done.out.count("step ")) == (0, 2)
    events = cli("runs", "watch", "first", "--json").events
    assert [event["event"] for event in events] == ["evaluated", "evaluated", "stopped"]


def test_plot_draws_in_the_terminal_and_to_files(trained: Path, cli: Any) -> None:
    out = cli("runs", "plot", "first").out
    assert "loss (nats per character) against steps" in out
    assert "└" in out
    pytest.importorskip("matplotlib")
    for name in ("chart.png", "chart.svg", "chart.pdf"):
        assert cli("runs", "plot", "first", "--out", name).code == 0
    assert Path("chart.png").read_bytes().startswith(b"\x89PNG")
    svg = Path("chart.svg").read_text(encoding="utf-8")
    assert all(word in svg for word in ("steps", "nats per character", "validation", "best"))
    assert Path("chart.pdf").read_bytes().startswith(b"%PDF")
    assert cli("runs", "plot", "first", "--out", "chart.gif").code == 2
    assert cli("runs", "plot", "first", "--out", "nowhere/chart.png").code == 2
    assert [path.name for path in trained.glob(".chart*")] == []
    shutil.copytree("runs/first", "runs/again")
    assert cli("runs", "plot", "first", "again", "--fold-seeds", "--out", "mean.svg").code == 0
    for other in (["--json"], ["--html", "mean.html"]):
        assert "leave it out" in cli("runs", "plot", "first", "--fold-seeds", *other).err
    assert "(mean of 2)<" in Path("mean.svg").read_text(encoding="utf-8")
    assert json.loads(cli("runs", "plot", "first", "--json").out)[0]["run"] == "first"


def test_report_is_one_page_that_needs_nothing_else(trained: Path, cli: Any) -> None:
    done = cli("runs", "plot", "first", "--html", "report.html")
    assert done.code == 0, done.err
    page = Path("report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|src=|href=|@import|url\(", page)
    for word in (
        "Loss",
        "Learning rate",
        "Speed",
        "Leaderboard",
        "Settings of first",
        "first writes",
        "★",
        "prefers-color-scheme: dark",
        "</html>",
    ):
        assert word in page, word
    order = ['class="score"', "first writes", ">Loss<", "Settings of first", ">Learning rate<", ">Leaderboard<"]
    assert sorted(order, key=page.index) == order
    assert cli("runs", "plot", "first", "--html", "nowhere/report.html").code == 2


def test_a_report_has_the_leaderboard_of_its_own_text_alone(trained: Path, make_run: Any, cli: Any) -> None:
    make_run("elsewhere")
    assert cli("runs", "plot", "first", "--html", "report.html").code == 0
    board = (trained / "report.html").read_text("utf-8").partition("<h2>Leaderboard: text.txt, ")[2]
    assert ">first<" in board
    assert ">elsewhere<" not in board


def test_report_escapes_text_from_other_people(make_run: Any, cli: Any) -> None:
    run = make_run("strange", corpus=Corpus(label="<script>alert(1)</script>\x1b[2J", sha256="a" * 64))
    run.append(evaluation(2))
    assert cli("runs", "plot", "strange", "--html", "report.html").code == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page


def test_commands_on_runs_take_patterns(make_run: Any, cli: Any) -> None:
    names, pattern = ["lr-1", "lr-2"], "lr-*"
    for name in (*names, "other"):
        make_run(name)
    assert sorted(row["run"] for row in cli("runs", "plot", pattern, "--json").json) == names
    assert sorted(row["run"] for row in cli("runs", "show", pattern, "--json").json) == names
    assert sorted(row["run"] for row in cli("runs", "verify", pattern, "--json").json) == names
    assert cli("runs", "tag", pattern, "all").code == 0
    assert {run.name for run in RunStore("runs").runs() if run.annotations.tags == ["all"]} == {*names}
    assert cli("runs", "rm", "no-such-*", "--yes").code == 2
    assert cli("runs", "note", pattern, "both").code == 0
    assert cli("runs", "note", pattern).out == "lr-1: both\nlr-2: both\n"
    for command in (["runs", "rename", pattern, "lr"], ["runs", "export", pattern, "--out", "there"], ["eval", pattern]):
        refused = cli(*command)
        assert refused.code == 2
        assert refused.err == "Error: 'lr-*' matches 2 runs, and this takes one run: lr-1, lr-2\n"
    assert cli("runs", "rename", "*-2", "lr-3").err == "lr-2 is now lr-3\n"
    assert cli("runs", "rm", pattern, "--yes").code == 0
    assert RunStore("runs").names() == ["other"]
