"""Weights as whole multiples of a scale: the same bits on every machine.

They are packed as "pack-quantized" of compressed-tensors is. A scale is the largest value of its group, divided by the
largest whole number, and rounded to the dtype of the weights. Every step is one operation of IEEE 754 on single
numbers, so nothing depends on an order, a library or a number of threads.

k: input features
"""

import math
from dataclasses import dataclass

import numpy as np

from service.low_rank import STORED, Array, decode, encode
from service.tensor_file import Stored


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are rounded.

    Attributes:
        bits: Of a whole number.
        group: How many numbers of a row share a scale; None: all of them.
    """

    bits: int
    group: int | None

    @property
    def most(self) -> int:
        """The largest whole number."""
        return (1 << self.bits - 1) - 1

    def fits(self, stored: Stored) -> bool:
        """Whether a tensor can be rounded so: a matrix of numbers whose rows are whole groups."""
        matrix = len(stored.shape) == 2 and 0 not in stored.shape and stored.dtype in STORED
        return matrix and stored.shape[1] % (self.group or 1) == 0

    def groups(self, width: int) -> int:
        """The scales of a row."""
        return width // (self.group or width)

    def words(self, width: int) -> int:
        """The 32-bit words of a row."""
        return math.ceil(width * self.bits / 32)

    def packed(self, bits: Array, dtype: str) -> tuple[Array, Array]:
        """Rows of a weight as packed whole numbers and their scales.

        Args:
            bits: The rows as they are stored, [rows, k].
            dtype: Their dtype, one of STORED.

        Returns:
            The words, int32 [rows, words], and the scales as they are stored, [rows, groups].

        Raises:
            ValueError: A weight is no number.
        """
        rows, width = bits.shape
        groups = decode(bits, dtype).reshape(rows, self.groups(width), -1)
        if not np.isfinite(groups).all():
            raise ValueError("a weight is no number")
        stored = encode(np.abs(groups).max(-1) / np.float32(self.most), dtype)
        scales = decode(stored, dtype)[..., None]
        whole = np.rint(groups / np.where(scales == 0, np.float32(1), scales))
        shifted = (np.clip(whole, -self.most - 1, self.most) + (self.most + 1)).astype("<u4").reshape(rows, width)
        each = 32 // self.bits
        padded = np.zeros((rows, self.words(width) * each), "<u4")
        padded[:, :width] = shifted
        places = np.arange(each, dtype="<u4") * np.uint32(self.bits)
        words = np.bitwise_or.reduce(padded.reshape(rows, -1, each) << places, axis=-1)
        return words.astype("<u4").view("<i4"), stored

    def unpacked(self, words: Array, scales: Array, dtype: str, width: int) -> Array:
        """The rows that packed whole numbers and their scales stand for, [rows, k], as they are stored."""
        each, rows = 32 // self.bits, len(words)
        places = np.arange(each, dtype="<u4") * np.uint32(self.bits)
        shifted = (words.view("<u4")[..., None] >> places) & np.uint32((1 << self.bits) - 1)
        whole = shifted.reshape(rows, -1)[:, :width].astype("<f4") - np.float32(self.most + 1)
        values = whole.reshape(rows, self.groups(width), -1) * decode(scales, dtype)[..., None]
        return encode(values.reshape(rows, width), dtype)


SCHEMES = {"int8": Scheme(8, None), "int4": Scheme(4, 32)}
