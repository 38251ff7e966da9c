"""What was read, in three lines before step 0: the text, and where training and validation begin."""

from __future__ import annotations

from minigpt_cli.data.dataset import Dataset
from minigpt_cli.escaping import one_line
from minigpt_cli.tokenization.contract import END_OF_TEXT

_WORDS = 48  # characters of a beginning
_TOKENS = 200  # of a beginning: enough for so many characters
_SAMPLE = 20_000  # tokens in which line ends are looked for


def reading_report(dataset: Dataset) -> list[str]:
    """Three lines: documents, characters, kinds of files, encodings and line ends; then size and first words of training and validation."""
    kinds = dataset.origins.kinds
    parts = [f"{dataset.n_chars:,} characters", f"{dataset.n_documents:,} documents" if dataset.n_documents > 1 else ""]
    if len(kinds) > 1:
        parts.append(", ".join(f"{kind} {n / sum(kinds.values()):.0%}" for kind, n in sorted(kinds.items(), key=lambda pair: -pair[1])))
    for name, n in dataset.origins.encodings.items():
        is_marked = name in ("utf-16", "utf-32")  # at the beginning of the file
        parts.append(f"{n:,} characters read as {name}" + " (--encoding reads them as another)" * (not is_marked))
    parts.append(_line_ends(dataset))
    if skipped := dataset.origins.skipped:
        parts.append(f"left out: {', '.join(f'{n:,} × {kind}' for kind, n in skipped.items())}")
    source = f" from {dataset.origins.val_from}" if dataset.origins.val_from else ""
    return [
        f"text        {one_line(dataset.label)}: {'; '.join(filter(None, parts))}",
        f"training    {dataset.train.n_chars:,} characters: {_beginning(dataset, 'train')}",
        f"validation  {dataset.val.n_chars:,} characters{one_line(source)}: {_beginning(dataset, 'val')}",
    ]


def _beginning(dataset: Dataset, split: str) -> str:
    """The first words of a split."""
    ids = dataset.split(split).tokens[:_TOKENS].tolist()
    words = " ".join(dataset.tokenizer.decode(ids).replace(END_OF_TEXT, " ").split())
    return f"“{one_line(words[:_WORDS]).strip()} …”"


def _line_ends(dataset: Dataset) -> str:
    """How lines end, where it is not as usual; empty otherwise."""
    text = dataset.tokenizer.decode(dataset.train.tokens[:_SAMPLE].tolist())
    windows, old = text.count("\r\n"), text.count("\r") - text.count("\r\n")
    if windows or old:
        return "lines end in \\r\\n, as on Windows" if windows >= old else "lines end in \\r"
    return ""
