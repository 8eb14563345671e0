"""Labels: classes are numbered and named, numbers stay, masks follow the images."""

import numpy as np
import pytest

from mandorla.data.labels import shrink_mask, to_label
from mandorla.errors import MandorlaError


@pytest.mark.parametrize(
    ("given", "values", "classes"),
    [
        (np.array(["b", "a", "b"]), [1, 0, 1], ("a", "b")),
        (["b", None, "a", ""], [1, -1, 0, -1], ("a", "b")),
        (np.array([2, 0, 2], np.uint8), [2, 0, 2], ("0", "1", "2")),
        ([3.0, 1.0, None], [3, 1, -1], ("0", "1", "2", "3")),
        (np.array([True, False]), [True, False], ("false", "true")),
        ([True, None, False], [1, -1, 0], ("false", "true")),
        ([True, False], [1, 0], ("false", "true")),
        ([61.5, None, 40.0], [61.5, np.nan, 40.0], ()),
        (np.array([2.0, 0.0, 2.0], np.float32), [2, 0, 2], ("0", "1", "2")),
        (np.array([1.0, np.nan]), [1, -1], ("0", "1")),
        (np.array([3.0, 1.5]), [3.0, 1.5], ()),
        (np.array([3.0, -1.0]), [3.0, -1.0], ()),
        (np.array([20_001, 5]), [20_001, 5], ()),
        ([1990, None, 2005], [1990, np.nan, 2005], ()),
        (np.array([-40, 30]), [-40, 30], ()),
        (np.array([[0.5, 1.0], [2.0, 3.0]]), [[0.5, 1.0], [2.0, 3.0]], ()),
    ],
)
def test_values_and_names(given, values, classes):
    label = to_label(given, "x")
    np.testing.assert_array_equal(label.values, values)
    assert label.classes == classes
    if not classes:
        assert label.values.dtype.kind == "f", "an integer cannot say that there is none"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", 1.0], "x: both names, such as 'a', and numbers"),
        ([None, ""], "x: no sample has this label"),
        (np.array([1j]), "x: complex128 values are no label"),
    ],
)
def test_what_is_no_label_is_refused(given, message):
    with pytest.raises(MandorlaError, match=message):
        to_label(given, "x")


@pytest.mark.parametrize("given", [[61.0, None, 40.0], np.array([61.0, np.nan, 40.0])])
def test_whole_numbers_that_are_said_to_be_numbers_stay(given):
    label = to_label(given, "x", number=True)
    np.testing.assert_array_equal(label.values, [61, np.nan, 40])
    assert label.classes == ()
    np.testing.assert_array_equal(to_label(np.array([3, -1]), "x", number=True).values, [3.0, -1.0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["f", "m"], "x: names, such as 'f', are no numbers; take it out of data.numbers"),
        (np.array([True, False]), "x: neither arrays nor bools are numbers"),
        (np.zeros((2, 3)), "x: neither arrays nor bools are numbers"),
        ([None, ""], "x: no sample has this label"),
    ],
)
def test_what_is_said_to_be_a_number_and_is_none_is_refused(given, message):
    with pytest.raises(MandorlaError, match=message):
        to_label(given, "x", number=True)


def test_masks_shrink_by_majority():
    classes = np.array([[[0, 2, 1, 1], [2, 0, 1, 0], [4, 0, 0, 0], [0, 0, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(shrink_mask(classes, (2, 2)), [[[2, 1], [0, 0]]])
    rng = np.random.default_rng(0)
    mask = rng.random((300, 8, 8)) < 0.5
    small = shrink_mask(mask, (4, 4))
    assert small.dtype == bool
    np.testing.assert_array_equal(small, mask.reshape(300, 4, 2, 4, 2).sum((2, 4)) >= 2)
    numbers = rng.random((5, 8, 8))
    np.testing.assert_allclose(shrink_mask(numbers, (4, 4)), numbers.reshape(5, 4, 2, 4, 2).mean((2, 4)), rtol=1e-6)
