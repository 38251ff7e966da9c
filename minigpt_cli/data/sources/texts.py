"""Files of any kind as one source: a file, a folder, a download."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from minigpt_cli.config import DataConfig
from minigpt_cli.data.chat import TOKENS
from minigpt_cli.data.sources.contract import Document, Input, Kind, NotText, SplitBy, noun, with_text
from minigpt_cli.data.sources.detect import Found, kind_of
from minigpt_cli.data.sources.files import File
from minigpt_cli.data.sources.grouping import regrouped
from minigpt_cli.data.sources.jsonl import JSONL, holds_conversations
from minigpt_cli.errors import UsageError
from minigpt_cli.runstore.records import Fetched
from minigpt_cli.storage.downloads import Report


class Files:
    """The documents of files, whose kinds are found when they are opened."""

    def __init__(self, label: str, locate: Callable[[Report], Sequence[Input]], options: DataConfig, *, lenient: bool = False) -> None:
        """`locate` finds the files, or downloads them; with `lenient` what is not text is skipped and counted in a notice."""
        self.label = label
        self.notices: list[str] = []
        self.skipped: dict[str, int] = {}
        self._locate, self._options, self._lenient = locate, options, lenient
        self._located: Sequence[Input] | None = None
        self._chats: bool | None = None
        self._kinds: dict[int, Found | NotText] = {}  # by the id of each file that was opened so far

    def fetch(self, report: Report) -> None:
        """Find the files, or download them."""
        if self._located is None:
            self._located = self._locate(report)

    def inputs(self) -> Sequence[Input]:
        """The files. Raises UsageError where there are none."""
        self.fetch(lambda done, total: None)
        return self._located or ()

    @property
    def n_bytes(self) -> int | None:
        """The size of all files; not known where the text in one has another size."""
        sizes = [source.size if source.path.suffix.lower() in _PLAIN else None for source in self.inputs()]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def on_disk(self) -> Sequence[Path] | None:
        """All files; None where one is a stream."""
        paths = [source.path for source in self.inputs() if isinstance(source, File)]
        return paths if len(paths) == len(self.inputs()) else None

    @property
    def fetched(self) -> list[Fetched]:
        """What came from the network: an address once."""
        return list({file.fetched.address: file.fetched for file in self.inputs() if isinstance(file, File) and file.fetched}.values())

    @property
    def marks(self) -> tuple[str, ...]:
        """The template's marks for conversations, none for texts."""
        return TOKENS if self._are_chats() else ()

    @property
    def split_by(self) -> SplitBy:
        """Conversations are never cut."""
        return "conversation" if self._are_chats() else "character"

    def documents(self) -> Iterator[Document]:
        """The documents, file after file. Raises UsageError where one cannot be read."""
        chats = self._are_chats()
        skipped: dict[str, list[str]] = {}  # what a file is → the files
        n_empty, first_empty = 0, ""
        for source in self.inputs():
            try:
                kind, opened, options = self._opened(source)
                found = kind.read(opened, options)
                first = next(found, None)
            except NotText as error:
                if not self._lenient:
                    raise
                skipped.setdefault(noun(error.what), []).append(source.label)
                continue
            documents = found if first is None else chain([first], found)
            if not chats:
                documents = regrouped(documents, self._options.documents, source.label)
            where = (source.label, noun(kind.what), options.encoding)
            for document in documents:
                if (pieces := with_text(document.pieces)) is None:
                    n_empty, first_empty = n_empty + 1, first_empty or document.name
                else:
                    yield Document(document.name, pieces, None, *where)
        self.notices = [*self._skipped(skipped), *self._empty(n_empty, first_empty)]
        self.skipped = {what: len(files) for what, files in skipped.items()}
        if self._lenient and sum(map(len, skipped.values())) == len(self.inputs()):
            raise UsageError(f"the folder {self.label} has no text files: {self.notices[0]}")

    def _opened(self, source: Input) -> tuple[Kind, Input, DataConfig]:
        """The kind of a file, what to read it from, and how. Raises NotText for what is not text."""
        kind, opened, encoding = self._kind_of(source)
        same = encoding == self._options.encoding
        return kind, opened, self._options if same else self._options.model_copy(update={"encoding": encoding})

    def _kind_of(self, source: Input) -> Found:
        """What `kind_of` says, which opens each file once. Raises NotText."""
        if (found := self._kinds.get(id(source))) is None:
            try:
                found = kind_of(source, self._options.encoding)
            except NotText as error:
                found = error
            self._kinds[id(source)] = found
        if isinstance(found, NotText):
            raise found.with_traceback(None)
        return found

    def _skipped(self, skipped: dict[str, list[str]]) -> list[str]:
        if not skipped:
            return []
        most_first = sorted(skipped.items(), key=lambda entry: -len(entry[1]))
        kinds = ", ".join(f"{len(files)} × {what} ({files[0]}{', …' * (len(files) > 1)})" for what, files in most_first)
        return [f"skipped in {self.label}, for they are not text: {kinds}"]

    def _empty(self, count: int, first: str) -> list[str]:
        if not count:
            return []
        return [f"skipped in {self.label}: {count:,} empty document{'s' * (count > 1)}, the first is {first}"]

    def _are_chats(self) -> bool:
        """Whether the files hold conversations. Raises UsageError if only some do."""
        if self._chats is None:
            inputs = self.inputs()
            chats = [source for source in inputs if self._is_chat(source)]
            other = next((source for source in inputs if source not in chats and self._is_text(source)), None) if chats else None
            if other is not None:
                raise not_together(chats[0].label, other.label)
            self._chats = bool(chats)
        return self._chats

    def _is_chat(self, source: Input) -> bool:
        if not {suffix.lower() for suffix in source.path.suffixes}.intersection(JSONL.suffixes):
            return False
        kind, opened, options = self._opened(source)
        return kind is JSONL and holds_conversations(opened, options)

    def _is_text(self, source: Input) -> bool:
        try:
            self._kind_of(source)
        except NotText:
            return not self._lenient
        return True


_PLAIN = frozenset(["", ".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"])


def not_together(chat: str, text: str) -> UsageError:
    """The error for conversations beside texts."""
    return UsageError(f"{chat} holds conversations and {text} does not, and the two do not go together: leave one out")
