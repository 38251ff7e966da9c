"""A few lines that a run's best weights write, for the end of a training and for reports."""

from __future__ import annotations

from minigpt_cli.display import console
from minigpt_cli.errors import MiniGPTError
from minigpt_cli.runstore import Run

_TOKENS = 200


def sample_of(run: Run) -> str:
    """A sample under the run's own seed; empty, with a warning, where the weights cannot be read."""
    if not run.record.files:
        return ""
    from minigpt_cli.generation.engine import generate
    from minigpt_cli.generation.loading import open_writer
    from minigpt_cli.generation.samples import prompt_ids
    from minigpt_cli.generation.sampling import style

    try:
        writer = open_writer(run)
        ids = prompt_ids(writer.tokenizer, "")
        steps = generate(
            writer.decoder(), ids, sampling=style("balanced"), max_new_tokens=_TOKENS, seed=run.config.seed, token_bytes=writer.token_bytes
        )
        return "".join(step.text for step in steps).strip("\n")
    except MiniGPTError as error:
        console.warn(f"no sample of {run.name}: {error}")
        return ""
