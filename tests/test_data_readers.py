"""Every kind of file, whole and broken."""

import gzip
import os
import struct
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from mandorla.data import readers
from mandorla.data.find import find
from mandorla.data.places import ReadOptions, split_place, stem
from mandorla.data.readers import read
from mandorla.errors import MandorlaError

RNG = np.random.default_rng(0)
OPTIONS = ReadOptions()
OBLIQUE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.2, -0.1, 0.3) @ np.diag([0.9, 1.1, 2.5]), [-40, 20, 5]
)


def write_nifti(path, values, affine=OBLIQUE, dtype=None, slope=None, inter=0.0):
    """Write a NIfTI file as another program would: with `slope`, `values` are what is stored."""
    image = nibabel.Nifti1Image(values, affine, dtype=dtype or values.dtype)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    nibabel.save(image, path)
    return path


def write_dicom(path, pixels, position, series, **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID = series
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(pixels.dtype == np.int16)
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.5], 3
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def series(tmp_path):
    """A series of five slices whose files' names say nothing of their order."""
    uid, volume = generate_uid(), RNG.integers(0, 999, (5, 6, 8)).astype(np.int16)
    for name, k in zip("cadbe", range(5), strict=True):
        write_dicom(tmp_path / "series" / f"{name}.dcm", volume[k], (10, -20, 3 * k - 7), uid)
    return tmp_path / "series", volume, uid


# --------------------------------------------------------------------------------------------------------------- whole


def test_pictures_and_their_halves(tmp_path):
    pixels = RNG.integers(0, 65536, (4, 6), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.PNG")
    np.testing.assert_array_equal(read(f"{tmp_path}/a.PNG", OPTIONS).values[0], pixels)
    np.testing.assert_array_equal(read(f"{tmp_path}/a.PNG:left", OPTIONS).values[0], pixels[:, :3])
    np.testing.assert_array_equal(read(f"{tmp_path}/a.PNG:right", OPTIONS).values[0], pixels[:, 3:])
    kelvin = (pixels / 7 - 300).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", kelvin)
    np.testing.assert_array_equal(read(f"{tmp_path}/a.tif", OPTIONS).values[0], kelvin)


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "int32", "float16", ">f4", "float64", "bool"])
def test_arrays_of_every_number_type(tmp_path, dtype):
    values = RNG.integers(0, 2, (4, 6)).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "a.npz", one=values, two=values[..., None].repeat(3, -1))
    np.savez(tmp_path / "single.npz", values)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/x"] = values.astype("float32") if dtype == "bool" else values
    for place in ("a.npy", "a.npz:one", "single.npz", "a.h5:group/x", "a.h5"):
        found = read(f"{tmp_path}/{place}", OPTIONS).values
        assert found.shape == (1, 4, 6) and found.dtype.isnative and found.dtype.kind in "iuf"
        np.testing.assert_array_equal(found[0], values)
    assert read(f"{tmp_path}/a.npz:two", OPTIONS).values.shape == (3, 4, 6)
    assert read(f"{tmp_path}/a.npz:two", ReadOptions(channels="first")).values.shape == (4, 6, 3)
    assert read(f"{tmp_path}/a.npz:two", ReadOptions(dimensions=3)).values.shape == (1, 4, 6, 3)
    assert read(f"{tmp_path}/a.npy", ReadOptions(dimensions=1)).values.shape == (6, 4)
    np.save(tmp_path / "v.npy", values[0])
    assert read(f"{tmp_path}/v.npy", ReadOptions(dimensions=0)).values.shape == (6,)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti(tmp_path, name):
    values = RNG.integers(-500, 500, (5, 6, 7)).astype(np.int16)
    reading = read(str(write_nifti(tmp_path / name, values)), OPTIONS)
    assert reading.values.dtype == np.int16
    np.testing.assert_array_equal(reading.values[0], values)
    np.testing.assert_allclose(reading.geometry.affine, OBLIQUE, atol=1e-5)
    assert reading.geometry.shape == (5, 6, 7)
    np.testing.assert_allclose(reading.geometry.spacing, [0.9, 1.1, 2.5], atol=1e-5)


def test_nifti_is_scaled_by_its_header(tmp_path):
    image = nibabel.Nifti1Image(RNG.normal(size=(5, 6, 7)), OBLIQUE)
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")
    loaded = nibabel.load(tmp_path / "a.nii.gz")
    assert loaded.dataobj.slope != 1
    reading = read(f"{tmp_path}/a.nii.gz", OPTIONS)
    assert reading.values.dtype == np.float32
    np.testing.assert_allclose(reading.values[0], image.get_fdata(), atol=1e-3)


@pytest.mark.parametrize(("unit", "edge"), [("mm", 2e-4), ("meter", 2e-7), ("micron", 0.2), ("unknown", 2e-4)])
def test_nifti_in_any_unit_of_length_is_in_mm(tmp_path, unit, edge):
    image = nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.diag([edge, edge, edge, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read(f"{tmp_path}/a.nii", OPTIONS).geometry.spacing, 2e-4, rtol=1e-5)


@pytest.mark.parametrize("codes", [(1, 1), (2, 1)])
def test_nifti_that_lies_in_two_spaces_or_is_sheared(tmp_path, codes):
    """A qform has no shears, and another code may mean another space: neither is a contradiction."""
    sheared = np.array([[1.0, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(np.ones((30, 40, 5), np.uint8), sheared)
    image.set_sform(sheared, codes[0])
    image.set_qform(sheared + np.eye(4, k=3) * 9 * (codes[0] - codes[1]), codes[1])
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read(f"{tmp_path}/a.nii", OPTIONS).geometry.affine, sheared, atol=1e-6)


def test_nifti_of_four_dimensions_gives_its_channels(tmp_path):
    values = RNG.integers(0, 9, (5, 6, 7, 2)).astype(np.uint8)
    place = write_nifti(tmp_path / "a.nii.gz", values)
    np.testing.assert_array_equal(read(f"{place}:1", OPTIONS).values[0], values[..., 1])
    with pytest.raises(MandorlaError, match="holds 2 volumes; name one as a.nii.gz:0"):
        read(str(place), OPTIONS)
    with pytest.raises(MandorlaError, match="holds 2 volumes"):
        read(f"{place}:2", OPTIONS)
    single = write_nifti(tmp_path / "b.nii.gz", values[..., :1])
    np.testing.assert_array_equal(read(str(single), OPTIONS).values[0], values[..., 0])


def test_dicom_series_in_the_order_of_its_slices(series):
    folder, volume, _ = series
    reading = read(str(folder), OPTIONS)
    assert reading.values.dtype == np.int16
    np.testing.assert_array_equal(reading.values[0], volume)
    # Slice k, row r, column c lie at (10 + 0.5 c, -20 + 0.8 r, 3 k - 7) mm; NIfTI turns the first two around.
    np.testing.assert_allclose(reading.geometry.affine @ [2, 3, 4, 1], [-(10 + 2), -(-20 + 2.4), -1, 1])
    assert reading.geometry.axes == "SPL"


def test_the_list_of_a_medium_is_no_slice(series):
    folder, volume, uid = series
    for name in ("DICOMDIR", "dicomdir"):
        write_dicom(folder / name, volume[0], (0, 0, 9), uid)
        write_dicom(folder.parent / name, volume[0], (0, 0, 9), uid)
    assert find(folder.parent, "*") == [folder]
    np.testing.assert_array_equal(read(str(folder), ReadOptions()).values[0], volume)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (7,)])
def test_nifti_of_any_dimensions_with_both_maps_to_space(tmp_path, shape):
    """As ITK writes it."""
    image = nibabel.Nifti1Image(np.ones(shape, np.float32), np.diag([2.0, 3, 1, 1]))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    nibabel.save(image, tmp_path / "x.nii")
    assert read(str(tmp_path / "x.nii"), ReadOptions()).values.shape == (1, *shape, *[1] * (3 - len(shape)))


def test_an_empty_cell_is_nan(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,\n2,3\n")
    options = ReadOptions(dimensions=1, nan=0.0)
    np.testing.assert_array_equal(read(str(tmp_path / "x.csv"), options).values, [[1, 2], [0, 3]])
    with pytest.raises(MandorlaError, match="row 1, column 'b': '' is no number"):
        read(str(tmp_path / "x.csv"), ReadOptions(dimensions=1))


def test_dicom_rescales_each_slice(tmp_path):
    uid, pixels = generate_uid(), RNG.integers(0, 99, (3, 6, 8)).astype(np.uint16)
    for k in range(3):
        scale = {"RescaleSlope": k + 1, "RescaleIntercept": -1024}
        write_dicom(tmp_path / "s" / f"{k}", pixels[k], (0, 0, k), uid, **scale)
    expected = pixels * np.array([1, 2, 3])[:, None, None] - 1024.0
    np.testing.assert_allclose(read(f"{tmp_path}/s", OPTIONS).values[0], expected)


def test_one_dicom_image_and_white_that_is_zero(tmp_path):
    pixels = RNG.integers(0, 4096, (6, 8)).astype(np.uint16)
    path = write_dicom(tmp_path / "x.dcm", pixels, (0, 0, 0), generate_uid())
    np.testing.assert_array_equal(read(str(path), OPTIONS).values[0], pixels)
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    path = write_dicom(tmp_path / "y.dcm", pixels, (0, 0, 0), generate_uid(), **tags)
    np.testing.assert_array_equal(read(str(path), OPTIONS).values[0], 4095 - pixels.astype(int))
    signed = pixels.astype(np.int16) - np.int16(2048)
    path = write_dicom(tmp_path / "z.dcm", signed, (0, 0, 0), generate_uid(), **tags)
    np.testing.assert_array_equal(read(str(path), OPTIONS).values[0], -1 - signed)  # in -2048 .. 2047, as before


def test_tables(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufefftime, x,y\n0,1.5,-2\n1,2.5,3e1\n", encoding="utf-8")
    np.testing.assert_allclose(read(f"{path}:x,y", OPTIONS).values, [[1.5, 2.5], [-2, 30]])
    assert read(str(path), OPTIONS).values.shape == (3, 2)
    path.write_text("a,b\n1,2\n")
    np.testing.assert_allclose(read(str(path), ReadOptions(dimensions=0)).values, [1, 2])
    path.write_text("seconds\n1700000001\n1700000002.5\n")
    np.testing.assert_array_equal(read(str(path), OPTIONS).values, [[1700000001, 1700000002.5]])
    path.write_text(",a,b\n0,1,2\n")
    np.testing.assert_array_equal(read(f"{path}:a,b", OPTIONS).values, [[1], [2]])


def test_a_large_table_takes_little_more_than_its_numbers(tmp_path):
    wide, tall, num = tmp_path / "wide.csv", tmp_path / "tall.csv", 60_000
    wide.write_text(",".join(f"c{number}" for number in range(num)) + "\n" + ",".join(["1"] * num) + "\n")
    tall.write_text("a\n" + "1\n" * num)
    assert read(str(wide), ReadOptions(dimensions=0)).values.shape == (
        num,
    )  # minutes, were each name looked for in all
    tracemalloc.start()
    assert read(str(tall), OPTIONS).values.shape == (1, num)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * num  # bytes; 8 a number, twice while it is copied; rows of text take some 90


def test_places_and_stems(tmp_path):
    assert split_place("a/b.npz:x") == (Path("a/b.npz"), "x")
    assert split_place("a/b.h5:g/c.npz:d") == (Path("a/b.h5"), "g/c.npz:d")
    assert split_place("a/b.nii.gz") == (Path("a/b.nii.gz"), None)
    (tmp_path / "x.png:left").touch()
    assert split_place(f"{tmp_path}/x.png:left") == (tmp_path / "x.png:left", None)
    assert [stem(Path(name)) for name in ("p.1.nii.gz", "p.1.PNG", "series.01")] == ["p.1", "p.1", "series.01"]


def test_find(tmp_path, series):
    folder = series[0]
    for name in ("b/1.nii.gz", "b/2.JPG", "a/x/3.npy", "a/notes.txt", ".hidden/4.png", "b/._2.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    write_dicom(tmp_path / "xray" / "1.dcm", series[1][0], (0, 0, 0), generate_uid())
    write_dicom(tmp_path / "xray" / "2.dcm", series[1][0], (0, 0, 0), generate_uid())
    os.symlink(tmp_path / "a", tmp_path / "linked")

    def names(pattern):
        return [path.relative_to(tmp_path).as_posix() for path in find(tmp_path, pattern)]

    pictures = ["a/x/3.npy", "b/1.nii.gz", "b/2.JPG", "linked/x/3.npy"]
    assert names("**/*") == [*pictures, "series", "xray/1.dcm", "xray/2.dcm"]
    assert names("*/*.nii.gz") == ["b/1.nii.gz"]
    assert names("a/**/3.*") == ["a/x/3.npy"]
    assert names("*") == ["series"]
    assert [path.name for path in find(folder)] == ["a.dcm", "b.dcm", "c.dcm", "d.dcm", "e.dcm"]


def test_find_refuses_circles_dead_links_and_unprintable_names(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    os.symlink(tmp_path / "a", tmp_path / "a" / "b" / "again")
    with pytest.raises(MandorlaError, match="leads back to a folder above"):
        find(tmp_path)
    (tmp_path / "a" / "b" / "again").unlink()
    os.symlink(tmp_path / "a" / "annex", tmp_path / "a" / "scan.nii.gz")
    (found,) = find(tmp_path)  # a sample may not need it
    with pytest.raises(MandorlaError, match="scan.nii.gz: a link that leads nowhere"):
        read(str(found), OPTIONS)
    (tmp_path / "a" / "scan.nii.gz").unlink()
    (tmp_path / "a" / "two\nlines.png").touch()
    with pytest.raises(MandorlaError, match="unprintable"):
        find(tmp_path)


# -------------------------------------------------------------------------------------------------------------- broken


def cut(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    return path


def nifti_cut(folder):
    return cut(write_nifti(folder / "a.nii.gz", RNG.normal(size=(9, 9, 9)).astype(np.float32)))


def nifti_changed(folder):
    path = write_nifti(folder / "a.nii.gz", RNG.normal(size=(9, 9, 9)).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # of values that cannot be packed: it unpacks all the same
    path.write_bytes(content)
    return path


def nifti_plain_cut(folder):
    return cut(write_nifti(folder / "a.nii", RNG.normal(size=(9, 9, 9)).astype(np.float32)))


def nifti_no_nifti(folder):
    (folder / "a.nii.gz").write_bytes(gzip.compress(b"nothing" * 100))
    return folder / "a.nii.gz"


def nifti_complex(folder):
    return write_nifti(folder / "a.nii", np.ones((3, 3, 3), np.complex64))


def nifti_colours(folder):
    colours = np.ones((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return write_nifti(folder / "a.nii", colours)


def nifti_five(folder):
    return write_nifti(folder / "a.nii", np.ones((3, 3, 3, 2, 2), np.float32))


def nifti_huge(folder):
    path = write_nifti(folder / "a.nii", np.ones((3, 3, 3), np.float32))
    content = bytearray(path.read_bytes())
    content[40:56] = struct.pack("<8h", 3, 32000, 32000, 32000, 1, 1, 1, 1)
    path.write_bytes(content)
    return path


def nifti_negative(folder):
    path = write_nifti(folder / "a.nii", np.ones((3, 3, 3), np.float32))
    content = bytearray(path.read_bytes())
    content[40:56] = struct.pack("<8h", 3, -3, -3, 3, 1, 1, 1, 1)
    path.write_bytes(content)
    return path


def nifti_flat_affine(folder):
    path = write_nifti(folder / "a.nii", np.ones((3, 3, 3), np.float32))
    content = bytearray(path.read_bytes())
    content[280:296] = struct.pack("<4f", 0, 0, 0, 0)
    path.write_bytes(content)
    return path


def npy_cut(folder):
    np.save(folder / "a.npy", np.ones((40, 40)))
    return cut(folder / "a.npy")


def npy_objects(folder):
    np.save(folder / "a.npy", np.array([[{}, 1]], dtype=object), allow_pickle=True)
    return folder / "a.npy"


def npy_complex(folder):
    np.save(folder / "a.npy", np.ones((4, 4), complex))
    return folder / "a.npy"


def npy_text(folder):
    np.save(folder / "a.npy", np.full((4, 4), "x"))
    return folder / "a.npy"


def npy_empty_file(folder):
    (folder / "a.npy").touch()
    return folder / "a.npy"


def npy_zero_size(folder):
    np.save(folder / "a.npy", np.ones((0, 4)))
    return folder / "a.npy"


def npy_other_dimensions(folder):
    np.save(folder / "a.npy", np.ones((2, 3, 4, 5)))
    return folder / "a.npy"


def npy_huge(folder):
    with open(folder / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    return folder / "a.npy"


def npy_huge_header(folder):
    (folder / "a.npy").write_bytes(np.lib.format.magic(2, 0) + struct.pack("<I", 5 * 2**27))
    return folder / "a.npy"


def npz_bomb(folder):
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**17, 2**17)})
        for _ in range(4):
            file.write(bytes(2**20))
    return folder / "a.npz"


def npz_cut(folder):
    np.savez(folder / "a.npz", x=np.ones((40, 40)))
    return cut(folder / "a.npz")


def npz_other_array(folder):
    np.savez(folder / "a.npz", x=np.ones((4, 4)))
    return f"{folder}/a.npz:y"


def npz_no_array_named(folder):
    np.savez(folder / "a.npz", x=np.ones((4, 4)), y=np.ones((4, 4)))
    return folder / "a.npz"


def hdf5_cut(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = np.ones((99, 99))
    return cut(folder / "a.h5")


def hdf5_other_array(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = np.ones((9, 9))
    return f"{folder}/a.h5:y"


def hdf5_bomb(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", (2**20, 2**20), "f4", chunks=(64, 64))
    return f"{folder}/a.h5:x"


def hdf5_text(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = ["a", "b"]
    return f"{folder}/a.h5:x"


def png_cut(folder):
    Image.fromarray(RNG.integers(0, 256, (40, 40), dtype=np.uint8)).save(folder / "a.png")
    return cut(folder / "a.png")


def png_bomb(folder):
    from test_data_images import write_png

    write_png(folder / "a.png", np.zeros((1, 1), np.uint16), 0)
    content = bytearray((folder / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 10**5, 10**5)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (folder / "a.png").write_bytes(content)
    return folder / "a.png"


def png_no_half(folder):
    Image.fromarray(np.ones((4, 5), np.uint8)).save(folder / "a.png")
    return f"{folder}/a.png:left"


def png_unknown_part(folder):
    Image.fromarray(np.ones((4, 6), np.uint8)).save(folder / "a.png")
    return f"{folder}/a.png:top"


def dicom_cut(folder):
    path = write_dicom(folder / "a.dcm", np.ones((40, 40), np.uint16), (0, 0, 0), generate_uid())
    return cut(path)


def dicom_none(folder):
    (folder / "a.dcm").write_bytes(b"nothing")
    return folder / "a.dcm"


def dicom_frames(folder):
    return write_dicom(folder / "a.dcm", np.ones((4, 4), np.uint16), (0, 0, 0), generate_uid(), NumberOfFrames=2)


def series_of(folder, places, uids=None, **tags):
    for k, place in enumerate(places):
        uid = uids[k] if uids else "1.2.3"
        write_dicom(folder / "s" / f"{k}.dcm", np.full((4, 4), k, np.uint16), (0, 0, place), uid, **tags)
    return folder / "s"


def series_gap(folder):
    return series_of(folder, [0, 1, 2, 4, 5])


def series_twice(folder):
    return series_of(folder, [0, 1, 1, 2])


def series_two(folder):
    return series_of(folder, [0, 1, 2], ["1.2.3", "1.2.3", "1.2.4"])


def series_turned(folder):
    place = series_of(folder, [0, 1, 2])
    tags = {"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}
    write_dicom(place / "3.dcm", np.ones((4, 4), np.uint16), (0, 0, 3), "1.2.3", **tags)
    return place


def series_nowhere(folder):
    return series_of(folder, [0, 1], PixelSpacing=None)


def folder_empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def csv_text(folder):
    (folder / "a.csv").write_text("x,y\n1,two\n")
    return folder / "a.csv"


def csv_ragged(folder):
    (folder / "a.csv").write_text("x,y\n1\n")
    return folder / "a.csv"


def csv_no_column(folder):
    (folder / "a.csv").write_text("x,y\n1,2\n")
    return f"{folder}/a.csv:z"


def csv_empty(folder):
    (folder / "a.csv").touch()
    return folder / "a.csv"


def csv_not_text(folder):
    (folder / "a.csv").write_bytes(bytes(range(256)))
    return folder / "a.csv"


def other_kind(folder):
    (folder / "a.xyz").write_text("?")
    return folder / "a.xyz"


def absent(folder):
    return folder / "a.nii.gz"


BROKEN = {
    nifti_cut: "cannot be read",
    nifti_changed: "CRC check failed",
    nifti_plain_cut: "cannot be read",
    nifti_no_nifti: "cannot be read",
    nifti_complex: "complex64 values",
    nifti_colours: "are no numbers",
    nifti_five: "5 dimensions",
    nifti_huge: "GiB for one sample",
    nifti_negative: "a.nii",
    nifti_flat_affine: "affine",
    npy_cut: "cut short",
    npy_objects: "Python objects",
    npy_complex: "complex128 values",
    npy_text: "<U1 values",
    npy_empty_file: "cannot be read",
    npy_zero_size: "no values",
    npy_other_dimensions: "set data.read.dimensions",
    npy_huge: "GiB for one sample",
    npy_huge_header: "cut short",
    npz_bomb: "GiB for one sample",
    npz_cut: "cannot be read",
    npz_other_array: "no array 'y' in it: x",
    npz_no_array_named: "name one of its arrays: x, y",
    hdf5_cut: "cannot be read",
    hdf5_other_array: "no array 'y' in it: x",
    hdf5_bomb: "GiB for one sample",
    hdf5_text: "no numbers",
    png_cut: "cannot be read",
    png_bomb: "cannot be read",
    png_no_half: "5 pixels wide",
    png_unknown_part: "left and right, not 'top'",
    dicom_cut: "cannot be decoded",
    dicom_none: "cannot be read as DICOM",
    dicom_frames: "2 frames in one file",
    series_gap: "slices are missing between 2.dcm and 3.dcm: 2 mm apart where others are 1 mm",
    series_twice: "lies where 1.dcm does",
    series_two: "2 series in one folder",
    series_turned: "3.dcm: ImageOrientationPatient differs",
    series_nowhere: "0.dcm: no PixelSpacing",
    folder_empty: "without DICOM files",
    csv_text: "row 1, column 'y': 'two' is no number",
    csv_ragged: "row 1 has 1 cells",
    csv_no_column: r"no column\(s\) 'z'",
    csv_empty: "no values",
    csv_not_text: "cannot be read",
    other_kind: "unknown kind of file",
    absent: "no such file",
}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_broken_files_are_named(tmp_path, make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = str(make(tmp_path))
    with warnings.catch_warnings(), pytest.raises(MandorlaError, match=BROKEN[make]) as caught:
        warnings.simplefilter("error")
        read(place, OPTIONS)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_header_says_of_its_length_takes_no_memory(tmp_path):
    path = npy_huge_header(tmp_path)
    tracemalloc.start()
    with pytest.raises(MandorlaError):
        read(str(path), OPTIONS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # of the 640 MiB that it claims


@pytest.mark.parametrize(
    ("syntax", "packages"),
    [
        ("JPEGLosslessSV1", "python-gdcm"),
        ("JPEGLSLossless", "python-gdcm"),
        ("HTJ2KLossless", "pylibjpeg pylibjpeg-openjpeg"),
    ],
)
def test_dicom_that_needs_a_decoder_names_it(tmp_path, monkeypatch, syntax, packages):
    place = write_dicom(tmp_path / "a.dcm", np.zeros((4, 6), np.uint16), (0, 0, 0), generate_uid())
    dataset = pydicom.dcmread(place)
    dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(place, enforce_file_format=True)
    monkeypatch.setattr(pydicom.pixels.get_decoder(dataset.file_meta.TransferSyntaxUID), "_available", {})
    with pytest.raises(MandorlaError, match=f"a.dcm: .*JPEG.* needs a decoder: pip install {packages}$") as error:
        read(str(place), OPTIONS)
    assert str(error.value).isprintable()


COMPRESSED = ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_dicom_without_loss_is_what_it_was_and_one_that_is_damaged_is_named(tmp_path, syntax):
    gdcm = pytest.importorskip("gdcm")
    pixels = RNG.integers(0, 4000, (24, 40)).astype(np.uint16)
    source, place = write_dicom(tmp_path / "a.dcm", pixels, (0, 0, 0), generate_uid()), tmp_path / "b.dcm"
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(place))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    np.testing.assert_array_equal(read(str(place), OPTIONS).values[0], pixels)
    (tmp_path / "cut.dcm").write_bytes(place.read_bytes()[:-100])
    with pytest.raises(MandorlaError, match=r"cut.dcm: cannot be read as DICOM \(End of file reached"):
        read(f"{tmp_path}/cut.dcm", OPTIONS)
    dataset = pydicom.dcmread(place)
    whole = dataset.PixelData
    for damaged in (whole[: len(whole) // 2], whole[:200] + bytes(255 - byte for byte in whole[200:])):
        dataset.PixelData = damaged
        dataset.save_as(place)
        with pytest.raises(
            MandorlaError, match="b.dcm: its pixels, .* cannot be decoded .*; replace or remove"
        ) as error:
            read(str(place), OPTIONS)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(("name", "library", "extra"), [("a.nii", "nibabel", "medical"), ("a.h5", "h5py", "hdf5")])
def test_a_library_that_is_not_there_is_named(tmp_path, monkeypatch, name, library, extra):
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MandorlaError, match=rf"needs {library}: pip install -c constraints.txt 'mandorla\[{extra}\]'"):
        read(f"{tmp_path}/{name}", OPTIONS)


def test_suffixes_cover_all_readers():
    for name in readers.SUFFIXES:
        assert readers._reader(Path(f"x{name}"))
