"""minigpt runs export --format html: a page that writes. Raises UsageError for what a page cannot compute, before writing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from minigpt_cli.checkpoints import Loaded
from minigpt_cli.commands.options import check_page
from minigpt_cli.data.chat import learned_chats, prompt_for, token_ids
from minigpt_cli.data.opening import openings
from minigpt_cli.display import console
from minigpt_cli.display.format import size
from minigpt_cli.display.pages.writer import Writer, writer_page
from minigpt_cli.errors import UsageError
from minigpt_cli.evaluation.evaluate_run import dataset_of
from minigpt_cli.evaluation.scoring import Reader, score_split
from minigpt_cli.generation.open_run import text_bounds
from minigpt_cli.generation.samples import prompt_ids
from minigpt_cli.interchange import javascript
from minigpt_cli.interchange.huggingface import Exported
from minigpt_cli.storage.atomic_io import check_parent, write_atomic

_EXAMPLES = 4  # prompts that the page offers
_HERE = "\0"  # stands for the prompt in the template of conversations


def export(loaded: Loaded, out: Path, dtype: str = "auto") -> Exported:
    """Write the page `out`. Raises UsageError if its folder is missing or the run cannot be a page."""
    check_page(out, "--out")
    check_parent(out)
    weights = ("f16" if javascript.n_params(loaded) <= javascript.F16_PARAMS else "int8") if dtype == "auto" else dtype
    model = javascript.packed(loaded, weights)
    examples = [opening.text for opening in openings(loaded.record, loaded.tokenizer, _EXAMPLES) if opening.text]
    page = writer_page(Writer(loaded.record, loaded.step, model, _reading(loaded), examples, _rounding(loaded, weights)))
    write_atomic(out, page)
    return Exported(out, [out.name], f"a page that writes ({size(len(page.encode()))}, weights {weights})")


def _reading(loaded: Loaded) -> dict[str, Any]:
    """Ids before every text, ids of an empty prompt, the text before and after a prompt, and the names of tokens that end a text."""
    chat = learned_chats(loaded.record) and token_ids(loaded.tokenizer) is not None
    before, after = prompt_for([("user", _HERE)]).split(_HERE) if chat else ("", "")
    reading = {"start": (), "ends": (), "before": before, "after": after, "empty": prompt_ids(loaded.tokenizer, "")}
    return reading | text_bounds(loaded.record, loaded.tokenizer)


def _rounding(loaded: Loaded, weights: str) -> str:
    """How the weights were rounded; for int8 also what it costs on the validation text, measured with the rounded weights."""
    if weights == "f16":
        return "Its weights are rounded to 16 bits in this page."
    rounded = "Its weights are rounded to 8 bits in this page"
    try:
        dataset = dataset_of(loaded)
    except UsageError as error:
        console.notice(f"what the 8 bits cost is not measured: {error}")
        return f"{rounded}; what that costs was not measured."
    scores = []
    with console.progress("measuring what 8 bits cost") as advance:
        for said, model in (("scoring float32", loaded.model), ("scoring int8", javascript.rounded(loaded, weights))):
            reader = Reader(model, loaded.tokenizer, loaded.config.model.block_size, advance=partial(advance, said))
            scores.append(score_split(reader, dataset, "val").nats_per_char)
    cost = scores[1] - scores[0]
    console.notice(f"8 bits cost {cost:+.5f} nats per character on the validation text")
    return f"{rounded}, which costs {cost:+.5f} nats per character on its validation text, measured with these weights."
