"""The native decoder: csrc/decoder.c with weights that c_model.py packs.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_int32, c_int64, c_void_p
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.generation.decoders.c_model import MAX_ROWS, Model, PackedWeights
from minigpt_cli.generation.decoders.contract import Logits
from minigpt_cli.generation.decoders.weights import DecoderWeights
from minigpt_cli.generation.sampling import NotFinite, Sampling
from minigpt_cli.storage import native_build
from minigpt_cli.threads import cores

SOURCE = Path(__file__).with_name("csrc") / "decoder.c"
_FLAGS = ("-pthread",)
MAX_TOP_K = 64  # as in csrc
MANY = 4  # rows from which a step counts as one of several
_NOT_FINITE = 7  # the last Status of csrc/model.h
_PROBLEMS = (  # one for each Status but OK
    "no memory for the decoder: use fewer samples or close other programs",
    "the decoder was given a model whose sizes do not agree: report this as a bug",
    f"the decoder was given no rows or too many: it takes 1 to {MAX_ROWS} at once",
    "the decoder was given a token outside of its vocabulary",
    "the decoder was given a slot that it does not have, or one slot twice",
    "the decoder was given a position outside of its block",
)


class _Sampling(Structure):
    _fields_ = tuple((field.name, c_int64 if type(field.default) is int else c_double) for field in fields(Sampling))


def library() -> ctypes.CDLL | None:
    """The library of decoder.c, built at the first call; None if it cannot be built."""
    return native_build.load(SOURCE, _FLAGS)


def why_not() -> str:
    """Why there is no library; empty if there is one."""
    return native_build.why_not(SOURCE, _FLAGS)


def available() -> bool:
    """Whether this machine has the library or can build it."""
    return library() is not None


def fits(config: Any) -> bool:
    """Whether decoder.c has room for a model of this configuration."""
    return getattr(config, "moe_top_k", 1) <= MAX_TOP_K


class NativeDecoder:
    """A transformer in C. Results do not depend, to the bit, on the other rows of a call or on the number of threads."""

    def __init__(self, weights: DecoderWeights, slots: int = 1, *, bits: int = 32, threads: int = 0, by_bytes: bool = True) -> None:
        lib = library()
        if lib is None:
            raise MiniGPTError(f"no native decoder: {why_not()}; or use --engine torch")
        self._lib = _declared(lib)
        self.weights, self.bits = weights, bits
        self.greedy_slack = {32: 1e-5, 16: 1e-3, 8: 0.0}[bits]  # in 8 bits greedy text is that of the rounded weights
        self._sampling: Sampling | None = None  # whose settings C was given last
        self._settings: Any = None
        self._float32: NativeDecoder | None = None  # for `exact`, made when first needed
        self.name = f"native {'float32' if bits == 32 else f'int{bits}'}"
        self.vocab_size, self.window, self.slots = weights.vocab_size, weights.block_size, slots
        self.endless = weights.rope_theta > 0
        self.packed = PackedWeights(self._lib, weights, bits, by_bytes)
        # Threads help more where a call has several rows. In a prompt one call takes as long as many steps.
        size = weights.matrix_bytes
        self._threads = (_Threads(threads, size), _Threads(threads, size * MANY), _Threads(threads, size * MANY, each=1))
        pool = c_void_p()
        _check(self._lib.mg_new(ctypes.byref(self.packed.model(self.slots)), self._threads[0].most, ctypes.byref(pool)))
        self._pool = pool.value
        self._ids, self._slots, self._positions = (np.zeros(MAX_ROWS, np.int32) for _ in range(3))
        self._logits = np.empty((MAX_ROWS, weights.vocab_size), np.float32)
        self._pointers = [a.ctypes.data for a in (self._ids, self._slots, self._positions)]
        self._out = self._logits.ctypes.data
        self._uniforms, self._chosen, self._margins = np.empty(MAX_ROWS), np.empty(MAX_ROWS, np.int64), np.empty(MAX_ROWS)
        self._choice_pointers = [a.ctypes.data for a in (self._uniforms, self._chosen, self._margins)]

    def __del__(self) -> None:
        if pool := getattr(self, "_pool", None):
            self._lib.mg_free(pool)
            self._pool = None

    def extend(self, slot: int, ids: Sequence[int], start: int) -> Logits:
        n = len(ids)
        for at in range(0, n, MAX_ROWS):
            rows = min(MAX_ROWS, n - at)
            self._ids[:rows] = ids[at : at + rows]
            self._slots[:rows] = slot
            self._positions[:rows] = np.arange(start + at, start + at + rows)
            self._run(rows, rows - (at + rows == n), self._threads[2 if rows >= MANY else 0])  # logits of the last one alone
        last: Logits = self._logits[0]
        return last

    def exact(self, ids: Sequence[int]) -> Logits:
        if self._float32 is None:
            self._float32 = NativeDecoder(self.weights, 1, bits=32, threads=self._threads[0].most if self._threads[0].fixed else 0)
        return self._float32.extend(0, ids, 0)

    def step(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[int]) -> Logits:
        rows = len(ids)
        if rows == 1:
            self._ids[0], self._slots[0], self._positions[0] = ids[0], slots[0], positions[0]
        else:
            self._ids[:rows], self._slots[:rows], self._positions[:rows] = ids, slots, positions
        self._run(rows, 0, self._threads[rows >= MANY])
        return self._logits[:rows]

    def choose(
        self, logits: npt.NDArray[Any], sampling: Sampling, uniforms: npt.NDArray[np.float64], seen: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """As sampling.choose, in one call of C; at most MAX_ROWS rows."""
        rows = len(logits)
        if sampling is not self._sampling:
            self._sampling = sampling
            within = replace(sampling, top_k=min(sampling.top_k, self.vocab_size))  # a larger number would not fit into 64 bits
            self._settings = ctypes.byref(_Sampling(*astuple(within)))
        logits = np.ascontiguousarray(logits, np.float32)
        source = logits.__array_interface__["data"][0]  # a third of the time of .ctypes.data
        marks = None if seen is None or sampling.repetition_penalty == 1 else np.ascontiguousarray(seen).ctypes.data
        self._uniforms[:rows] = uniforms
        if status := self._lib.mg_choose(source, rows, self.vocab_size, self._settings, marks, *self._choice_pointers):
            _check(status)
        return self._chosen[:rows], self._margins[:rows]

    def copy(self, source: int, target: int, length: int) -> None:
        _check(self._lib.mg_copy(self._pool, source, target, length))

    def _run(self, rows: int, first_logits: int, tuning: _Threads) -> None:
        if tuning.fixed:
            self._call(rows, first_logits, tuning.best)
            return
        threads, began = tuning.choose(), time.perf_counter()
        self._call(rows, first_logits, threads)
        tuning.took(threads, (time.perf_counter() - began) / rows)

    def _call(self, rows: int, first_logits: int, threads: int) -> None:
        if status := self._lib.mg_step(self._pool, *self._pointers, rows, first_logits, self._out, threads):
            _check(status)


class _Threads:
    """How many threads a call gets. Several are faster on a quiet machine. On a busy machine they are many times slower, because each
    waits for one that is not running. So both ways are timed now and then; the result is the same to the bit."""

    PROBE_EVERY = 512
    SMALL = 4 << 20  # bytes of float32 weights; with fewer a step ends before a second thread has helped

    def __init__(self, threads: int, weight_bytes: int, each: int = 4) -> None:
        """`each`: calls timed each way."""
        self.most = threads or min(8, cores())
        self.best = self.most if threads else 1
        self.fixed = threads > 0 or self.most == 1 or weight_bytes < self.SMALL
        self._count, self._each = 0, each
        self._seconds = {1: 0.0, self.most: 0.0}

    def choose(self) -> int:
        """Threads for the next call."""
        self._count += 1
        phase = self._count % self.PROBE_EVERY
        if 0 < phase <= self._each:
            return 1
        return self.most if self._each < phase <= 2 * self._each else self.best

    def took(self, threads: int, seconds: float) -> None:
        """Learn from a call."""
        phase = self._count % self.PROBE_EVERY
        if not 0 < phase <= 2 * self._each:
            return
        self._seconds[threads] += seconds
        hopeless = self._seconds[self.most] > 2 * self._seconds[1]
        if phase == 2 * self._each or (phase > self._each and hopeless):
            self.best = min(self._seconds, key=lambda n: self._seconds[n])
            self._count += 2 * self._each - phase
            self._seconds = dict.fromkeys(self._seconds, 0.0)


def _check(status: int) -> None:
    """Raise the error that decoder.c reports, if any."""
    if status == _NOT_FINITE:
        raise NotFinite
    if status:
        raise MiniGPTError(_PROBLEMS[status - 1])


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    lib.mg_new.argtypes = (POINTER(Model), c_int32, POINTER(c_void_p))
    lib.mg_memory.restype, lib.mg_memory.argtypes = c_void_p, (c_int64,)
    lib.mg_release.restype, lib.mg_release.argtypes = None, (c_void_p,)
    lib.mg_free.restype, lib.mg_free.argtypes = None, (c_void_p,)
    lib.mg_step.argtypes = (c_void_p, c_void_p, c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_int32)
    lib.mg_choose.argtypes = (c_void_p, c_int32, c_int32, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
    lib.mg_copy.argtypes = (c_void_p, c_int32, c_int32, c_int32)
    return lib
