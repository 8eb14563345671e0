"""One sample of several files: what is not known to lie where the others lie is refused."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from mandorla.check.source import see_files
from mandorla.data.samples import FilesConfig, GeometryConfig, read_slices
from mandorla.errors import MandorlaError

CUBE = np.arange(8**3, dtype=np.float32).reshape(8, 8, 8)


def volume(path, values=CUBE, affine=None):
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return str(path)


def array(path, values=CUBE):
    np.save(path, values)
    return str(path)


def config(**settings):
    return FilesConfig(read={"dimensions": 3}, **settings)


@pytest.mark.parametrize("place", ["files", "masks"])
def test_a_volume_without_axes_beside_one_that_is_turned_is_refused(tmp_path, place):
    files, masks = {"t1": volume(tmp_path / "t1.nii")}, {}
    (files if place == "files" else masks)["other"] = array(tmp_path / "other.npy", CUBE // 8)
    with pytest.raises(MandorlaError, match=r"other.npy: does not say where its voxels lie, as .*t1.nii does"):
        read_slices(files, masks, config())
    read = read_slices(files, masks, config(geometry=GeometryConfig(axes=None)))
    other = read.values["other"][0, 0] if place == "files" else read.masks["other"][0]
    np.testing.assert_array_equal(read.values["t1"][0, 0] // 8, other)
    turned = np.array([[0, 0, -1, 7], [0, -1, 0, 7], [-1, 0, 0, 7], [0, 0, 0, 1.0]])  # which leads to IPL already
    files["t1"] = volume(tmp_path / "ipl.nii", affine=turned)
    assert read_slices(files, masks, config()).axes == "IPL"


def picture(path, shape):
    Image.fromarray(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((16, 40), r"a mask of \[16, 40\] pixels, its images have \[16, 16\]; make them alike$"),
        ((4, 16, 16), r"a mask of \[4, 16, 16\] pixels, its images have \[16, 16\]; make them alike$"),
        ((4, 4), r"a mask of \[4, 4\] pixels cannot be brought down to \[8, 8\]; lower data.size"),
    ],
)
def test_a_mask_of_other_proportions_than_its_image_is_refused(tmp_path, shape, text):
    files = {"t1": picture(tmp_path / "t1.png", (16, 16))}
    place = picture(tmp_path / "m.png", shape) if len(shape) == 2 else array(tmp_path / "m.npy", np.zeros(shape))
    settings = FilesConfig(size=(8, 8), read_of={"lesion_mask": {"dimensions": len(shape)}})
    with pytest.raises(MandorlaError, match=text):
        read_slices(files, {"lesion_mask": place}, settings)


@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (24, 24), (8, 8)])
def test_a_mask_of_another_resolution_is_brought_to_the_size(tmp_path, shape):
    files = {"t1": picture(tmp_path / "t1.png", (16, 16))}
    halves = np.zeros(shape, np.uint8)
    halves[:, shape[1] // 2 :] = 1
    Image.fromarray(halves).save(tmp_path / "m.png")
    masks = {"lesion_mask": str(tmp_path / "m.png")}
    read = read_slices(files, masks, FilesConfig(size=(8, 8)))
    assert (read.masks["lesion_mask"][0, :, 4:] == 1).all() and not read.masks["lesion_mask"][0, :, :4].any()
    if shape != (16, 16):
        with pytest.raises(MandorlaError, match="make them alike, or set data.size"):
            read_slices(files, masks, FilesConfig())


def test_the_data_check_says_of_what_cannot_be_cut_what_a_training_says(tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "flat.png")
    files = {"flat": str(tmp_path / "flat.png"), "whole": array(tmp_path / "whole.npy")}
    files["short"] = array(tmp_path / "short.npy", CUBE[:7])
    settings = config(slices={"axis": 0})
    for names, said in ((("flat", "whole"), "flat.png: no volume"), (("short", "whole"), "7 in .*short.npy, 8 in")):
        of = {name: files[name] for name in names}
        with pytest.raises(MandorlaError, match=said) as stop:
            read_slices(of, {}, settings)
        assert see_files(of, {}, settings, 0, False).errors == {names[0]: (files[names[0]], str(stop.value))}
