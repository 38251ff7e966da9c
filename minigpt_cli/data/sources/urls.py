"""Texts at a web address: downloaded once into the cache, and known by the hash of what came."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from minigpt_cli.bounds import line
from minigpt_cli.data.sources.contract import NotText
from minigpt_cli.data.sources.files import File
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.records import Fetched
from minigpt_cli.storage import downloads
from minigpt_cli.storage.downloads import Report

_PAGES = (".html", ".htm", ".xhtml")
_HEAD = 1024  # bytes in which a page shows that it is one


def is_url(source: str) -> bool:
    """Whether a source is an address."""
    return source.lower().startswith(("http://", "https://"))


def downloaded(url: str, report: Report) -> File:
    """The file at an address. Raises UsageError for an address that cannot be, and for a page where a text was meant; MiniGPTError
    where nothing comes."""
    try:
        parts = urlsplit(url)
        name = unquote(PurePosixPath(parts.path).name)
    except ValueError as error:
        raise UsageError(f"{url} is not an address: {error}") from error
    if not parts.hostname:
        raise UsageError(f"{url} is not an address: it names no host")
    path, sha256 = downloads.download_url(url, name, report)
    with path.open("rb") as file:
        start = file.read(_HEAD).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")) and PurePosixPath(name).suffix.lower() not in _PAGES:
        advice = "give the address of the text itself (on GitHub: the button Raw), or save the page as .html to read it as a page"
        raise NotText(url, "a web page", advice)
    return File(url, path, Fetched(address=line(url), sha256=sha256))
