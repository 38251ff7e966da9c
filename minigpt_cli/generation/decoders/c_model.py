"""DecoderWeights in the form of csrc/model.h: matrices packed in panels of outputs, in float32, or as integers of 16 or 8 bits (half or a
quarter of the traffic).

Integers: each output's row is scaled to whole numbers, in 16 bits with an error of about 3e-5 of a typical weight, a tenth of float16's,
in 8 bits of about one percent; products and sums stay float32.
Shapes: N outputs and I inputs of a matrix, C channels, F hidden width.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt_cli.errors import MiniGPTError
from minigpt_cli.generation.decoders.weights import Array, DecoderWeights, Layer

MAX_ROWS = 64  # rows in one call
_TILE_INPUTS = 64  # as in csrc/amx.h
_ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "swiglu": 3}
_LEVELS = {8: 127, 16: 32639}  # of 16 bits the largest whole number whose halves, 256 h + l, are both bytes: some processors multiply those
_TILED, _INT8_FOURS = 15, 7  # as in csrc/model.h
_MOST_BYTES = 1 << 16  # inputs, as in csrc/model.h
_FLOATS = POINTER(c_float)


class _Matrix(Structure):
    _fields_ = (
        ("data", c_void_p), ("scale", _FLOATS), ("bias", _FLOATS),
        ("outputs", c_int32), ("inputs", c_int32), ("bits", c_int32), ("padded", c_int32),
    )  # fmt: skip


class _Layer(Structure):
    _fields_ = (
        ("qkv", _Matrix), ("out", _Matrix), ("qk_gain", _FLOATS), ("router", _Matrix), ("router_bias", _FLOATS),
        ("up", POINTER(_Matrix)), ("down", POINTER(_Matrix)),
    )  # fmt: skip


class Model(Structure):
    _fields_ = (
        *((name, c_int32) for name in (
            "V", "C", "H", "K", "D", "F", "E", "L", "W", "slots", "top_k", "norm_top_k", "activation", "qk_norm", "learned", "max_rows",
        )),
        ("eps", c_float), ("rope_theta", c_double), ("embedding", _FLOATS), ("positions", _FLOATS),
        ("layers", POINTER(_Layer)), ("head", _Matrix), ("cache_bits", c_int32),
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
    )  # fmt: skip


class PackedWeights:
    """Weights packed for the library; with `by_bytes` for the products of bytes that the processor has, if it has any."""

    def __init__(self, lib: ctypes.CDLL, weights: DecoderWeights, bits: int, by_bytes: bool) -> None:
        self._weights, self._bits, self._panel = weights, bits, int(lib.mg_panel())
        by_bytes = by_bytes and bits < 32 and max(weights.n_embd, weights.hidden) <= _MOST_BYTES
        self._tiles = by_bytes and bits == 16 and bool(lib.mg_tiles())
        self._dots = int(lib.mg_dots()) if by_bytes and bits == 8 else 0  # 2: weights are unsigned
        self._kept: list[Any] = []  # arrays that the C side points into
        self.arena = _Arena(lib)  # and the matrices

    def model(self, slots: int) -> Model:
        """The model for `slots` sequences; it points into arrays that live as long as this object."""
        p = self._weights
        layers = (_Layer * len(p.layers))(*(self._layer(layer) for layer in p.layers))
        self._kept.append(layers)
        sizes = (p.vocab_size, p.n_embd, p.n_head, p.n_kv_head, p.head_size, p.hidden, p.n_experts, len(p.layers), p.block_size, slots)
        flags = (p.moe_top_k, p.moe_norm_topk, _ACTIVATIONS[p.activation], p.qk_norm, p.rope_theta == 0, MAX_ROWS)
        tables = self._floats(p.embedding), self._floats(p.positions)
        return Model(*sizes, *flags, p.norm_eps, p.rope_theta or 1.0, *tables, layers, self._matrix(p.head, p.head_bias))

    def _layer(self, layer: Layer) -> _Layer:
        gated = self._weights.activation == "swiglu"
        biases = [None] * len(layer.up) if layer.up_bias is None else list(layer.up_bias)
        up = (_Matrix * len(layer.up))(
            *(self._matrix(_gate_beside_up(m, self._panel) if gated else m, b) for m, b in zip(layer.up, biases, strict=True))
        )
        down = (_Matrix * len(layer.down))(*(self._matrix(m, layer.down_bias) for m in layer.down))
        self._kept += [up, down]
        router = _Matrix() if layer.router is None else self._matrix(layer.router, None, bits=32)
        return _Layer(
            self._matrix(layer.qkv, layer.qkv_bias), self._matrix(layer.out, layer.out_bias), self._floats(layer.qk_gain),
            router, self._floats(layer.router_bias), up, down,
        )  # fmt: skip

    def _matrix(self, matrix: Array, bias: Array | None, bits: int | None = None) -> _Matrix:
        bits = bits or self._bits
        panel, (outputs, inputs) = self._panel, matrix.shape
        padded = -(-outputs // panel) * panel
        numbers, scale = quantised(matrix, bits)
        if padded > outputs:
            numbers = np.pad(numbers, ((0, padded - outputs), (0, 0)))
        form = bits
        if bits < 32 and self._tiles:
            form, packed = _TILED, self._packed_tiles(numbers)
        elif bits < 32 and self._dots:
            form, packed = _INT8_FOURS, self._packed_fours(numbers)
        else:
            packed = self.arena.array((padded // panel, inputs, panel), numbers.dtype)
            packed[:] = numbers.reshape(-1, panel, inputs).transpose(0, 2, 1)
        vectors = [None if v is None else self._floats(np.pad(v, (0, padded - outputs))) for v in (scale, bias)]
        return _Matrix(packed.ctypes.data, *vectors, outputs, inputs, form, padded)

    def _packed_tiles(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Numbers (N, I) as csrc/amx.h has them."""
        numbers = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % _TILE_INPUTS)))
        blocks = numbers.reshape(len(numbers) // 16, 16, -1, 16, 4).transpose(0, 2, 3, 1, 4)  # (N / 16, I / 64, 16, 16 outputs, 4)
        packed = self.arena.array((len(blocks), blocks.shape[1], 2, 16, 16, 4), np.int8)
        high = (blocks + np.int16(128)) >> 8
        packed[:, :, 0], packed[:, :, 1] = high, blocks - (high << 8)
        return packed

    def _packed_fours(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Numbers (N, I) as csrc/dots.h has them."""
        numbers = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % 4)))
        blocks = numbers.reshape(len(numbers) // self._panel, self._panel, -1, 4).swapaxes(1, 2)  # (N / panel, I / 4, panel, 4)
        packed = self.arena.array(blocks.shape, np.int8)
        packed[:] = blocks ^ np.int8(-128) if self._dots == 2 else blocks
        return packed

    def _floats(self, array: Array | None) -> Any:
        if array is None:
            return None
        array = np.ascontiguousarray(array, np.float32)
        self._kept.append(array)
        return array.ctypes.data_as(_FLOATS)


class _Arena:
    """Memory for matrices in few large pieces, which sit in large pages."""

    PIECE = 1 << 23  # bytes

    def __init__(self, lib: ctypes.CDLL) -> None:
        self._lib = lib
        self.pieces: list[tuple[int, int]] = []  # address and bytes
        self._address = self._end = 0

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of zeros that lives as long as the arena."""
        n_bytes = -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64
        if self._address + n_bytes > self._end:
            size = max(self.PIECE, n_bytes)
            self._address = self._lib.mg_memory(size) or 0
            if not self._address:
                raise MiniGPTError("no memory for the weights: close other programs")
            self.pieces.append((self._address, size))
            self._end = self._address + size
        buffer = (ctypes.c_char * n_bytes).from_address(self._address)
        self._address += n_bytes
        return np.frombuffer(memoryview(buffer), dtype, int(np.prod(shape))).reshape(shape)

    def __del__(self) -> None:
        for address, _ in getattr(self, "pieces", ()):
            self._lib.mg_release(address)


def quantised(matrix: Array, bits: int) -> tuple[npt.NDArray[Any], Array | None]:
    """Whole numbers and the scale of each row, (N, I) and (N,); at 32 bits the matrix itself and None."""
    if bits == 32:
        return matrix, None
    scale = (np.abs(matrix).max(axis=1) / _LEVELS[bits]).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1  # a row of zeros, or so near to zero that its scale is not exact
    return np.rint(matrix / scale[:, None]).astype(np.int16 if bits == 16 else np.int8), scale


def _gate_beside_up(matrix: Array, panel: int) -> Array:
    """(2F, C), gate first, as panels that alternate between gate and up; F padded to whole panels."""
    F = len(matrix) // 2
    padded = -(-F // panel) * panel
    both = np.zeros((2, padded, matrix.shape[1]), np.float32)
    both[0, :F], both[1, :F] = matrix[:F], matrix[F:]
    return np.ascontiguousarray(both.reshape(2, -1, panel, matrix.shape[1]).swapaxes(0, 1).reshape(2 * padded, -1))
