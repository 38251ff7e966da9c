"""Datasets of the Hugging Face hub: hf:OWNER/DATASET[/CONFIG][:SPLIT], read from their parquet files.

The hub keeps a parquet copy of most datasets on a branch of its own, as CONFIG/SPLIT/0000.parquet; where it does not, the
parquet files of the dataset itself are taken, whose folders and names are written CONFIG/SPLIT-00000-of-00002.parquet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minigpt_cli.bounds import line
from minigpt_cli.data.sources.files import File
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.records import FETCHED_FILES, Fetched
from minigpt_cli.storage.downloads import Report
from minigpt_cli.storage.hub import explained, library

_CONVERTED = "refs/convert/parquet"
_ADDRESS = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<config>[^/:]+))?(?::(?P<split>[\w.-]+))?")


class _Part(NamedTuple):
    config: str
    split: str
    file: str


def dataset_files(address: str, report: Report) -> Sequence[File]:
    """The parquet files of a dataset, on this machine. Raises UsageError for what does not exist, MiniGPTError without a connection."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(f"{address} is not a dataset: write hf:OWNER/DATASET, hf:OWNER/DATASET/CONFIG or hf:OWNER/DATASET:SPLIT")
    hub, repo = library(), match["repo"]
    api = hub.HfApi()
    with explained(f"download {address}", repo, "dataset"):
        revision, parts = _parts(api, repo, hub.errors)
        chosen = _chosen(parts, address, match["config"], match["split"])
        files = []
        for number, part in enumerate(chosen):
            report(number, len(chosen))
            files.append(Path(api.hf_hub_download(repo, part.file, repo_type="dataset", revision=revision)))
    names = [line(part.file) for part in chosen]
    fetched = Fetched(address=line(address), commit=line(revision), files=names[:FETCHED_FILES], n_files=len(names))
    return [File(f"{address} {part.file}", path, fetched) for part, path in zip(chosen, files, strict=True)]


def _parts(api: Any, repo: str, errors: Any) -> tuple[str, list[_Part]]:
    """The commit to read, and its parquet files."""
    try:
        found = api.dataset_info(repo, revision=_CONVERTED)
    except errors.RevisionNotFoundError:
        found = api.dataset_info(repo)
    names = sorted(sibling.rfilename for sibling in found.siblings or [])
    parts = [_part(name) for name in names if name.endswith(".parquet")]
    if not parts:
        raise UsageError(f"hf:{repo} has no parquet files: download the files that it has, and give those")
    return found.sha, parts


def _part(file: str) -> _Part:
    """Config and split of a file, by its path."""
    *folders, name = file.removesuffix(".parquet").split("/")
    if re.fullmatch(r"\d+", name) and len(folders) >= 2:
        return _Part(folders[-2], folders[-1].removeprefix("partial-"), file)
    split = re.split(r"[-_.]?\d", name, maxsplit=1)[0] or "train"
    config = next((folder for folder in reversed(folders) if folder != "data"), "default")
    return _Part(config, split, file)


def _chosen(parts: list[_Part], address: str, config: str | None, split: str | None) -> list[_Part]:
    """The files of one config and split. Raises UsageError that lists what there is."""
    configs = sorted({part.config for part in parts})
    config = config or ("default" if "default" in configs or len(configs) > 1 else configs[0])
    if config not in configs:
        raise UsageError(f"{address}: name one of its configurations, as in hf:OWNER/DATASET/{configs[0]}: {', '.join(configs)[:200]}")
    splits = sorted({part.split for part in parts if part.config == config})
    split = split or ("train" if "train" in splits or len(splits) > 1 else splits[0])
    if split not in splits:
        raise UsageError(f"{address} has no split {split!r}: name one of {', '.join(splits)[:200]}, as in hf:OWNER/DATASET:{splits[0]}")
    return [part for part in parts if part.config == config and part.split == split]
