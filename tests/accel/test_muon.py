"""Muon's iteration in C agrees with torch's in float32."""

from __future__ import annotations

import pytest
import torch

from minigpt_cli.accel import muon, products
from minigpt_cli.training import optimizers

pytestmark = pytest.mark.skipif(muon.library() is None, reason="no C compiler")


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 128, 48), (2, 112, 112), (3, 48, 208)])
def test_the_iteration_in_c_is_that_of_the_formula(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    expected = optimizers.orthogonalise(matrices)
    for given in (matrices, matrices.mT.contiguous().mT):
        found = muon.orthogonalise(given, optimizers._QUINTIC, optimizers._ITERATIONS)
        assert (found - expected).norm() < 0.03 * expected.norm()


def test_matrices_do_not_depend_on_each_other_and_results_not_on_the_number_of_threads() -> None:
    matrices = torch.randn(5, 64, 32, generator=torch.Generator().manual_seed(0))
    matrices[1] = 0
    threads, found = torch.get_num_threads(), []
    for n in (1, 2, 7):
        torch.set_num_threads(n)
        found.append(muon.orthogonalise(matrices, optimizers._QUINTIC, optimizers._ITERATIONS))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(muon.orthogonalise(matrices[2:3], optimizers._QUINTIC, optimizers._ITERATIONS), found[0][2:3])
    assert not found[0][1].any()


def test_it_is_used_where_c_is_faster_and_can_take_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "are_faster", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert muon.usable(torch.ones(2, 16, 32))
    for other in (torch.ones(1, 16, 32), torch.ones(2, 16, 31), torch.ones(2, 24, 16), torch.ones(2, 16, 32).bfloat16()):
        assert not muon.usable(other)
    monkeypatch.setattr(products, "are_faster", lambda: False)
    assert not muon.usable(torch.ones(2, 16, 32))
