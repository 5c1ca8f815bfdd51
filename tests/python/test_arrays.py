# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Which arrays are taken, and that none is copied."""
import array

import numpy as np
import pytest

import coldkv
import toy
from coldkv._arrays import address, integers


class Exported:
    """Has DLPack and nothing else."""

    def __init__(self, wrapped):
        self.wrapped = wrapped

    def __dlpack__(self, **options):
        return self.wrapped.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.wrapped.__dlpack_device__()


def test_the_address_is_that_of_the_array_itself():
    plain = np.zeros((2, 3), np.float32)
    wanted = plain.ctypes.data
    locked = plain.view()
    locked.flags.writeable = False
    for same in (plain, locked, memoryview(plain), memoryview(locked), Exported(plain)):
        assert address(same, "x", np.float32, (2, 3)) == wanted
    numbers = array.array("f", [1, 2, 3])
    assert address(numbers, "x", np.float32, (3,)) == numbers.buffer_info()[0]


@pytest.mark.parametrize("wrong, error, words", [
    (np.zeros((2, 3)), TypeError, "float64"),
    (np.zeros((3, 2), np.float32), ValueError, "shape"),
    (np.zeros((3, 2), np.float32).T, ValueError, "contiguous"),
    (np.zeros((2, 3), np.dtype(">f4")), TypeError, ">f4"),
    ([[1.0] * 3] * 2, TypeError, "list"),
    (None, TypeError, "NoneType"),
])
def test_what_would_need_a_copy_is_refused(wrong, error, words):
    with pytest.raises(error, match=words):
        address(wrong, "x", np.float32, (2, 3))


def test_results_are_written_where_they_are_wanted(client):
    with toy.model(client) as model, coldkv.Conversation(model, "out") as conversation:
        with conversation.block(toy.ids(0, 8)):
            for layer in range(toy.LAYERS):
                out = np.full((8, toy.HEADS, toy.DIM), np.nan, np.float32)
                assert conversation.attend(layer, *toy.vectors(layer, 0, 8), out) is out
                np.testing.assert_allclose(out, toy.attention(layer, 0, 8), atol=2e-5)
        conversation.begin(toy.ids(8, 1))
        locked = np.zeros((1, toy.HEADS, toy.DIM), np.float32)
        locked.flags.writeable = False
        with pytest.raises(ValueError, match="written"):
            conversation.attend(0, *toy.vectors(0, 8, 1), locked)
        with pytest.raises(ValueError, match="shape"):
            conversation.attend(0, *toy.vectors(0, 8, 2))


def test_ids_are_checked_before_they_are_narrowed():
    assert integers([1, 2], "ids", np.uint32).dtype == np.uint32
    assert integers(np.array([5], np.int64), "ids", np.uint32)[0] == 5
    with pytest.raises(ValueError, match="outside"):
        integers([-1], "ids", np.uint32)
    with pytest.raises(ValueError, match="outside"):
        integers(np.array([1 << 32]), "ids", np.uint32)
    with pytest.raises(TypeError, match="integers"):
        integers([1.5], "ids", np.uint32)
    with pytest.raises(ValueError, match="shape"):
        integers([[1]], "ids", np.uint32)


def test_a_fingerprint_depends_on_every_byte():
    def digest(*parts):
        made = coldkv.Fingerprint()
        for part in parts:
            made.update(part)
        return made.digest()

    weights = np.arange(1000, dtype=np.float32)
    other = weights.copy()
    other[777] += 1
    assert len(digest(weights)) == 32 and digest(weights) == digest(weights.tobytes())
    assert len({digest(weights), digest(other), digest(weights, b"x"), digest()}) == 4
