"""W + B A to the bit: the same on every machine, with every BLAS and any number of threads.

The result is the exact sum, rounded to float32 and then to the dtype of W. A product of two float32 numbers is exact in
float64, so float64 decides nearly every element. An error bound shows the few that lie so close to the border between
two results that another order of the sum could decide otherwise. Those are computed again, in fractions.

d: output features, k: input features, r: rank
"""

from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # safetensors' dtype -> numpy's, of the same bits
ROUNDING = 2.0**-52  # twice the unit roundoff of float64: the bound may be loose, but never too small


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


def add_low_rank(bits: Array, dtype: str, left: Array, right: Array) -> Array:
    """The stored form of W + B A.

    Args:
        bits: W as it is stored, [d, k].
        dtype: Its dtype, one of STORED.
        left: B, float32 [d, r].
        right: A, float32 [r, k].

    Returns:
        The stored form of the sum, [d, k].

    Raises:
        OverflowError: A result is larger than its dtype can hold, or no number.
    """
    weight, b, a = decode(bits, dtype), left.astype("<f8"), right.astype("<f8")
    total = weight + b @ a + 0.0  # -0.0 becomes 0.0, whatever signs the zeros had on the way
    size = np.linalg.norm(b, axis=1)[:, None] * np.linalg.norm(a, axis=0)  # of the sum of |B| |A| at most (Cauchy)
    bound = ROUNDING * (len(a) + 2) * (size + np.abs(total))
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = encode(total - bound, dtype), encode(total + bound, dtype)
        if not np.isfinite(decode(np.stack([low, high]), dtype)).all():
            raise OverflowError("a changed weight is too large for its dtype, or is no number")
    for row, column in np.argwhere(low != high):
        exact = Fraction(float(weight[row, column]))
        exact += sum(Fraction(x) * Fraction(y) for x, y in zip(b[row].tolist(), a[:, column].tolist(), strict=True))
        low[row, column] = encode(_nearest_single(exact)[None], dtype)[0]
    return low


def _nearest_single(exact: Fraction) -> Any:
    """The float32 number nearest to a fraction; of two, the even one."""
    near = np.float32(float(exact))
    neighbours = [np.nextafter(near, np.float32(end)) for end in (-np.inf, np.inf)]
    return min([near, *neighbours], key=lambda one: (abs(Fraction(float(one)) - exact), int(one.view("<u4")) & 1))
