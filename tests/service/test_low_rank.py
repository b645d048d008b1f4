"""W + B A to the bit."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.low_rank import STORED, LowRank, UndecidedSum, decode, encode


def add_low_rank(bits, dtype, left, right):
    """All rows at once."""
    return LowRank(left, right).add(bits, dtype)


TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def numbers(rows: int, columns: int, scale: float, seed: int):
    """Normally distributed float32 numbers."""
    return (np.random.default_rng(seed).normal(size=(rows, columns)) * scale).astype("<f4")


def as_bits(array):
    """An array as unsigned integers: 0.0 and -0.0 are equal as numbers."""
    return array.view(f"<u{array.itemsize}")


def exact(bits, dtype, left, right):
    """The sum in fractions, rounded to float32 by comparing neighbours, then to the dtype by torch."""
    weight, rows = decode(bits, dtype), []
    for i, row in enumerate(left):
        for j, column in enumerate(right.T):
            total = Fraction(float(weight[i, j])) + sum(
                Fraction(float(x)) * Fraction(float(y)) for x, y in zip(row, column, strict=True)
            )
            near = np.float32(float(total))
            around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
            rows.append(min(around, key=lambda one: (abs(Fraction(float(one)) - total), one.view("<u4") & 1)))
    values = torch.tensor(np.array(rows).reshape(weight.shape)).to(TORCH[dtype])
    return values.view(torch.int32 if dtype == "F32" else torch.int16).numpy().view(f"<u{values.element_size()}")


@pytest.mark.parametrize("dtype", STORED)
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 9), power=st.integers(-12, 2))
def test_the_result_is_the_exact_sum_rounded(dtype, seed, rank, power):
    """Element by element as fractions have it, for small and large changes."""
    weight = encode(numbers(5, 7, 0.02, seed), dtype)
    left, right = numbers(5, rank, 2.0**power, seed + 1), numbers(rank, 7, 0.1, seed + 2)
    result = add_low_rank(weight, dtype, left, right)
    assert np.array_equal(as_bits(result), exact(weight, dtype, left, right))


@pytest.mark.parametrize("dtype", STORED)
def test_stored_numbers_are_read_and_written_as_torch_does(dtype):
    """Each way, ties and subnormal numbers included."""
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.linspace(-42, 4, 4096)
    values[:4] = torch.tensor([1.00390625, 1.01171875, -0.0, 0.0])  # halfway between two bfloat16 numbers, twice
    stored = values.to(TORCH[dtype])
    unsigned = f"<u{stored.element_size()}"
    bits = stored.view(torch.int32 if dtype == "F32" else torch.int16).numpy().view(unsigned)
    assert np.array_equal(encode(values.double().numpy(), dtype).view(unsigned), bits)
    assert np.array_equal(decode(bits.view(STORED[dtype]), dtype), stored.float().numpy())


@pytest.mark.parametrize("dtype", STORED)
def test_no_order_of_the_sum_changes_a_bit(dtype, monkeypatch):
    """Ranks in another order, another BLAS, a worse product: what float64 leaves open is decided exactly."""
    weight = encode(numbers(96, 64, 0.02, 0) * (numbers(96, 64, 1, 4) > 0), dtype)  # half of them 0, as if pruned
    left, right = numbers(96, 64, 0.3, 1), numbers(64, 64, 0.1, 2)
    right[32:], left[:, 32:] = right[:32] + numbers(32, 64, 1e-3, 3), -left[:, :32]  # sums that nearly cancel
    expected = as_bits(add_low_rank(weight, dtype, left, right))
    order = np.random.default_rng(5).permutation(64)
    assert np.array_equal(as_bits(add_low_rank(weight, dtype, left[:, order], right[order])), expected)
    products = {
        "torch": lambda a, b: (torch.tensor(a) @ torch.tensor(b)).numpy(),
        "one by one": lambda a, b: sum(np.outer(a[:, i], b[i]) for i in range(a.shape[1])),
        "backwards": lambda a, b: sum(np.outer(a[:, i], b[i]) for i in reversed(range(a.shape[1]))),
    }

    class Product(np.ndarray):
        """An array whose product is computed by `multiply`."""

        multiply = None

        def __matmul__(self, other):
            return Product.multiply(np.asarray(self), np.asarray(other))

    class Left:
        """`left` with that product."""

        def astype(self, dtype):
            return left.astype(dtype).view(Product)

    for multiply in products.values():
        monkeypatch.setattr(Product, "multiply", staticmethod(multiply))
        assert np.array_equal(as_bits(add_low_rank(weight, dtype, Left(), right)), expected)


@pytest.mark.parametrize("dtype", STORED)
def test_the_sign_of_zero_is_the_sums_too(dtype):
    """A tiny sum is lost in float64 in one order of the ranks, and kept in another; both end as the same zero."""
    zero = encode(np.zeros((1, 1)), dtype)
    tiny = 12.4 * 2.0**-52
    left = np.array([[1.0, -1.0, tiny]], "<f4")
    for scale in (1.0, 2.0**-60):
        results = {
            as_bits(
                add_low_rank(zero, dtype, (scale * left[:, order]).astype("<f4"), np.full((3, 1), scale, "<f4"))
            ).item()
            for order in ([0, 1, 2], [0, 2, 1], [2, 0, 1])
        }
        assert len(results) == 1
    unchanged = np.array([[0.0, 0.1]], "<f4"), np.array([[0.1], [0.0]], "<f4")
    assert as_bits(add_low_rank(zero, dtype, *unchanged)) == 0


def test_factors_that_cancel_each_other_are_refused():
    """Whoever made them would have the exact sum of every element computed, for days."""
    left, right = 2.0**50 * numbers(64, 1, 1, 0), numbers(1, 64, 1, 1)
    both = np.hstack([left, -left]), np.vstack([right, right])
    with pytest.raises(UndecidedSum):
        add_low_rank(encode(numbers(64, 64, 0.02, 2), "F32"), "F32", *both)


def test_elements_near_a_border_are_decided_exactly():
    """Float64 would round this sum to the even neighbour; the exact sum lies above the middle."""
    weight, left = np.array([[1.0]], "<f4"), np.array([[2.0**-24, 2.0**-80]], "<f4")
    right = np.array([[1.0], [1.0]], "<f4")
    assert add_low_rank(weight, "F32", left, right)[0, 0] == np.float32(1 + 2**-23)
    assert add_low_rank(weight, "F32", left[:, :1], right[:1])[0, 0] == np.float32(1.0)


@pytest.mark.parametrize("dtype", STORED)
def test_a_weight_that_becomes_too_large_is_an_error(dtype):
    """No infinity is published."""
    weight, factor = encode(np.array([[3e4]], "<f4"), dtype), np.array([[2e19]], "<f4")
    with pytest.raises(OverflowError):
        add_low_rank(weight, dtype, factor, factor)


@pytest.mark.parametrize("dtype", STORED)
def test_a_factor_that_is_no_number_is_an_error(dtype):
    """Whatever bits it has."""
    factor = np.array([[0x7FFFFFFF]], "<u4").view("<f4")
    with pytest.raises(OverflowError):
        add_low_rank(encode(np.ones((1, 1)), dtype), dtype, factor, np.ones((1, 1), "<f4"))
