"""`--where 'arch=moe and (lr<2e-4 or tag=good)'`: a small language for conditions on a run's record and settings. It executes no code.

    either     = both { "or" both }
    both       = single { "and" single }
    single     = "not" single | "(" either ")" | FIELD ("=" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "~") VALUE | FIELD

`~` means that a text contains another; a FIELD alone means that it is set. Numbers compare as numbers, texts as texts.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

from minigpt_cli.errors import UsageError, unknown_name

Field = Callable[[str], Any]  # the value of a field by name
Predicate = Callable[[Field], bool]

_TOKEN = re.compile(r"""\s*(?:(?P<operator><=|>=|!=|==|=|<|>|~|\(|\))|(?P<quoted>"[^"]*"|'[^']*')|(?P<word>[^\s()<>=!~"']+))""")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "~": lambda have, want: str(want) in str(have),
}
_BOOLEANS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
_DEEPEST = 50  # levels of parentheses


def parse_where(text: str, known: Iterable[str]) -> Predicate:
    """The condition `text` on the fields `known`. Raises UsageError that shows the part with the error."""
    return _Parser(text, set(known)).whole()


class _Parser:
    def __init__(self, text: str, known: set[str]) -> None:
        self.text, self.known = text, known
        self.tokens = list(_tokens(text))
        self.depth = 0

    def whole(self) -> Predicate:
        predicate = self.either()
        if self.tokens:
            self.refuse(f"unexpected {self.tokens[0]!r}")
        return predicate

    def either(self) -> Predicate:
        options = [self.both()]
        while self.take("or"):
            options.append(self.both())
        return options[0] if len(options) == 1 else lambda field: any(option(field) for option in options)

    def both(self) -> Predicate:
        parts = [self.single()]
        while self.take("and"):
            parts.append(self.single())
        return parts[0] if len(parts) == 1 else lambda field: all(part(field) for part in parts)

    def single(self) -> Predicate:
        self.depth += 1
        if self.depth > _DEEPEST:
            self.refuse("too deeply nested")
        try:
            if self.take("not"):
                inner = self.single()
                return lambda field: not inner(field)
            if self.take("("):
                inside = self.either()
                if not self.take(")"):
                    self.refuse("a parenthesis is not closed")
                return inside
            return self.comparison()
        finally:
            self.depth -= 1

    def comparison(self) -> Predicate:
        name = self.next("a field")
        if name not in self.known:
            raise UsageError(f"--where: {unknown_name('field', name, self.known)}")
        if not self.tokens or self.tokens[0] not in _COMPARE:
            return lambda field: bool(field(name))
        compare = _COMPARE[self.tokens.pop(0)]
        wanted = self.next("a value").strip("\"'")
        return lambda field: _holds(field(name), compare, wanted)

    def take(self, token: str) -> bool:
        if self.tokens and self.tokens[0].lower() == token:
            self.tokens.pop(0)
            return True
        return False

    def next(self, what: str) -> str:
        if not self.tokens:
            self.refuse(f"{what} is missing at the end")
        return self.tokens.pop(0)

    def refuse(self, why: str) -> None:
        raise UsageError(f"--where {self.text!r}: {why}; write for example 'arch=moe and lr<2e-4'")


def _tokens(text: str) -> Iterable[str]:
    position = 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            raise UsageError(f"--where {text!r}: not understood from {text[position : position + 20]!r} on")
        yield match[0].strip()
        position = match.end()


def _holds(have: Any, compare: Callable[[Any, Any], bool], wanted: str) -> bool:
    """Whether the comparison of a run's value with the text `wanted` is true. A missing value is only unequal to every text."""
    if isinstance(have, list | tuple):  # tags: any of them, or for != all of them
        results = [_holds(item, compare, wanted) for item in have]
        return all(results) if compare is operator.ne else any(results)
    if have is None:
        return compare is operator.ne
    if compare is _COMPARE["~"]:
        return compare(have, wanted)
    if isinstance(have, bool):
        return wanted.lower() in _BOOLEANS and compare(have, _BOOLEANS[wanted.lower()])
    if isinstance(have, int | float):
        try:
            return compare(have, float(wanted))
        except ValueError:
            return compare is operator.ne
    return compare(str(have), wanted)
