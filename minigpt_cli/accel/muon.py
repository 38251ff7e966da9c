"""muon.c: Muon's iteration on a CPU that multiplies pairs of bfloat16 numbers."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from minigpt_cli.accel import kernels, products
from minigpt_cli.accel.kernels import F, I, N, P


@cache
def library() -> ctypes.CDLL | None:
    """The iteration; None if it cannot be built."""
    return kernels.load_beside("muon.c", {"orthogonalise": (P, P, N, N, N, I, F, F, F)}, refusing=("orthogonalise",))


def usable(matrices: Tensor) -> bool:
    """Whether C can iterate on `matrices` (N, rows, columns), and is faster than torch: each thread takes whole matrices."""
    count, rows, columns = matrices.shape
    return (
        count >= torch.get_num_threads()
        and rows % 16 == columns % 16 == 0
        and matrices.dtype == torch.float32
        and kernels.usable(matrices)
        and products.are_faster()
        and library() is not None
    )


def orthogonalise(matrices: Tensor, coefficients: tuple[float, float, float], iterations: int) -> Tensor:
    """Each of `matrices` (N, rows, columns) divided by its norm, then `iterations` times a X + b A X + c A² X, A = X Xᵀ, in bfloat16."""
    matrices = matrices.contiguous()
    result = torch.empty_like(matrices)
    pointers = matrices.data_ptr(), result.data_ptr()
    kernels.check(library().orthogonalise(*pointers, *matrices.shape, iterations, *coefficients), "orthogonalise")  # type: ignore[union-attr]
    return result
