"""The slider of a report page: the same beginning continued by each step, with a mark on the chart of the losses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from harness import browser
from harness.page_runs import press

from minigpt_cli.cli import run as minigpt
from minigpt_cli.config import RunConfig
from minigpt_cli.display.pages.report import Reported, report_page
from minigpt_cli.display.pages.samples import Written, sampled_steps, slider_data
from minigpt_cli.events import Evaluated, Sampled
from minigpt_cli.runstore.records import FileRecord, RunRecord
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.storage.atomic_io import write_atomic

HOSTILE = "</script><b onclick=x()>\n\u2028“To be”"
SHOWN = "document.querySelector('.written .paper').textContent"


def reported(name: str, steps: list[int], kept: Sequence[int] = ()) -> Reported:
    figures = {"train_loss": 2.0, "lr": 0.001, "tokens_seen": 1, "tokens_per_s": 1.0, "elapsed_s": 1.0, "is_best": True}
    evaluations = [Evaluated(run=name, step=step, val_loss=3 - step / 200, nats_per_char=3 - step / 200, **figures) for step in (50, 100)]
    samples = [Sampled(run=name, step=step, prompt=HOSTILE, text=f" of step {step}") for step in steps]
    record = RunRecord(
        name=name, stop_step=100, kept={f"step-{step:06d}.safetensors": FileRecord(sha256="0" * 64, bytes=9) for step in kept}
    )
    return Reported(record, evaluations, [], "running", "", samples)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def opened(tab: browser.Page, path: Path, page: str) -> None:
    write_atomic(path, page)
    tab.requests.clear(), tab.complaints.clear()
    tab.open(path.as_uri())
    tab.wait(f"location.href === {path.as_uri()!r} && document.readyState === 'complete'")


def state(tab: browser.Page) -> tuple[str, str, int]:
    """The step that is shown, what is written, and the number of the mark on the chart."""
    marks = "[...document.querySelectorAll('.moment')].map((m) => m.classList.contains('chosen'))"
    assert tab.evaluate(f"{marks}.filter(Boolean).length") == 1
    return tab.evaluate("document.getElementById('step_shown').textContent"), tab.evaluate(SHOWN), tab.evaluate(f"{marks}.indexOf(true)")


@browser.needed
def test_dragging_and_arrow_keys_show_the_sample_of_each_step_and_mark_it(tab: browser.Page, tmp_path: Path) -> None:
    opened(tab, tmp_path / "one.html", report_page([reported("bard", [20, 60, 1100], [60])], [], []))
    assert state(tab) == ("1,100", HOSTILE + " of step 1100", 2)
    press(tab, "ArrowLeft", 37)  # nothing has the focus yet
    assert state(tab) == ("60", HOSTILE + " of step 60", 1)
    assert "minigpt generate bard@60" in tab.evaluate("document.querySelector('.hint').textContent")
    tab.evaluate("const s = document.getElementById('step'); s.value = 0; s.dispatchEvent(new Event('input')); s.focus()")
    assert state(tab) == ("20", HOSTILE + " of step 20", 0)
    press(tab, "ArrowLeft", 37)
    assert state(tab)[2] == 0
    press(tab, "ArrowRight", 39)  # the slider's own
    assert state(tab)[0] == "60"
    assert tab.evaluate("document.getElementById('step').getAttribute('aria-valuetext')") == "step 60"
    assert (tab.complaints, [url for url in tab.requests if not url.startswith("file:")]) == ([], [])


@browser.needed
def test_several_runs_share_the_slider(tab: browser.Page, tmp_path: Path) -> None:
    opened(tab, tmp_path / "two.html", report_page([reported("a", [20, 60]), reported("b", [40, 80]), reported("c", [])], [], []))
    papers = "[...document.querySelectorAll('.written .paper')].map((p) => p.textContent)"
    assert tab.evaluate(papers) == [HOSTILE + " of step 60", HOSTILE + " of step 80"]
    tab.evaluate("choose(0)")
    assert tab.evaluate(papers) == [HOSTILE + " of step 20", ""]
    assert tab.evaluate("[...document.querySelectorAll('.hint')].map((h) => h.textContent)") == ["", "has written nothing yet"]
    with tab.phone():
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360


@browser.needed
def test_a_page_of_a_training_loads_itself_again_and_stays_at_the_chosen_step(tab: browser.Page, tmp_path: Path) -> None:
    path, at_the_end = tmp_path / "live.html", "document.readyState === 'complete' && data.steps.length === 3"
    training = report_page([reported("bard", [20, 60])], [], [], reload_s=0.2)
    ended = report_page([reported("bard", [20, 60, 100])], [], [])
    for move, step in (("", "100"), ("choose(0); moved = -Infinity", "20")):  # at the last step it follows the training
        opened(tab, path, training)
        tab.evaluate(move)
        write_atomic(path, ended)
        tab.wait(at_the_end)
        assert state(tab)[:2] == (step, f"{HOSTILE} of step {step}")


def test_a_slider_has_so_many_steps_at_most_and_every_run_its_newest_sample() -> None:
    def written(steps: range) -> Written:
        return Written("run", [Sampled(run="run", step=step, prompt="", text=str(step)) for step in steps], [])

    runs = [written(range(1, 1001)), written(range(500, 1501, 100))]
    steps = sampled_steps(runs)
    assert (len(steps), steps[-1]) == (300, 1500)
    shown = slider_data(runs)["runs"]
    for run in shown:
        newest = [run["samples"][at]["step"] if at >= 0 else 0 for at in run["newest"]]
        assert all(at <= step for at, step in zip(newest, steps, strict=True))
        assert newest == sorted(newest)
    assert shown[1]["newest"][0] == -1
    assert sampled_steps([]) == []


def test_watch_writes_the_page_while_runs_train_and_the_report_at_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunStore("runs").create("bard")
    run.write_config(RunConfig())
    one = reported("bard", [50])
    run.write_record(one.record)
    for event in (*one.evaluations, *one.samples):
        run.append(event)

    def page_data() -> dict[str, object]:
        return dict(json.loads((tmp_path / "live.html").read_text("utf-8").partition('id="data">')[2].partition("</script>")[0]))

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    def later(seconds: float) -> None:
        assert page_data()["reload_s"] == 5.0
        if page_data()["steps"] == [50, 100]:
            run.write_record(run.record.model_copy(update={"status": "finished", "stop_reason": "max_steps"}))
        else:
            run.append(Sampled(run="bard", step=100, prompt="", text="later"))

    with run.writing():  # it is being trained
        monkeypatch.setattr("minigpt_cli.commands.watch.time.sleep", interrupted)
        assert minigpt(["runs", "watch", "bard", "--html", "live.html"]) == 130
        assert page_data()["reload_s"] == 0.0
        monkeypatch.setattr("minigpt_cli.commands.watch.time.sleep", later)
        assert minigpt(["runs", "watch", "bard", "--html", "live.html"]) == 0
    assert page_data()["steps"] == [50, 100]
    assert page_data()["reload_s"] == 0.0
    assert minigpt(["runs", "watch", "bard", "--once", "--html", "live.txt"]) == 2
    assert minigpt(["runs", "watch", "bard", "--once", "--html", "once.html"]) == 0
    assert (tmp_path / "once.html").is_file()
