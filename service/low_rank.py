"""W + B A to the bit: the same on every machine, with every BLAS and any number of threads.

The result is the exact sum, rounded to float32 and then to the dtype of W. A product of two float32 numbers is exact in
float64, so float64 decides nearly every element. An error bound shows the few that lie so close to the border between
two results that another order of the sum could decide otherwise. Those are computed again, exactly. Numbers below
1e-38 must not be flushed to zero, which no library here does by itself.

d: output features, k: input features, r: rank
"""

import math
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # safetensors' dtype -> numpy's, of the same bits
ROUNDING = 2.0**-52  # twice the unit roundoff of float64: the bound may be loose, but never too small
MOST_UNDECIDED = (
    0.02  # of the elements of a block; a real change, in float32 or on bfloat16 weights, leaves one in 10,000 open
)
FEW = 1000  # elements; so many may be open in any case


class UndecidedSum(ValueError):
    """The factors cancel so far that float64 decides hardly any element: no training leaves such factors."""


def decode(bits: Array, dtype: str) -> Array:
    """The float32 values of stored numbers; numpy knows no bfloat16, so its bits come as integers."""
    if dtype == "BF16":
        return np.asarray((bits.astype("<u4") << 16).view("<f4"))
    return bits.astype("<f4")


def encode(values: Array, dtype: str) -> Array:
    """Numbers rounded to float32, and then to the stored dtype; ties go to the even neighbour."""
    single = values.astype("<f4")
    if dtype == "BF16":
        bits = single.view("<u4")
        return np.asarray(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2"))
    return single.astype(STORED[dtype])


class LowRank:
    """B A, to be added to some rows of W at a time."""

    def __init__(self, left: Array, right: Array) -> None:
        """Take B [d, r] and A [r, k], float32."""
        self._b, self._a = left.astype("<f8"), right.astype("<f8")
        self._sizes = np.linalg.norm(self._b, axis=1)[:, None], np.linalg.norm(self._a, axis=0)

    def add(self, bits: Array, dtype: str, start: int = 0) -> Array:
        """The stored form of rows of W + B A.

        Args:
            bits: Rows of W as they are stored, [rows, k].
            dtype: Their dtype, one of STORED.
            start: The first of these rows in W.

        Returns:
            The stored form of the sum, [rows, k].

        Raises:
            OverflowError: A result is larger than its dtype can hold, or no number.
            UndecidedSum: Too many elements would have to be computed exactly.
        """
        rows = slice(start, start + len(bits))
        weight, b = decode(bits, dtype), self._b[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            total = weight + b @ self._a + 0.0  # -0.0 becomes 0.0
            size = self._sizes[0][rows] * self._sizes[1]  # at least the sum of |B| |A| (Cauchy)
            bound = ROUNDING * (len(self._a) + 2) * (size + np.abs(total))
            low, high = encode(total - bound, dtype), encode(total + bound, dtype)
            if not (np.isfinite(total).all() and np.isfinite(decode(np.stack([low, high]), dtype)).all()):
                raise OverflowError("a changed weight is too large for its dtype, or is no number")
        unsigned = f"<u{low.itemsize}"  # 0.0 and -0.0 are equal, and have other bits
        undecided = np.argwhere(low.view(unsigned) != high.view(unsigned))
        if len(undecided) > max(FEW, MOST_UNDECIDED * low.size):
            raise UndecidedSum("the factors of the change cancel each other")
        for row, column in undecided:
            terms = [float(weight[row, column]), *(b[row] * self._a[:, column]).tolist()]
            low[row, column] = encode(_nearest_single(terms)[None], dtype)[0]
        return low


def _nearest_single(terms: list[float]) -> Any:
    """The float32 number nearest to the exact sum of float64 numbers; of two, the even one."""
    near = np.float32(math.fsum(terms))
    exact = sum(map(Fraction, terms))
    neighbours = [np.nextafter(near, np.float32(end)) for end in (-np.inf, np.inf)]
    return min([near, *neighbours], key=lambda one: (abs(Fraction(float(one)) - exact), int(one.view("<u4")) & 1))
