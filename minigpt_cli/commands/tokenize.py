"""minigpt tokenize: make token files from a text, and show the tokens of a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from minigpt_cli.commands.config_flags import with_settings
from minigpt_cli.commands.config_sources import resolve
from minigpt_cli.commands.options import JsonFlag, SourceArguments, option
from minigpt_cli.display import console
from minigpt_cli.display.console import progress

if TYPE_CHECKING:
    from minigpt_cli.config import DataConfig
    from minigpt_cli.data.atomic_folder import Preparing
    from minigpt_cli.data.dataset import Dataset
    from minigpt_cli.data.preview import Preview
    from minigpt_cli.tokenization.contract import Tokenizer


@with_settings(only=("data",), leave_out=("source", "sampling", "document_mask"))
def tokenize(
    sources: SourceArguments = None,
    out: Annotated[Path | None, option("DIR", "Where to write; default: a folder of ./data named by text and settings.")] = None,
    show: Annotated[str | None, option("TEXT", "Also print the pieces of TEXT with their ids.")] = None,
    json: JsonFlag = False,
    *,
    settings: dict[str, Any],
) -> None:
    """\b
    Examples:
      minigpt tokenize                                  one token a character
      minigpt tokenize notes.txt --tokenizer bpe        512 tokens, learned
      minigpt tokenize books/ --tokenizer gpt2 --out t  GPT-2's, written to t/
      minigpt tokenize --tokenizer bpe --show "Once upon"    its tokens

    Cuts a text into tokens and writes train.bin, val.bin (and test.bin), tokenizer.json and dataset.json.
    A text that was prepared with the same settings before is not prepared again.
    """
    resolved = resolve(settings if not sources else {**settings, "source": sources})
    config = resolved.config.data
    from minigpt_cli.data.encoding import check_prepared

    check_prepared(config, resolved.typed)
    dataset = prepared_data(config, out=out, quiet=json)
    if config.tokenizer == "bpe" and dataset.tokenizer.vocab_size < config.vocab_size:
        found = dataset.tokenizer.vocab_size
        console.notice(f"the text has pairs for {found} tokens only, fewer than --vocab-size {config.vocab_size}; see --min-pair-freq")
    pieces = None if show is None else _pieces(dataset.tokenizer, show)
    from minigpt_cli.data.preview import preview

    seen = preview(dataset)
    if json:
        shown = {} if pieces is None else {"pieces": [{"id": i, "text": token.decode("utf-8", "replace")} for i, token in pieces]}
        console.write_json(_summary(dataset) | _counts(dataset, seen) | {"preview": asdict(seen)} | shown)
        return
    from minigpt_cli.display.tokens import print_pieces, print_preview, print_summary

    for notice in dataset.notices:
        console.notice(notice)
    print_summary(dataset.label, _summary(dataset))
    print_preview(seen, dataset.n_documents, dataset.leak)
    if pieces is not None:
        print_pieces(pieces)


def prepared_data(config: DataConfig, *, out: Path | None = None, verify: bool = False, quiet: bool = False) -> Dataset:
    """The token files of a text, with a progress bar while they are made; `quiet` shows none."""
    from minigpt_cli.data.encoding import prepared

    with progress(in_bytes=True, quiet=quiet) as advance:

        def show(step: Preparing) -> None:
            advance(f"{step.phase} the text", step.done_bytes, step.total_bytes)

        return prepared(config, None, show, out=out, verify=verify)


def _summary(dataset: Dataset) -> dict[str, Any]:
    tokens = {"train": 0, "val": 0, "test": 0} | {name: len(split.tokens) for name, split in dataset.splits().items()}
    return {
        "out": str(dataset.dir),
        "tokenizer": dataset.tokenizer.name,
        "vocab_size": dataset.tokenizer.vocab_size,
        "chars": dataset.n_chars,
        "bytes": dataset.n_bytes,
        "tokens": tokens,
        "chars_per_token": dataset.n_chars / sum(tokens.values()),
        "sha256": dataset.sha256,
        "leak": None if dataset.leak is None else dataset.leak.share,
    }


def _counts(dataset: Dataset, seen: Preview) -> dict[str, Any]:
    return {
        "n_documents": dataset.n_documents,
        "documents": dataset.n_documents,
        "duplicates": seen.duplicates,
        "alphabet": seen.alphabet,
        "longest_document": seen.longest,
        "skipped": dataset.origins.skipped,
    }


def _pieces(tokenizer: Tokenizer, text: str) -> list[tuple[int, bytes]]:
    """The id and the bytes of every token of `text`."""
    of_id = tokenizer.token_bytes()
    return [(i, of_id[i]) for i in tokenizer.encode(text).tolist()]
