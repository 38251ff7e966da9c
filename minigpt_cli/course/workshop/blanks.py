"""The seven blanks of my_gpt.py, their hints, and the learner's file, which is my_gpt.py with these functions emptied. No torch.

A blank is what follows the docstring of its function. So the complete file is the only source: of the blanks, of the last hint, and of
what the checks compare with.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COMPLETE = Path(__file__).with_name("my_gpt.py")


@dataclass(frozen=True)
class Blank:
    """One function that the learner writes."""

    number: int
    title: str
    function: str
    hints: tuple[str, str]  # the third is the lines themselves

    @property
    def lines(self) -> list[str]:
        """The lines of the complete file that fill this blank."""
        first, last = _bodies()[self.function]
        return _source().splitlines()[first - 1 : last]


BLANKS = (
    Blank(
        1, "the mask", "future_mask",
        ("Begin with a square of True, torch.ones(T, T, dtype=torch.bool), and keep True only above the diagonal.",
         "triu(1) keeps what stands at least one place right of the diagonal; triu(0) would keep the diagonal too."),
    ),
    Blank(
        2, "attention", "attention",
        ("q @ k.mT gives all scores at once, (B, H, T, T). Then three steps: divide, hide, softmax. Only then multiply by v.",
         "scores.masked_fill(hidden, -math.inf) hides. softmax(dim=-1) makes each row, a query, sum to 1."),
    ),
    Blank(
        3, "RMSNorm", "rms_norm",
        ("Work from the inside out, as the name does backwards: square, then mean, then root. Divide x by it, multiply by gain.",
         "x.square().mean(dim=-1, keepdim=True) keeps a last dimension of 1, so that x can be divided by its root."),
    ),
    Blank(
        4, "the rotation", "rotate",
        ("x.chunk(2, dim=-1) gives both halves, a and b. Compute the new halves from the old ones, then join them again.",
         "angles.cos() and angles.sin() are (T, D / 2), as wide as a half. torch.cat((…, …), dim=-1) joins."),
    ),
    Blank(
        5, "the loss", "loss",
        ("Leave out the last logits, logits[:, :-1], and the first token, ids[:, 1:]. Now guess and answer stand at the same place.",
         "log_softmax(dim=-1) gives ln p of every token; gather(2, answers[..., None]) takes that of the answer. Minus, mean."),
    ),
    Blank(
        6, "sampling", "probabilities",
        ("Answer temperature 0 first. Then divide, then hide what is not among the top_k with minus infinity, then softmax.",
         "logits.topk(k).values[-1] is the smallest logit that stays; k must not be more than len(logits)."),
    ),
    Blank(
        7, "one merge", "merge",
        ("Walk through the list with an index i. At a pair append both joined and go on by 2, else append one token and go on by 1.",
         "Compare tokens[i : i + 2] with the pair: at the end of the list this part has one token and is not equal."),
    ),
)  # fmt: skip


def blanked() -> str:
    """The learner's file: every blank raises NotImplementedError."""
    lines = _source().splitlines()
    for blank in sorted(BLANKS, key=lambda b: -_bodies()[b.function][0]):  # from below, so that line numbers above stay
        first, last = _bodies()[blank.function]
        lines[first - 1 : last] = [f'    raise NotImplementedError("blank {blank.number}: {blank.title}")']
    return "\n".join(lines) + "\n"


@cache
def _source() -> str:
    return COMPLETE.read_text(encoding="utf-8")


@cache
def _bodies() -> dict[str, tuple[int, int]]:
    """The first and last line after the docstring of each function."""
    found = {}
    for node in ast.parse(_source()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = (node.body[1].lineno, node.end_lineno or 0)
    return found
