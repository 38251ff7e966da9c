"""minigpt runs look: what each part of a model is worth, what its heads look at, and how much context it uses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from minigpt_cli.commands.options import CheckpointOption, JsonFlag, OptionalRun, RunsDir, option, switch
from minigpt_cli.display import console
from minigpt_cli.runstore.directory import Run
from minigpt_cli.runstore.store import RunStore

if TYPE_CHECKING:
    from minigpt_cli.commands.look_page import PageOfRun


def look(
    run: OptionalRun = None,
    text: Annotated[str | None, option("TEXT", "Also show what the model expects at each character of this text, layer by layer.")] = None,
    html: Annotated[Path | None, option("FILE.html", "Write a page that holds the model: type, look, and take parts out.")] = None,
    ckpt: CheckpointOption = None,
    fresh: Annotated[bool, switch("--fresh", "Measure again, even if results are kept beside the run.")] = False,
    json: JsonFlag = False,
    runs_dir: RunsDir = None,
) -> None:
    """\b
    Examples:
      minigpt runs look                           the newest run
      minigpt runs look modern-1 --text "To be"   its guesses, layer by layer
      minigpt runs look top --html look.html      a page in which the model runs
      minigpt runs look modern-1@1000             as it was after 1,000 steps
      minigpt runs look top --json                all numbers, for a script

    Shows what is inside a model: what each head, feed-forward and layer is worth, which loss it has with how much context, where it is
    surprised, and what its heads look at. All of it is measured on the first 16,384 characters of the validation text, and kept beside
    the run. The page holds models of up to 4 million parameters and needs no network.
    """
    store = RunStore(runs_dir)
    chosen = store.find(run or "latest")
    if chosen.label != run:
        console.notice(f"looking into {chosen.name}" + (f" ({run})" if run else ", the newest run"))
    chosen.checkpoint = chosen.checkpoint_to_read(ckpt)
    from minigpt_cli.evaluation.inside import look as look_inside

    page, lens = _page_of(chosen, html), None
    if text is not None:  # before the measurement, so that a text that cannot be read is refused at once
        from minigpt_cli.evaluation.logit_lens import read_text

        lens = read_text(chosen, text)
    with console.progress("reading the run", quiet=json) as advance:
        found = look_inside(chosen, fresh=fresh, advance=lambda done, total: advance(f"looking into {chosen.name}", done, total))
    if page is not None:
        page.write(found, text)
        console.notice(f"wrote {html}")
        if not json:
            return
    if json:
        document = {"run": chosen.name, **found.model_dump(mode="json")}
        console.write_json(document | ({"text": asdict(lens)} if lens else {}))
        return
    from minigpt_cli.commands.evaluate import text_of
    from minigpt_cli.display.inside import print_inside, print_lens
    from minigpt_cli.evaluation.eval_target import Target

    print_inside(chosen, text_of(chosen, Target()), found)
    if lens is not None:
        print_lens(lens)


def _page_of(run: Run, html: Path | None) -> PageOfRun | None:
    """The page to write; an error that it raises comes before anything is measured."""
    if html is None:
        return None
    from minigpt_cli.commands.look_page import PageOfRun

    return PageOfRun(run, html)
