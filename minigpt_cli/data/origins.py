"""Which files the documents of a text come from, and whether those to validate on come from all of them."""

from __future__ import annotations

from pathlib import PurePath

import numpy as np

from minigpt_cli.bounds import line
from minigpt_cli.data.dataset import Origins
from minigpt_cli.data.splitting import Splitter
from minigpt_cli.data.text_reader import Text
from minigpt_cli.runstore.records import FETCHED

_NEARLY_ALL, _LESS = 0.9, 0.75  # of the validation text in one file or folder, and of the whole text in it
_SKIPPED = 100  # kinds of file that are counted by themselves


def origins_of(text: Text, splitter: Splitter) -> Origins:
    """What the reading of a source has found, for the record."""
    skipped = sorted(text.source.skipped.items(), key=lambda entry: -entry[1])[:_SKIPPED]
    return Origins(
        kinds={kind: n for kind, n in text.kinds.most_common() if kind},
        encodings=dict(text.encodings.most_common()),
        skipped={line(what): n for what, n in skipped},
        n_duplicates=text.n_duplicates,
        shortest=text.shortest[0],
        shortest_name=line(text.shortest[1]),
        longest=text.longest[0],
        longest_name=line(text.longest[1]),
        fetched=text.source.fetched[:FETCHED],
        val_from=line(_val_from(text, splitter)),
    )


def _val_from(text: Text, splitter: Splitter) -> str:
    """The one file or folder that nearly all of the validation text is from, though a good part of the whole text is not; else empty."""
    held_out = splitter.held_out()
    files = list(text.files)
    if held_out is None or len(files) < 2:
        return ""
    lengths, file_of = np.array(text.lengths, np.float64), np.array(text.file_of)
    for names in (files, [str(PurePath(file).parent) for file in files]):
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        groups = np.array([numbers[name] for name in names])[file_of]  # (documents,) the number of each one's file, or folder
        of_val, of_all = (np.bincount(groups[chosen], lengths[chosen], len(numbers)) for chosen in (held_out, slice(None)))
        most = int(of_val.argmax())
        if of_val[most] >= _NEARLY_ALL * of_val.sum() and of_all[most] < _LESS * of_all.sum():
            return list(numbers)[most]
    return ""
