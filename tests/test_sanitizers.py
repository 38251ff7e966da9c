"""A short form of tests/benchmarks/sanitizers.py: the C sources under sanitizers, over a few odd shapes and against formulas in NumPy."""

from __future__ import annotations

import pytest
from benchmarks import sanitizers

# Models or calls of each: what a few seconds of processor time allow.
CASES = {
    "address/decoder/tiles": 6,
    "thread/decoder/native": 4,
    "address/kernels/native": 10,
    "thread/kernels/native": 5,
    "address/experts/native": 6,
    "address/attention/tiles": 3,
}


@pytest.mark.parametrize("name", CASES)
def test_c_sources_are_right_and_touch_nothing_but_their_own(name: str) -> None:
    try:
        sanitizers.compiler(*name.split("/")[::2])
    except sanitizers.Unavailable:
        name = name.replace("decoder/tiles", "decoder/native")  # the rest of it can be looked at everywhere
    try:
        done = sanitizers.run(name, CASES.get(name, 6), seed=1)
    except sanitizers.Unavailable as reason:
        pytest.skip(str(reason))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "decoder:" in done.stdout or "cases" in done.stdout
