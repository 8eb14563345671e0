"""Grids of volumes: how far apart they are, turning them, and resampling; nibabel and scipy say what is right."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.processing import resample_from_to
from scipy.ndimage import map_coordinates

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
    np.testing.assert_allclose(resample(ramp, own, half, False, [0])[0, :, 0, 0], np.arange(7) / 2, atol=1e-6)
    classes = RNG.integers(0, 3, (1, 4, 5, 6)).astype(np.uint8)
    found = resample(classes, own, half, True, [0])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, ::2], classes)


@given(st.integers(0, 2**32 - 1))
def test_inside_it_is_nibabels_and_at_the_border_the_outermost_half_voxel_and_then_background(seed):
    """Of two oblique grids: where all eight neighbours are there nibabel says what is right, else the definition."""
    rng = np.random.default_rng(seed)
    turn = nibabel.eulerangles.euler2mat(*rng.uniform(-0.4, 0.4, 3)) @ np.diag(rng.uniform(0.6, 2, 3))
    own = Geometry(OBLIQUE, (6, 7, 8))
    wanted = Geometry(OBLIQUE @ nibabel.affines.from_matvec(turn, rng.uniform(-3, 3, 3)), (9, 5, 7))
    values = rng.uniform(100, 900, (2, 6, 7, 8)).astype(np.float32)
    index = nibabel.affines.apply_affine(np.linalg.inv(own.affine) @ wanted.affine, np.stack(np.indices((9, 5, 7)), -1))
    last = np.array(own.shape) - 1
    depth = np.minimum(index, last - index).min(-1)  # voxels from the outermost centres, inward
    if not (depth > -0.5).any():
        with pytest.raises(MandorlaError, match="no voxel of one lies within the other"):
            resample(values, own, wanted, False, [-5, -7])
        return
    found = resample(values, own, wanted, False, [-5, -7])
    classes = resample(np.rint(values).astype(np.int16), own, wanted, True, [-5, -7])
    assert found.dtype == np.float32 and classes.dtype == np.int16
    for channel, level in enumerate((-5, -7)):
        image = nibabel.Nifti1Image(values[channel], own.affine)
        right = resample_from_to(image, (wanted.shape, wanted.affine), order=1, cval=np.nan).get_fdata()
        inside, outside = depth > 1e-6, depth < -0.5 - 1e-6
        np.testing.assert_allclose(found[channel][inside], right[inside], atol=0.01)
        assert (found[channel][outside] == level).all() and (classes[channel][outside] == level).all()
        rim = ~outside & (depth < -1e-6) & (depth > -0.5 + 1e-6)
        for point, value in zip(index[rim], found[channel][rim], strict=True):
            assert value == pytest.approx(
                map_coordinates(values[channel], point.clip(0, last)[:, None], order=1)[0], abs=0.01
            )
        sure = ~outside & (np.abs(index % 1 - 0.5) > 1e-3).all(-1) & (depth > -0.5 + 1e-6)
        nearest = np.rint(index[sure]).astype(int).clip(0, last)
        np.testing.assert_array_equal(classes[channel][sure], np.rint(values[channel])[tuple(nearest.T)])


def test_a_grid_that_ends_where_the_other_does_keeps_its_last_plane():
    """Headers hold float32: a place that is the last voxel's centre but for rounding is not outside."""
    own = Geometry(np.diag([0.3, 1, 1, 1]), (6, 5, 4))
    fine = Geometry(np.diag(np.float32([0.1, 1, 1, 1])).astype(float), (16, 5, 4))
    found = resample(np.full((1, 6, 5, 4), 7, np.int16), own, fine, False, [-1000])
    np.testing.assert_allclose(found, 7)
