"""Three-bit codes survive their planes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgebench.quantize.packing import pack, padded, stored_bits, unpack

codes = hnp.arrays(
    np.int8,
    st.tuples(st.integers(1, 9), st.integers(1, 70)),
    elements=st.integers(-4, 3),
)


@given(codes)
def test_unpacking_gives_back_the_codes(c):
    low, high = pack(c)
    assert np.array_equal(unpack(low, high, c.shape[1]), c)


@given(codes)
def test_planes_take_three_bits_a_code_of_a_padded_row(c):
    low, high = pack(c)
    n, k = c.shape
    assert low.dtype == high.dtype == np.uint8
    assert low.shape == (n, padded(k) // 4)
    assert high.shape == (n, padded(k) // 8)
    assert 8 * (low.nbytes + high.nbytes) == 3 * n * padded(k)


def test_the_layout_is_the_documented_one():
    low, high = pack(np.array([[-4, -3, -2, -1, 0, 1, 2, 3]], np.int8))
    assert low.tolist() == [[0b11_10_01_00, 0b11_10_01_00]]
    assert high.tolist() == [[0b00001111]]


@pytest.mark.parametrize("bad", [-5, 4])
def test_a_code_outside_three_bits_is_refused(bad):
    with pytest.raises(ValueError, match=r"-4\.\.3"):
        pack(np.array([[bad]], np.int8))


def test_codes_that_are_no_matrix_are_refused():
    with pytest.raises(ValueError, match="matrix"):
        pack(np.zeros(8, np.int8))


def test_a_block_of_32_stores_three_and_a_half_bits_a_weight():
    assert stored_bits(7, 384, 32) == 3.5 * 7 * 384
