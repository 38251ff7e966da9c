"""What the checks of the blanks share: the verdict on what a learner's function gives.

A mistake that learners make is kept as the formula that makes it: where the learner's numbers equal that formula's, its sentence is said.
The checks run in the process that runner.py starts, and nowhere else, because they import torch and call the learner's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Mistakes = Iterable[tuple[Tensor, str]]  # what a mistake gives, and the sentence that names it


class Wrong(Exception):
    """The function is not right yet; the message says why in one sentence."""


def undisturbed(function: Function) -> Function:
    """`function`, given copies: one that changes the tensors or lists it is given changes nothing for the check."""

    def copy(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else [*value] if isinstance(value, list) else value

    return lambda *given: function(*map(copy, given))


def random(*shape: int, seed: int) -> Tensor:
    """Normal numbers that are the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def is_close(a: Any, b: Tensor) -> bool:
    """Whether `a` is a tensor like `b`, but for rounding; nan equals nan."""
    return isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a.to(b.dtype), b, rtol=1e-3, atol=1e-5, equal_nan=True)


def shaped(value: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """`value`, if it is a tensor of this shape. Raises Wrong."""
    if value is None:
        raise Wrong(NOTHING)
    if not isinstance(value, Tensor):
        raise Wrong(f"{what} must be a tensor of shape {shape}; yours is of type {type(value).__name__}")
    if tuple(value.shape) != shape:
        raise Wrong(f"{what} must have the shape {shape}; yours has {tuple(value.shape)}")
    return value


NOTHING = "the function gives nothing back: is `return` missing?"


def is_right(got: Tensor, want: Tensor, mistakes: Mistakes) -> bool:
    """Whether `got` is what is wanted. Raises Wrong if it is what one of the mistakes gives, or not finite."""
    if is_close(got, want):
        return True
    for wrong, sentence in mistakes:
        if is_close(got, wrong):
            raise Wrong(sentence)
    if not torch.isfinite(got).all():
        raise Wrong("the result has nan or inf in it: something is divided by zero, or a row has nothing that is not hidden")
    return False
