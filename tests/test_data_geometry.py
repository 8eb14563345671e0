"""Grids of volumes: how far apart they are, turning them, and resampling; nibabel and scipy say what is right."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mandorla.data.geometry import Geometry, Turn, across, check_axes, resample
from mandorla.errors import MandorlaError

RNG = np.random.default_rng(0)
OBLIQUE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.2, -0.1, 0.3) @ np.diag([0.9, -1.1, 2.5]), [-40, 20, 5]
)
AXES = ["".join(axes) for order in permutations(["RL", "AP", "SI"]) for axes in product(*order)]


def test_the_difference_says_by_how_much():
    one = Geometry(OBLIQUE, (5, 6, 7))
    assert one.difference(one, 1e-9) == ""
    assert "shape 5 x 6 x 8 instead of 5 x 6 x 7" in one.difference(Geometry(OBLIQUE, (5, 6, 8)), 1)
    moved = OBLIQUE + np.array([[0, 0, 0, 0.3], [0, 0, 0, 0.4], [0] * 4, [0] * 4])
    assert one.distance(Geometry(moved, (5, 6, 7))) == pytest.approx(0.5)
    assert "0.5 mm (0.556 voxels)" in one.difference(Geometry(moved, (5, 6, 7)), 0.01)
    assert one.difference(Geometry(moved, (5, 6, 7)), 0.6) == ""
    wide = Geometry(OBLIQUE @ np.diag([1, 1, 1.2, 1]), (5, 6, 7))
    assert "spacing 0.9 x 1.1 x 3 mm instead of 0.9 x 1.1 x 2.5, up to 3 mm apart" in one.difference(wide, 0.01)


@given(st.sampled_from(AXES), st.sampled_from(AXES))
def test_a_turn_moves_each_value_with_its_place_and_is_undone(own, wanted):
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    orientation = nibabel.orientations.axcodes2ornt(own)
    to_own = nibabel.orientations.inv_ornt_aff(orientation, (3, 4, 5))
    geometry = Geometry(np.diag([2, 3, 4, 1]) @ np.linalg.inv(to_own), (3, 4, 5))
    turn = Turn.of(geometry, wanted)
    turned, grid = turn.apply(values), turn.of_grid(geometry)
    assert grid.axes == wanted and turned.shape[1:] == grid.shape
    np.testing.assert_array_equal(turn.undo(turned), values)
    for index in np.ndindex(grid.shape):
        place = np.linalg.inv(geometry.affine) @ grid.affine @ [*index, 1]
        np.testing.assert_array_equal(
            turned[(slice(None), *index)], values[(slice(None), *np.rint(place[:3]).astype(int))]
        )


def test_planes_are_found_whatever_the_axes():
    assert [across(plane, "IPL") for plane in ("axial", "coronal", "sagittal", 2)] == [0, 1, 2, 2]
    assert [across(plane, "RAS") for plane in ("axial", "coronal", "sagittal", 0)] == [2, 1, 0, 0]
    assert check_axes("LPS") == "LPS"
    for wrong in ("LRS", "XYZ", "LP", "lps", "LPSI"):
        with pytest.raises(MandorlaError, match="three letters"):
            check_axes(wrong)


def test_resampling_interpolates_numbers_and_copies_classes():
    own = Geometry(np.eye(4), (4, 5, 6))
    half = Geometry(np.diag([0.5, 1, 1, 1]), (7, 5, 6))
    ramp = (np.arange(4.0)[:, None, None] + np.zeros((4, 5, 6)))[None].astype(np.float32)
    np.testing.assert_allclose(resample(ramp, own, half, nearest=False)[0, :, 0, 0], np.arange(7) / 2, atol=1e-6)
    classes = RNG.integers(0, 3, (1, 4, 5, 6)).astype(np.uint8)
    found = resample(classes, own, half, nearest=True)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, ::2], classes)
    air = resample(ramp - 1000, own, Geometry(np.eye(4), (9, 5, 6)), nearest=False)
    np.testing.assert_allclose(air[0, 4:], -1000)
