"""What must not enter a training: every input here ends in one line that says what is wrong and where.

A case is a function that writes data with one fault into a folder and returns the source that reads them; its decorator
holds what the line must say. What may be left out is counted and reported (`reported`). A file that Python or a library
would hang on, or fill the memory with, counts as a fault too: each case has a few seconds.
"""

import gzip
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.io import wavfile

from mandorla.data import load_data
from mandorla.data.arrays import ArraysConfig
from mandorla.data.bids import BidsConfig
from mandorla.data.folders import FoldersConfig
from mandorla.data.msd import MsdConfig
from mandorla.data.places import ReadOptions
from mandorla.data.readers import read
from mandorla.data.scans import ScansConfig
from mandorla.data.side_by_side import SideBySideConfig
from mandorla.data.stored import StoredConfig
from mandorla.data.table import TableConfig
from mandorla.errors import MandorlaError, MandorlaWarning

pytestmark = pytest.mark.timeout(20)

SUBJECTS = ("p0", "p1", "p2", "p3")
WINDOW = {"kind": "window", "low": -2000.0, "high": 2000.0}
REFUSED, REPORTED = [], []
Make = Callable[[Path], StoredConfig]


def refused(*words: str):
    """Note a case that ends in a `MandorlaError` with all `words`."""
    return lambda make: REFUSED.append(pytest.param(make, words, id=make.__name__))


def reported(*words: str):
    """Note a case that is loaded, with a warning that has all `words`."""
    return lambda make: REPORTED.append(pytest.param(make, words, id=make.__name__))


@pytest.mark.parametrize("make, words", REFUSED)
def test_is_refused(tmp_path, make, words):
    config = make(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor is anything muttered before
        with pytest.raises(MandorlaError) as error:
            load_data(config, 0)
    text = str(error.value)
    assert not [word for word in words if word not in text], text
    assert text.isprintable() and len(text) < 1000, text
    assert not any(isinstance(part, Path) and part.suffix == ".part" for part in tmp_path.rglob("*"))


@pytest.mark.parametrize("names", [("p03", "P03"), ("1", "01"), ("sub-7_a", "sub-007_A")])
@pytest.mark.parametrize("parts", [True, False])
def test_subjects_whose_names_are_almost_one_are_named(tmp_path, names, parts):
    pngs(tmp_path)
    rows = [f"{n},t1/{s}.png,t2/{s}.png" for n, s in zip((*names, "p10", "p100"), SUBJECTS, strict=True)]
    split = (",train", ",test", ",val", ",train") if parts else [""] * 4
    text = "\n".join(row + part for row, part in zip(rows, split, strict=True))
    (tmp_path / "table.csv").write_text(f"subject,t1,t2{',split' if parts else ''}\n{text}\n")
    with pytest.warns(MandorlaWarning, match="case or leading zeros alone") as caught:
        load_data(TableConfig(root=str(tmp_path), table="table.csv"), 0)
    text = str(caught[0].message)
    assert all(repr(name) in text for name in names) and "1 such case" in text and "p10" not in text


@pytest.mark.parametrize("make, words", REPORTED)
def test_is_left_out_and_reported(tmp_path, make, words):
    config = make(tmp_path)
    with pytest.warns(MandorlaWarning) as caught:
        splits = load_data(config, 0)
    text = " ".join(str(warning.message) for warning in caught)
    assert not [word for word in words if word not in text], text
    assert sum(map(len, splits.parts.values())) == len(SUBJECTS)


def test_the_table_is_long():
    assert len(REFUSED) + len(REPORTED) >= 60


# -------------------------------------------------------------------------------------------------------- what is whole


def pixels(subject, modality="t1", shape=(8, 10), dtype=np.uint8):
    """Return the values of one image, no two alike."""
    rng = np.random.default_rng(list(f"{subject}{modality}".encode()))
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, 250, shape).astype(dtype)


def folders(root: Path, suffix: str, save: Callable[[Path, np.ndarray], object], **settings) -> FoldersConfig:
    """Write four whole pairs, `t1/p0` to `t2/p3`, by `save(path, values)` and return their source."""
    for modality in ("t1", "t2"):
        (root / modality).mkdir()
        for subject in SUBJECTS:
            save(root / modality / f"{subject}{suffix}", pixels(subject, modality))
    return FoldersConfig(root=str(root), folders={"t1": "t1", "t2": "t2"}, **settings)


def save_image(path, values):
    Image.fromarray(values).save(path)


def save_h5(path, values):
    with h5py.File(path, "w") as file:
        file["x"] = values


def volume(subject, modality="t1"):
    return pixels(subject, modality, (4, 5, 6), np.int16)


def save_nifti(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def save_sound(path, values):
    wavfile.write(path, 8000, (values.ravel().astype(np.int16) - 125) * 200)


def save_rows(path, values):
    path.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in values[:2].T))


def pngs(root, **settings):
    return folders(root, ".png", save_image, **settings)


def npys(root, **settings):
    return folders(root, ".npy", np.save, **settings)


def npzs(root):
    return folders(root, ".npz", lambda path, values: np.savez(path, x=values))


def h5s(root):
    return folders(root, ".h5", save_h5)


def niftis(root, suffix=".nii.gz", **settings):
    settings = {"intensity": WINDOW} | settings
    return folders(root, suffix, lambda path, values: save_nifti(path, np.stack([values] * 3, -1)), **settings)


def sounds(root):
    return folders(root, ".wav", save_sound, intensity=WINDOW)


def rows(root):
    return folders(root, ".csv", save_rows, intensity=WINDOW)


def save_slice(path, pixels, position, series, **tags):
    """Write one slice as a scanner does; a tag of None is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID = series
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.5], 3
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        delattr(dataset, name) if value is None else setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def dicoms(root):
    """Write a series of four slices, `a.dcm` to `d.dcm`, for each subject and modality."""
    for modality in ("t1", "t2"):
        for subject in SUBJECTS:
            uid, values = generate_uid(), volume(subject, modality)
            for k, name in enumerate("abcd"):
                save_slice(root / modality / subject / f"{name}.dcm", values[k], (0, 0, 3 * k), uid)
    return FoldersConfig(root=str(root), folders={"t1": "t1", "t2": "t2"}, intensity=WINDOW)


def uid_of(root, place="t1/p1/a.dcm"):
    return pydicom.dcmread(root / place, stop_before_pixels=True).SeriesInstanceUID


def table(root, text, **settings):
    """Write the images of four pairs and the table `text`, in which `{row}` stands for whole rows of p0, p2 and p3."""
    pngs(root)
    row = "".join(f"{s},t1/{s}.png,t2/{s}.png\n" for s in SUBJECTS if s != "p1")
    (root / "table.csv").write_text(text.replace("{row}", row))
    return TableConfig(root=str(root), table="table.csv", **settings)


def listed(root, text, **settings):
    """Write four pairs and a `dataset.json`, in which `{rest}` stands for whole entries of p0, p2 and p3."""
    pngs(root)
    rest = ", ".join(json.dumps(entry(s)) for s in SUBJECTS if s != "p1")
    (root / "dataset.json").write_text(text.replace("{rest}", rest))
    return MsdConfig(root=str(root), **settings)


def entry(subject, **others):
    return {"t1": f"t1/{subject}.png", "t2": f"t2/{subject}.png"} | others


def bids(root, **settings):
    for subject in ("01", "02", "03", "04"):
        for last in ("T1w", "T2w"):
            values = volume(subject, last)
            save_nifti(root / f"sub-{subject}" / "anat" / f"sub-{subject}_{last}.nii.gz", values)
    return BidsConfig(root=str(root), intensity=WINDOW, **settings)


def scans(root, **settings):
    for case in ("IXI002-A", "IXI003-A", "IXI004-B", "IXI005-B"):
        for last in ("T1", "T2"):
            save_nifti(root / f"{case}-{last}.nii.gz", volume(case, last))
    return ScansConfig(root=str(root), intensity=WINDOW, **settings)


def arrays(root, **changed):
    """Write an .npz file of four pairs, in which the arrays of `changed` are others, and return its source."""
    whole = {m: np.stack([pixels(s, m) for s in SUBJECTS]) for m in ("t1", "t2")} | {"who": np.arange(4)}
    np.savez(root / "x.npz", **(whole | changed))
    return ArraysConfig(root=str(root), images={"t1": "x.npz:t1", "t2": "x.npz:t2"}, groups="x.npz:who")


def cut(path, share=0.6):
    """Keep the first part of a file."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def huge(path, head=b""):
    """Write a file that begins with `head` and goes on with 2^40 zeros, which take no room on disk."""
    path.write_bytes(head)
    try:
        os.truncate(path, 2**40)
    except OSError:  # a file system of smaller files
        os.truncate(path, 2**35)


def npy_head(shape, descr="|u1"):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_what_is_whole_is_read(tmp_path):
    """Each fault below is the only one."""
    makers = (pngs, npys, npzs, h5s, niftis, sounds, rows, dicoms, arrays, bids, scans)
    for number, make in enumerate(makers):
        (root := tmp_path / str(number)).mkdir()
        assert sum(map(len, load_data(make(root), 0).parts.values())) == len(SUBJECTS), make.__name__
    (root := tmp_path / "table").mkdir()
    config = table(root, "\ufeffsubject,t1,t2\n{row}p1,t1/p1.png,t2/p1.png\n")
    text = (root / "table.csv").read_text().replace(",", ";")  # with a mark at its beginning, as from a spreadsheet
    (root / "table.csv").write_text(text)
    assert sum(map(len, load_data(config, 0).parts.values())) == len(SUBJECTS)
    (root := tmp_path / "json").mkdir()
    config = listed(root, json.dumps({"training": [entry(s) for s in SUBJECTS]}), key=r"p\d")
    assert sum(map(len, load_data(config, 0).parts.values())) == len(SUBJECTS)


def test_odd_names_are_kept(tmp_path):
    """Names in any script, of any length, with signs that mean something elsewhere."""
    names = ["Müller 日本", "a:b.npz:c", "x" * 240, "%s{0}$HOME#;'\"[*]"]
    for modality in ("t1", "t2"):
        (tmp_path / modality).mkdir()
        for name in names:
            save_image(tmp_path / modality / f"{name}.png", pixels(name, modality))
    splits = load_data(FoldersConfig(root=str(tmp_path), folders={"t1": "t1", "t2": "t2"}), 0)
    assert sorted(name for part in splits.parts.values() for name in part.ids) == sorted(names)


# --------------------------------------------------------------------------------------------------------------- images


@refused("t1/p1.png", "cannot be read")
def png_cut_short(root):
    config = pngs(root)
    cut(root / "t1" / "p1.png")
    return config


@refused("t1/p1.png", "cannot be read")
def png_of_no_bytes(root):
    config = pngs(root)
    (root / "t1" / "p1.png").write_bytes(b"")
    return config


@refused("t2/p1.png", "cannot be read")
def png_that_is_text(root):
    config = pngs(root)
    (root / "t2" / "p1.png").write_text("hello")
    return config


@refused("t1/p1.png", "cannot be read")
def png_that_is_a_program_for_a_printer(root):
    config = pngs(root)
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    (root / "t1" / "p1.png").write_text(text)
    return config


@refused("t1/p1.png", "cannot be read")
def png_with_a_wrong_checksum(root):
    config = pngs(root)
    content = bytearray((root / "t1" / "p1.png").read_bytes())
    content[45] ^= 1
    (root / "t1" / "p1.png").write_bytes(content)
    return config


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@refused("t1/p1.png", "cannot be read", "pixels")
def png_bomb(root):
    config = pngs(root)
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 2**20)) + chunk(b"IEND", b"")
    (root / "t1" / "p1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return config


@refused("t1/p1.png", "16-bit", "without loss")
def png_in_colours_of_16_bits(root):
    config = pngs(root)
    head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + bytes(range(12)))) + chunk(b"IEND", b"")
    (root / "t1" / "p1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return config


@refused("m/p0.png", "a mask of [4, 5] pixels", "[8, 10]", "data.size")
def png_masks_of_another_size(root):
    config = pngs(root, masks={"lesion_mask": "m"})
    (root / "m").mkdir()
    for subject in SUBJECTS:
        save_image(root / "m" / f"{subject}.png", pixels(subject)[:4, :5])
    return config


@refused("t1", "minmax", "a single value")
def npy_of_values_too_near_to_each_other(root):
    config = npys(root, intensity={"kind": "minmax"})
    for subject in SUBJECTS:
        np.save(root / "t1" / f"{subject}.npy", pixels(subject, dtype=np.float64) * 1e-300)
    return config


@refused("t1/p1.png", "3 images")
def png_that_moves(root):
    config = pngs(root)
    frames = [Image.fromarray(pixels(str(number))) for number in range(3)]
    frames[0].save(root / "t1" / "p1.png", save_all=True, append_images=frames[1:])
    return config


@refused("t1/p1.png", "9x8 pixels", "unlike", "t1/p0.png")
def png_of_another_size(root):
    config = pngs(root)
    save_image(root / "t1" / "p1.png", pixels("p1", shape=(9, 8)))
    return config


@refused("t1/p1.png", "9x8 pixels", "unlike", "t1/p0.png", "data.sizes=any")
def png_of_another_size_averaged_down(root):
    config = pngs(root).model_copy(update={"size": (4, 4)})
    save_image(root / "t1" / "p1.png", pixels("p1", shape=(9, 8)))
    return config


@refused("t1/p1.png", "3 channel(s)", "unlike")
def png_in_colour_among_grey(root):
    config = pngs(root)
    save_image(root / "t1" / "p1.png", pixels("p1", shape=(8, 10, 3)))
    return config


@refused("t1/p1.png", "uint16", "unlike")
def png_of_16_bits_among_8(root):
    config = pngs(root)
    save_image(root / "t1" / "p1.png", pixels("p1", dtype=np.uint16))
    return config


@refused("t1/p1.png", "11 pixels wide", "side by side")
def png_of_odd_width_as_two_images(root):
    pngs(root)
    save_image(root / "t1" / "p1.png", pixels("p1", shape=(8, 11)))
    return FoldersConfig(root=str(root), folders={"a": "t1/*.png:left", "b": "t1/*.png:right"})


@refused("t1/p1.jpg", "cannot be read")
def jpeg_cut_short(root):
    config = folders(root, ".jpg", save_image)
    cut(root / "t1" / "p1.jpg")
    return config


@refused("t2/p3.tif", "cannot be read")
def tiff_cut_short(root):
    config = folders(root, ".tif", save_image)
    cut(root / "t2" / "p3.tif")
    return config


@refused("t1/p1.tif", "2 images")
def tiff_of_two_pages(root):
    config = folders(root, ".tif", save_image)
    tifffile.imwrite(root / "t1" / "p1.tif", np.stack([pixels("a"), pixels("b")]), photometric="minisblack")
    return config


@refused("t1/p1.tif", "without loss")
def tiff_of_32_bit_integers(root):
    config = folders(root, ".tif", save_image)
    tifffile.imwrite(root / "t1" / "p1.tif", pixels("p1", dtype=np.int32))
    return config


def float_tiffs(root):
    return folders(root, ".tif", lambda path, values: tifffile.imwrite(path, (values / 255).astype(np.float32)))


@refused("modality t1", "outside [0, 1]", "data.intensity")
def tiff_of_floats_beyond_1(root):
    config = float_tiffs(root)
    tifffile.imwrite(root / "t1" / "p1.tif", pixels("p1").astype(np.float32))
    return config


@refused("t1/p1.tif", "NaN")
def tiff_with_nan(root):
    config = float_tiffs(root)
    tifffile.imwrite(root / "t1" / "p1.tif", np.full((8, 10), np.nan, np.float32))
    return config


# --------------------------------------------------------------------------------------------------------------- arrays


NPY = {
    "npy_of_no_bytes": (b"", "cannot be read"),
    "npy_cut_short": (npy_head((8, 10)) + b"\0" * 79, "could only read 79"),
    "npy_cut_in_its_head": (npy_head((8, 10))[:20], "cannot be read"),
    "npy_that_is_text": (b"1 2 3\n", "cannot be read"),
    "npy_that_declares_terabytes": (npy_head((2**20, 2**20)), "GiB"),
    "npy_that_declares_less_than_nothing": (npy_head((-8, 10)), "declares"),
    "npy_whose_head_is_a_call": (npy_head("__import__('os').getcwd()"), "cannot be read"),
    "npy_of_objects": (np.array([{}, []], dtype=object), "Python objects"),
    "npy_of_names": (np.full((8, 10), "a"), "no numbers"),
    "npy_of_dates": (np.zeros((8, 10), "M8[s]"), "no numbers"),
    "npy_of_records": (np.zeros((8, 10), [("a", "u1"), ("b", "f4")]), "no numbers"),
    "npy_of_complex_numbers": (np.ones((8, 10), complex), "complex128"),
    "npy_with_nan": (np.full((8, 10), np.nan), "NaN"),
    "npy_with_infinity": (np.full((8, 10), np.inf), "NaN or infinite"),
    "npy_of_half_numbers_with_nan": (np.full((8, 10), np.nan, np.float16), "NaN"),
    "npy_without_values": (np.zeros((0, 10), np.uint8), "no values"),
    "npy_of_one_number": (np.uint8(3), "data.read.dimensions"),
    "npy_of_five_axes": (np.zeros((2, 3, 4, 5, 6), np.uint8), "data.read.dimensions"),
    "npy_of_another_type": (pixels("p1").astype(np.float32), "unlike"),
    "npy_of_other_channels": (pixels("p1", shape=(8, 10, 2)), "2 channel(s)"),
}


def _of(content):
    def make(root):
        config = npys(root)
        if isinstance(content, bytes):
            (root / "t1" / "p1.npy").write_bytes(content)
        else:
            np.save(root / "t1" / "p1.npy", content, allow_pickle=True)
        return config

    return make


REFUSED += [pytest.param(_of(content), ("t1/p1.npy", word), id=name) for name, (content, word) in NPY.items()]


@refused("t1/p1.npy", "GiB")
def npy_of_a_terabyte_of_zeros(root):
    config = npys(root, workers=0)  # which such a file alone would start
    huge(root / "t1" / "p1.npy", npy_head((2**20, 2**20)))
    return config


@refused("modality t1", "int64", "data.intensity")
def npy_of_a_type_without_a_range(root):
    return folders(root, ".npy", lambda path, values: np.save(path, values.astype(np.int64)))


@refused("t1/p1.npz", "cannot be read")
def npz_cut_short(root):
    config = npzs(root)
    cut(root / "t1" / "p1.npz")
    return config


@refused("t1/p1.npz", "cannot be read", "CRC")
def npz_with_a_wrong_checksum(root):
    config = npzs(root)
    content = bytearray((root / "t1" / "p1.npz").read_bytes())
    content[content.index(b"\n", 60) + 5] ^= 1
    (root / "t1" / "p1.npz").write_bytes(content)
    return config


@refused("t1/p1.npz", "name one of its arrays", "x, y")
def npz_of_two_arrays(root):
    config = npzs(root)
    np.savez(root / "t1" / "p1.npz", x=pixels("a"), y=pixels("b"))
    return config


@refused("t1/p1.npz", "empty")
def npz_of_no_arrays(root):
    config = npzs(root)
    np.savez(root / "t1" / "p1.npz")
    return config


@refused("t1/p1.npz", "no array 'x'", "y")
def npz_without_the_array(root):
    npzs(root)
    np.savez(root / "t1" / "p1.npz", y=pixels("b"))
    return FoldersConfig(root=str(root), folders={"t1": "t1/*.npz:x", "t2": "t2/*.npz:x"})


@refused("t1/p1.npz", "GiB")
def npz_bomb(root):
    config = npzs(root)
    with zipfile.ZipFile(root / "t1" / "p1.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy_head((2**18, 2**18)) + b"\0" * 2**24)
    return config


@refused("t1/p1.npz", "cut short")
def npz_that_declares_more_than_it_holds(root):
    config = npzs(root)
    with zipfile.ZipFile(root / "t1" / "p1.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy_head((2**15, 2**16)) + b"\0" * 2**20)
    return config


@refused("t1/p1.npz", "two of its arrays have one name")
def npz_of_one_name_twice(root):
    config = npzs(root)
    with zipfile.ZipFile(root / "t1" / "p1.npz", "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("x.npy", archive.read("x.npy"))
    return config


@refused("t1/p1.npz", "Python objects")
def npz_of_objects(root):
    config = npzs(root)
    np.savez(root / "t1" / "p1.npz", x=np.array([{}], dtype=object))
    return config


@refused("t1/p1.h5", "cannot be read")
def hdf5_cut_short(root):
    config = h5s(root)
    cut(root / "t1" / "p1.h5")
    return config


@refused("t1/p1.h5", "cannot be read")
def hdf5_that_is_text(root):
    config = h5s(root)
    (root / "t1" / "p1.h5").write_text("hello")
    return config


@refused("t1/p1.h5", "name one of its arrays", "x, y")
def hdf5_of_two_arrays(root):
    config = h5s(root)
    with h5py.File(root / "t1" / "p1.h5", "w") as file:
        file["x"], file["y"] = pixels("a"), pixels("b")
    return config


@refused("t1/p1.h5", "no numbers")
def hdf5_of_names(root):
    config = h5s(root)
    with h5py.File(root / "t1" / "p1.h5", "w") as file:
        file["x"] = "hello"
    return config


@refused("t1/p1.h5", "GiB")
def hdf5_that_declares_terabytes(root):
    config = h5s(root)
    with h5py.File(root / "t1" / "p1.h5", "w") as file:
        file.create_dataset("x", (2**20, 2**20), "u1", chunks=(1024, 1024))
    return config


@refused("t1/p1.h5", "'x' was declared but never written")
def hdf5_of_gigabytes_never_written(root):
    config = h5s(root)
    with h5py.File(root / "t1" / "p1.h5", "w") as file:
        file.create_dataset("x", (40000, 45000), "f4", chunks=(1000, 1000))
    return config


@refused("t1/p0.h5", "no array 'a/x'")
def hdf5_whose_link_leads_nowhere(root):
    h5s(root)
    with h5py.File(root / "t1" / "p0.h5", "w") as file:
        file["a/x"] = h5py.ExternalLink("gone.h5", "x")
    return FoldersConfig(root=str(root), folders={"t1": "t1/*.h5:a/x", "t2": "t2/*.h5:x"}, unpaired="keep")


@refused("t1/p1.tif", "8-bit pixels", "with a sign")
def tiff_of_8_bits_with_a_sign(root):
    config = folders(root, ".tif", save_image)
    tifffile.imwrite(root / "t1" / "p1.tif", pixels("p1").astype(np.int8))
    return config


def tiff_of_channels(photometric, channels):
    """Return a case in which every file of t1 has channels beside those that its kind of pixels means."""

    def make(root):
        config = folders(root, ".tif", save_image)
        for subject in SUBJECTS:
            values = pixels(subject, shape=(8, 10, channels))
            named = {"photometric": photometric, "planarconfig": "contig"}
            tifffile.imwrite(root / "t1" / f"{subject}.tif", values, extrasamples=["unspecified"], **named)
        return config

    return make


CHANNELS = {
    "tiff_of_grey_and_another_channel": tiff_of_channels("minisblack", 2),
    "tiff_of_colours_and_another_channel": tiff_of_channels("rgb", 4),
}
REFUSED += [pytest.param(make, ("t1/p0.tif", "neither colour"), id=name) for name, make in CHANNELS.items()]


@refused("t1/p1.tif", "16-bit pixels", "0 as white")
def tiff_of_16_bits_with_0_as_white(root):
    config = folders(root, ".tif", lambda path, values: save_image(path, values.astype(np.uint16)))
    tifffile.imwrite(root / "t1" / "p1.tif", pixels("p1", dtype=np.uint16), photometric="miniswhite")
    return config


@refused("data.images.t2", "3 samples", "4")
def arrays_of_unequal_length(root):
    return arrays(root, t2=pixels("a", shape=(3, 8, 10)))


@refused("data.images.t1", "no images")
def arrays_without_samples(root):
    return arrays(root, t1=np.zeros((0, 8, 10), np.uint8), t2=np.zeros((0, 8, 10), np.uint8), who=np.arange(0))


@refused("data.images.t1", "complex128")
def arrays_of_complex_numbers(root):
    return arrays(root, t1=np.ones((4, 8, 10), complex))


@refused("x.npz", "cannot be read", "pickle")
def arrays_of_objects(root):
    return arrays(root, t1=np.array([{}, {}, {}, {}], dtype=object))


@refused("modality t2", "NaN", "2")
def arrays_with_nan(root):
    x = pixels("a", shape=(4, 8, 10), dtype=np.float32)
    x[2, 3, 4] = np.nan
    return arrays(root, t2=x)


@refused("x.npz", "no array 't2'", "t1")
def arrays_that_lack_one(root):
    config = arrays(root)
    np.savez(root / "x.npz", t1=pixels("a", shape=(4, 8, 10)), who=np.arange(4))
    return config


@refused("x.npz", "cannot be read")
def arrays_cut_short(root):
    config = arrays(root)
    cut(root / "x.npz", 0.9)
    return config


@refused("data.groups", "one name or number per sample")
def arrays_with_groups_of_complex_numbers(root):
    return arrays(root, who=np.arange(4) * 1j)


@refused("the split leaks", "subject '0'", "train and test")
def arrays_whose_split_leaks(root):
    config = arrays(root, who=np.array([0, 0, 1, 2]), part=np.array(["train", "test", "train", "val"]))
    return config.model_copy(update={"split": "x.npz:part"})


# -------------------------------------------------------------------------------------------------------------- volumes


@refused("t1/p1.nii.gz", "1e+300", "float32")
def nifti_of_values_that_a_float32_does_not_hold(root):
    config = niftis(root)
    nibabel.save(nibabel.Nifti1Image(np.full((4, 5, 6), 1e300), np.eye(4)), root / "t1" / "p1.nii.gz")
    return config


@refused("t2/p1.nii.gz", "cannot be resampled", "t1/p1.nii.gz", "no voxel of one lies within the other")
def nifti_that_shares_no_place_with_its_partner(root):
    config = niftis(root, geometry={"resample": "to_first"})
    far = np.eye(4)
    far[0, 3] = 500
    nibabel.save(nibabel.Nifti1Image(volume("p1", "t2"), far), root / "t2" / "p1.nii.gz")
    return config


@refused("t1/p1.nii", "cannot be read")
def nifti_cut_short(root):
    config = niftis(root, ".nii")
    cut(root / "t1" / "p1.nii")
    return config


@refused("t1/p1.nii.gz", "cannot be read")
def nifti_cut_short_and_compressed(root):
    config = niftis(root)
    cut(root / "t1" / "p1.nii.gz")
    return config


@refused("t1/p1.nii.gz", "cannot be read")
def nifti_of_no_bytes(root):
    config = niftis(root)
    (root / "t1" / "p1.nii.gz").write_bytes(b"")
    return config


@refused("t1/p1.nii.gz", "cannot be read")
def nifti_that_is_not_compressed(root):
    config = niftis(root)
    path = root / "t1" / "p1.nii.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    return config


@refused("t1/p1.nii.gz", "cannot be read")
def nifti_with_a_wrong_checksum(root):
    config = niftis(root)
    path = root / "t1" / "p1.nii.gz"
    path.write_bytes(path.read_bytes()[:-8] + b"\1\2\3\4" + path.read_bytes()[-4:])
    return config


def nifti_head(dims, code=2):
    """Return the head of a NIfTI file that declares `dims` and a type."""
    header = nibabel.Nifti1Header()
    header.set_data_shape([1] * len(dims))
    header["dim"][1 : len(dims) + 1] = dims
    header["datatype"], header["bitpix"] = code, 8
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + b"\0" * 4


@refused("t1/p1.nii", "GiB")
def nifti_that_declares_terabytes(root):
    config = niftis(root, ".nii", workers=0)
    huge(root / "t1" / "p1.nii", nifti_head((32000, 32000, 1000)))
    return config


@refused("t1/p1.nii.gz", "GiB")
def nifti_bomb(root):
    config = niftis(root)
    (root / "t1" / "p1.nii.gz").write_bytes(gzip.compress(nifti_head((32000, 32000, 1000)) + b"\0" * 2**22))
    return config


@refused("t1/p1.nii", "affine")
def nifti_on_a_plane(root):
    config = niftis(root, ".nii")
    content = bytearray((root / "t1" / "p1.nii").read_bytes())
    content[280:328] = struct.pack("<12f", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)  # the rows of the affine
    (root / "t1" / "p1.nii").write_bytes(content)
    return config


def nifti_changed(place, kind, *values):
    """Return a case in which the head of `t1/p1.nii` holds other values at a place."""

    def make(root):
        config = niftis(root, ".nii")
        content = bytearray((root / "t1" / "p1.nii").read_bytes())
        struct.pack_into(kind, content, place, *values)
        (root / "t1" / "p1.nii").write_bytes(content)
        return config

    return make


HEADS = {
    "nifti_of_infinite_scale": (nifti_changed(112, "<f", np.inf), ["scl_slope inf", "0 stands for none"]),
    "nifti_whose_scale_is_nan": (nifti_changed(112, "<f", np.nan), ["scl_slope nan"]),
    "nifti_that_begins_in_its_head": (nifti_changed(108, "<f", 0.0), ["vox_offset 0", "352"]),
}
REFUSED += [pytest.param(make, ("t1/p1.nii", *words), id=name) for name, (make, words) in HEADS.items()]


def save_two_ways(path, sform, qform, codes):
    image = nibabel.Nifti1Image(np.stack([pixels("p1")] * 3, -1), sform)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nibabel.save(image, path)


@refused("t1/p1.nii.gz", "sform (axes RAS)", "qform (axes LAS)", "mirrored", "set_qform(None)")
def nifti_mirrored_by_one_form(root):
    config = niftis(root)
    save_two_ways(root / "t1" / "p1.nii.gz", GRID, GRID @ np.diag([-1.0, 1, 1, 1]), (4, 1))
    return config


@refused("t1/p1.nii.gz", "sform", "qform", "2 voxels apart")
def nifti_moved_by_one_form(root):
    config = niftis(root)
    save_two_ways(root / "t1" / "p1.nii.gz", GRID, GRID + np.eye(4, k=3) * 2, (1, 1))
    return config


@refused("t1/p1.nii")
def nifti_of_negative_size(root):
    config = niftis(root, ".nii")
    (root / "t1" / "p1.nii").write_bytes(nifti_head((-4, 5, 6)) + b"\0" * 120)
    return config


def other_volume(words, values=None, affine=None):
    """Return a case in which `t1/p1.nii.gz` holds other values or lies elsewhere."""

    def make(root):
        config = niftis(root)
        save_nifti(root / "t1" / "p1.nii.gz", volume("p1") if values is None else values, affine)
        return config

    return make, ("t1/p1.nii.gz", *words)


GRID = np.diag([1.0, 1.0, 2.0, 1.0])
SAME = np.stack([pixels("p1")] * 3, -1)
NAN_AFFINE = GRID.copy()
NAN_AFFINE[0, 3] = np.nan
VOLUMES = {
    "nifti_of_five_dimensions": other_volume(["5 dimensions"], np.zeros((8, 10, 3, 2, 2), np.uint8)),
    "nifti_of_four_dimensions": other_volume(["2 volumes", "p1.nii.gz:0"], np.zeros((8, 10, 3, 2), np.uint8)),
    "nifti_of_complex_numbers": other_volume(["complex64"], np.ones((8, 10, 3), np.complex64)),
    "nifti_of_colours": other_volume(["no numbers"], np.zeros((8, 10, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
    "nifti_with_nan": other_volume(["NaN"], np.full((8, 10, 3), np.nan, np.float32)),
    "nifti_that_lies_nowhere": other_volume(["affine"], SAME, NAN_AFFINE),
}
REFUSED += [pytest.param(make, words, id=name) for name, (make, words) in VOLUMES.items()]
ELSEWHERE = {
    "nifti_of_another_shape": other_volume(["t2/p1.nii.gz", "shape"], SAME[:, :9]),
    "nifti_of_another_spacing": other_volume(["t2/p1.nii.gz", "spacing"], SAME, np.diag([1.0, 1.2, 2.0, 1.0])),
    "nifti_that_lies_elsewhere": other_volume(["t2/p1.nii.gz", "mm"], SAME, GRID + np.eye(4, k=3) * 5),
}
REFUSED += [pytest.param(make, words, id=name) for name, (make, words) in ELSEWHERE.items()]


@refused("t1/p1.nii.gz", "mask_of.nii.gz", "shape")
def mask_of_another_shape(root):
    niftis(root)
    save_nifti(root / "mask_of.nii.gz", np.zeros((4, 4, 4), np.uint8))
    text = "subject,t1,t2,lesion_mask\n"
    text += "".join(f"{s},t1/{s}.nii.gz,t2/{s}.nii.gz,{'mask_of.nii.gz' if s == 'p1' else ''}\n" for s in SUBJECTS)
    (root / "table.csv").write_text(text)
    return TableConfig(root=str(root), table="table.csv", intensity=WINDOW)


@refused("mask.npy", "one channel")
def mask_of_two_channels(root):
    pngs(root)
    np.save(root / "mask.npy", np.zeros((8, 10, 2), np.uint8))
    text = "subject,t1,t2,lesion_mask\n"
    text += "".join(f"{s},t1/{s}.png,t2/{s}.png,{'mask.npy' if s == 'p1' else ''}\n" for s in SUBJECTS)
    (root / "table.csv").write_text(text)
    return TableConfig(root=str(root), table="table.csv")


@refused("data.slices.axis", "0, 1 or 2")
def slices_of_what_knows_no_axes(root):
    settings = {"slices": {"axis": "axial"}, "read": {"dimensions": 3}}
    return folders(root, ".npy", lambda path, values: np.save(path, values[None]), **settings)


@refused("t1/p1/b.dcm", "cannot be read")
def dicom_of_no_bytes(root):
    config = dicoms(root)
    (root / "t1" / "p1" / "b.dcm").write_bytes(b"")
    return config


@refused("t1/p1/b.dcm")
def dicom_cut_short(root):
    config = dicoms(root)
    cut(root / "t1" / "p1" / "b.dcm", 0.99)
    return config


@refused("t1/p1", "b.dcm", "decoded")
def dicom_with_too_few_pixels(root):
    config = dicoms(root)
    save_slice(root / "t1" / "p1" / "b.dcm", volume("p1")[1], (0, 0, 3), uid_of(root), PixelData=b"\0\0\0\0")
    return config


@refused("t1/p1", "b.dcm", "without an image")
def dicom_without_pixels(root):
    config = dicoms(root)
    save_slice(root / "t1" / "p1" / "b.dcm", volume("p1")[1], (0, 0, 3), uid_of(root), PixelData=None)
    return config


@refused("t1/p1", "slices are missing between a.dcm and c.dcm")
def dicom_series_that_lacks_a_slice(root):
    config = dicoms(root)
    (root / "t1" / "p1" / "b.dcm").unlink()
    save_slice(root / "t1" / "p1" / "e.dcm", volume("p1")[1], (0, 0, 12), uid_of(root))
    return config


@refused("t1/p1", "e.dcm lies where", "a.dcm does")
def dicom_series_with_a_slice_twice(root):
    config = dicoms(root)
    save_slice(root / "t1" / "p1" / "e.dcm", volume("p1")[0], (0, 0, 0), uid_of(root))
    return config


@refused("t1/p1", "2 series in one folder")
def dicom_series_of_two(root):
    config = dicoms(root)
    save_slice(root / "t1" / "p1" / "e.dcm", volume("p1")[0], (0, 0, 12), generate_uid())
    return config


@refused("t1/p1", "b.dcm", "ImagePositionPatient")
def dicom_without_a_place(root):
    config = dicoms(root)
    save_slice(root / "t1" / "p1" / "b.dcm", volume("p1")[1], (0, 0, 3), uid_of(root), ImagePositionPatient=None)
    return config


@refused("t1/p1", "b.dcm", "ImageOrientationPatient differs")
def dicom_slice_that_is_tilted(root):
    config = dicoms(root)
    tilt = [1, 0, 0, 0, 0.9, 0.43589]
    save_slice(root / "t1" / "p1" / "b.dcm", volume("p1")[1], (0, 0, 3), uid_of(root), ImageOrientationPatient=tilt)
    return config


@refused("t1/p1", "b.dcm", "7 frames")
def dicom_of_several_frames(root):
    config = dicoms(root)
    save_slice(root / "t1" / "p1" / "b.dcm", volume("p1")[1], (0, 0, 3), uid_of(root), NumberOfFrames=7)
    return config


# ---------------------------------------------------------------------------------------------- sounds, rows of numbers


@refused("t1/p1.wav")
def sound_cut_short(root):
    config = sounds(root)
    cut(root / "t1" / "p1.wav")
    return config


@refused("t1/p1.wav")
def sound_of_no_bytes(root):
    config = sounds(root)
    (root / "t1" / "p1.wav").write_bytes(b"")
    return config


@refused("t1/p1.wav", "a sound without samples")
def sound_without_samples(root):
    config = sounds(root)
    wavfile.write(root / "t1" / "p1.wav", 8000, np.zeros(0, np.int16))
    return config


@refused("t1/p1.wav", "NaN")
def sound_with_nan(root):
    config = sounds(root)
    wavfile.write(root / "t1" / "p1.wav", 8000, np.full(900, np.nan, np.float32))
    return config


def sound_changed(place, kind, *values):
    """Return a case in which the head of `t1/p1.wav` holds other values at a place, before two million samples."""

    def make(root):
        config = sounds(root)
        wavfile.write(root / "t1" / "p1.wav", 8000, np.zeros(2 * 10**6, np.int16))
        content = bytearray((root / "t1" / "p1.wav").read_bytes())
        struct.pack_into(kind, content, place, *values)
        (root / "t1" / "p1.wav").write_bytes(content)
        return config

    return make


SOUNDS = {
    "sound_without_a_rate": (sound_changed(24, "<II", 0, 0), "0 samples per second"),
    "sound_of_a_rate_beyond_all": (sound_changed(24, "<II", 2**31 - 1, 2**32 - 2), "2147483647 samples per second"),
    "sound_that_grows_to_gigabytes": (sound_changed(24, "<II", 1, 2), "GiB for one sample"),
    "sound_without_channels": (sound_changed(22, "<H", 0), "no channel"),
}
REFUSED += [pytest.param(make, ("t1/p1.wav", words), id=name) for name, (make, words) in SOUNDS.items()]


ROWS = {
    "rows_in_another_order_of_columns": ("y,x\n" + "1,2\n" * 10, "its columns are y, x, those of"),
    "rows_of_other_columns": ("x,z\n" + "1,2\n" * 10, "its columns are x, z, those of"),
    "rows_of_unequal_length": ("x,y\n1,2\n3\n", "row 2 has 1 cells"),
    "rows_with_a_word": ("x,y\n1,2\n3,four\n", "row 2, column 'y'"),
    "rows_with_nan": ("x,y\n1,2\n3,nan\n", "NaN"),
    "rows_with_infinity": ("x,y\n1,2\n3,1e999\n", "NaN or infinite"),
    "rows_of_one_name_twice": ("x,x\n1,2\n3,4\n", "2 column(s) 'x'"),
    "rows_with_a_column_without_a_name": (",x,y\n0,1,2\n1,3,4\n", "column 1 has no name"),
    "rows_without_names": (".1,.2\n.3,.4\n", "a line of names above"),
    "rows_of_digits_with_an_underscore": ("x,y\n1_0,2\n", "'1_0' is no number"),
    "rows_of_names_alone": ("x,y\n", "no values"),
    "rows_of_nothing": ("", "no values"),
    "rows_that_are_a_program": ("\0\1\2\xff\xfe", "t1/p1.csv"),
    "rows_that_end_in_a_quote": ('x,y\n1,2\n3,"4\n', "cannot be read"),
    "rows_longer_than_others": ("x,y\n" + "1,2\n" * 11, "unlike"),
}


def _rows_of(text):
    def make(root):
        config = rows(root)
        (root / "t1" / "p1.csv").write_text(text, encoding="latin1")
        return config

    return make


REFUSED += [pytest.param(_rows_of(text), ("t1/p1.csv", word), id=name) for name, (text, word) in ROWS.items()]


@refused("t1/p1.csv", "GiB")
def rows_of_a_terabyte(root):
    config = rows(root)
    huge(root / "t1" / "p1.csv")
    return config.model_copy(update={"workers": 0})


# -------------------------------------------------------------------------------------------------- names, links, kinds


@refused("unprintable", "rename")
def name_with_a_line_break(root):
    config = pngs(root)
    for modality in ("t1", "t2"):
        save_image(root / modality / "p\n4.png", pixels("p4", modality))
    return config


@refused("unprintable", "rename")
def name_that_is_not_unicode(root):
    config = pngs(root)
    for modality in ("t1", "t2"):
        (root / modality / "p1.png").rename(os.fsdecode(os.fsencode(root / modality) + b"/p\xff.png"))
    return config


@refused("t1/again", "link that leads back")
def link_to_a_folder_above(root):
    config = pngs(root)
    (root / "t1" / "again").symlink_to("..")
    return config


@refused("t1/p1.png", "a link that leads nowhere")
def link_to_itself(root):
    config = pngs(root)
    for modality in ("t1", "t2"):
        (root / modality / "p1.png").unlink()
        (root / modality / "p1.png").symlink_to("p1.png")
    return config


@refused("t1/p1.png", "a link that leads nowhere")
def link_to_nothing(root):
    config = pngs(root)
    for modality in ("t1", "t2"):
        (root / modality / "p1.png").unlink()
        (root / modality / "p1.png").symlink_to("gone.png")
    return config


@refused("t1/p1.png", "no file")
def link_to_a_device(root):
    config = pngs(root)
    (root / "t1" / "p1.png").unlink()
    (root / "t1" / "p1.png").symlink_to(os.path.join(os.sep, "dev", "zero"))
    return config


@refused("t1/p1.png", "no file")
def pipe_in_a_folder(root):
    config = pngs(root)
    for modality in ("t1", "t2"):
        (root / modality / "p1.png").unlink()
        os.mkfifo(root / modality / "p1.png")
    return config


@refused("t1/p1.npy", "no file")
def pipe_in_a_list(root):
    npys(root)
    (root / "t1" / "p1.npy").unlink()
    os.mkfifo(root / "t1" / "p1.npy")
    places = {m: [f"{m}/{s}.npy" for s in SUBJECTS] for m in ("t1", "t2")}
    return FoldersConfig(root=str(root), folders=places)


@refused("table.csv", "no file")
def pipe_as_a_table(root):
    os.mkfifo(root / "table.csv")
    return TableConfig(root=str(root), table="table.csv")


@refused("dataset.json", "no file")
def pipe_as_a_list_of_samples(root):
    os.mkfifo(root / "dataset.json")
    return MsdConfig(root=str(root))


@refused("t1/p1.png", "Permission denied")
def file_that_may_not_be_read(root):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    config = pngs(root)
    (root / "t1" / "p1.png").chmod(0)
    return config


@refused("t1", "holds no file that can be read")
def folder_that_is_empty(root):
    config = pngs(root)
    for path in (root / "t1").iterdir():
        path.unlink()
    return config


@refused("gone", "no such folder", "data.folders.t1")
def folder_that_is_missing(root):
    return pngs(root).model_copy(update={"folders": {"t1": "gone", "t2": "t2"}})


@refused("no t1 for 'p1'", "t2/p1.png")
def folder_called_like_a_file(root):
    config = pngs(root)
    (root / "t1" / "p1.png").unlink()
    (root / "t1" / "p1.png").mkdir()
    return config


@refused("t1/p1", "DICOM")
def folder_in_a_list(root):
    pngs(root)
    (root / "t1" / "p1.png").unlink()
    (root / "t1" / "p1.png").mkdir()
    places = {m: [f"{m}/{s}.png" for s in SUBJECTS] for m in ("t1", "t2")}
    return FoldersConfig(root=str(root), folders=places)


@refused("1 modality")
def modality_alone(root):
    return pngs(root).model_copy(update={"folders": {"t1": "t1"}})


@refused("1 group(s) are too few")
def subject_alone(root):
    config = pngs(root)
    for path in (*(root / "t1").glob("p[123].png"), *(root / "t2").glob("p[123].png")):
        path.unlink()
    return config


# -------------------------------------------------------------------------------------------------------------- pairing


@refused("no t1 for 'p1/s2'", "t2/p1_s2.png")
def slices_of_one_subject_swapped(root):
    for modality, number in (("t1", 1), ("t2", 2)):
        (root / modality).mkdir()
        for subject in SUBJECTS:
            save_image(
                root / modality / f"{subject}_s{number if subject == 'p1' else 1}.png", pixels(subject, modality)
            )
    key = r"(?P<subject>p\d)_(?P<slice>s\d)"
    return FoldersConfig(root=str(root), folders={"t1": "t1", "t2": "t2"}, key=key)


@refused("t1/p1_s", "is t1 of 'p1'", "and so is")
def slices_that_the_key_does_not_tell_apart(root):
    for modality in ("t1", "t2"):
        (root / modality).mkdir()
        for subject in SUBJECTS:
            for number in (1, 2):
                name = f"{subject}_s{number}.png"
                save_image(root / modality / name, pixels(f"{subject}{number}", modality))
    return FoldersConfig(root=str(root), folders={"t1": "t1", "t2": "t2"}, key=r"p1|.+")


@refused("is t1 of 'p1'", "p1.png", "p1.PNG")
def one_name_in_two_spellings(root):
    config = pngs(root)
    save_image(root / "t1" / "p1.PNG", pixels("other"))
    return config


@refused("t1/p1.jpg", "is t1 of 'p1'", "p1.png")
def one_image_in_two_formats(root):
    config = pngs(root)
    save_image(root / "t1" / "p1.jpg", pixels("p1"))
    return config


@refused("t2/p1.png", "is t2 of", "also t1 of", "a file of its own")
def one_file_for_two_modalities(root):
    config = pngs(root)
    (root / "t2" / "p1.png").unlink()
    (root / "t2" / "p1.png").symlink_to(root / "t1" / "p1.png")
    return config


@refused("1 image(s) lie in two parts", "'p", "t1")
def one_image_of_two_subjects(root):
    config = pngs(root)
    for subject in SUBJECTS[1:]:
        (root / "t1" / f"{subject}.png").write_bytes((root / "t1" / "p0.png").read_bytes())
    save_image(root / "t1" / "p1.png", pixels("p1"))
    splits = load_data(config.model_copy(update={"duplicates": "keep"}), 0)
    home = {name: part for part, dataset in splits.parts.items() for name in dataset.ids}
    twins = next((a, b) for a in SUBJECTS for b in SUBJECTS if home[a] == "train" and home[b] == "test")
    for subject in SUBJECTS:
        save_image(root / "t1" / f"{subject}.png", pixels(twins[0] if subject in twins else subject))
    return config


@refused("data.key", "does not match", "t1/p1.png")
def name_without_a_key(root):
    return pngs(root, key="p[023]")


@reported("2 file(s) left out", "t1/p4_x.png", "does not match")
def name_without_a_key_that_may_be_left_out(root):
    config = pngs(root, key="^p[0-9]$", unpairable="skip")
    for modality in ("t1", "t2"):
        save_image(root / modality / "p4_x.png", pixels("p4", modality))
    return config


# --------------------------------------------------------------------------------------------------------------- tables


TABLES = {
    "table_of_nothing": ("", ("table.csv", "empty")),
    "table_of_names_alone": ("subject,t1,t2\n", ("table.csv", "empty")),
    "table_of_rows_of_unequal_length": ("subject,t1,t2\n{row}p1,t1/p1.png\n", ("table.csv:5", "2 cells")),
    "table_of_one_name_twice": ("subject,t1,t1\n{row}", ("table.csv:1", "'t1' is there 2 times")),
    "table_with_an_open_quote": ('subject,t1,t2\n{row}p1,"t1/p1.png,t2\n', ("table.csv",)),
    "table_with_bytes_of_no_text": ("subject,t1,t2\n{row}p1,\0\1,\2\n", ("table.csv",)),
    "table_without_a_subject": ("name,t1,t2\n{row}", ("table.csv", "'subject'")),
    "table_with_a_subject_left_out": ("subject,t1,t2\n{row},t1/p1.png,t2/p1.png\n", ("table.csv:5", "no subject")),
    "table_that_names_a_missing_file": ("subject,t1,t2\n{row}p1,t1/gone.png,t2/p1.png\n", ("table.csv:5", "gone.png")),
    "table_with_a_row_twice": ("subject,t1,t2\n{row}p0,t1/p0.png,t2/p0.png\n", ("table.csv:5", "'p0'", "table.csv:2")),
    "table_with_one_id_for_two_patients": (
        "subject,t1,t2\n{row}p0,t1/p1.png,t2/p1.png\n",
        ("table.csv:5", "has the key 'p0'", "t1/p1.png", "t1/p0.png"),
    ),
    "table_with_two_ids_for_one_patient": (
        "subject,t1,t2\n{row}p9,t1/p0.png,t2/p0.png\n",
        ("t1/p0.png", "'p9'", "'p0'", "a file of its own"),
    ),
    "table_with_a_file_for_two_modalities": (
        "subject,t1,t2\n{row}p1,t1/p1.png,t1/p1.png\n",
        ("t1/p1.png", "also", "a file of its own"),
    ),
    "table_with_a_modality_left_out": ("subject,t1,t2\n{row}p1,t1/p1.png,\n", ("no t2 for 'p1'", "t1/p1.png")),
}


ABSENT = {
    "folder": (FoldersConfig, {"folders": {"t1": "none", "t2": "t2"}}, "none: no such folder"),
    "glob": (FoldersConfig, {"folders": {"t1": "*/*.nii", "t2": "t2"}}, "no file like */*.nii"),
    "list": (FoldersConfig, {"folders": {"t1": ["none.png"], "t2": "t2"}}, "none.png: no such file"),
    "empty_folder": (FoldersConfig, {"folders": {"t1": "empty", "t2": "t2"}}, "empty: holds no file"),
    "scans": (ScansConfig, {"folder": "none"}, "none: no such folder"),
    "empty_scans": (ScansConfig, {"folder": "empty"}, "empty: holds no scans"),
    "halves": (SideBySideConfig, {"folder": "none"}, "none: no such folder"),
    "empty_halves": (SideBySideConfig, {"folder": "empty"}, "empty: holds no image"),
    "bids": (BidsConfig, {"folder": "none"}, "none: no folder sub-..."),
    "table": (TableConfig, {"table": "none.csv"}, "none.csv: no such table"),
    "list_of_samples": (MsdConfig, {"dataset": "none.json"}, "none.json: no such file"),
    "file_of_a_table": (TableConfig, {"table": "table.csv"}, "no file 'none.png'"),
}


def _absent(kind, settings):
    def make(root):
        (root / "empty").mkdir()
        (root / "table.csv").write_text("subject,t1,t2\np1,none.png,none.png\n")
        return kind(root=str(root), source="the archive of old", **settings)

    return make


REFUSED += [
    pytest.param(_absent(kind, settings), (word, "; it comes from the archive of old;"), id=f"absent_{name}")
    for name, (kind, settings, word) in ABSENT.items()
]


def _table_of(text):
    return lambda root: table(root, text)


REFUSED += [pytest.param(_table_of(text), words, id=name) for name, (text, words) in TABLES.items()]


def split_table(root, parts, **settings):
    """Write a table of six samples of three subjects with the parts that are given."""
    pngs(root)
    text = "subject,session,t1,t2,split\n"
    for number, part in enumerate(parts):
        for modality in ("t1", "t2"):
            save_image(root / modality / f"{number}.png", pixels(str(number), modality))
        text += f"p{number // 2},{number % 2},t1/{number}.png,t2/{number}.png,{part}\n"
    (root / "table.csv").write_text(text)
    return TableConfig(root=str(root), table="table.csv", **settings)


@refused("the split leaks", "subject 'p1'", "both train and test")
def table_whose_split_leaks(root):
    return split_table(root, ["train", "train", "train", "test", "val", "val"])


@refused("data.table", "p1/0", "'holdout'", "train, val or test")
def table_with_an_unknown_part(root):
    return split_table(root, ["train", "train", "holdout", "holdout", "val", "val"])


@refused("data.table", "p1/0", "train, val or test")
def table_with_a_part_left_out(root):
    return split_table(root, ["train", "train", "", "", "val", "val"])


@refused("table.csv", "'split' is empty")
def table_without_any_part(root):
    return split_table(root, [""] * 6)


@refused("data.labels.grade", "names", "'high'", "numbers")
def labels_of_two_kinds(root):
    entries = [entry(s, grade="high" if s == "p1" else 3) for s in SUBJECTS]
    return listed(root, json.dumps({"training": entries}), key=r"p\d")


@refused("data.labels.age", "no label")
def labels_of_complex_numbers(root):
    return arrays(root, age=np.ones(4, complex)).model_copy(update={"labels": {"age": "x.npz:age"}})


@refused("data.stratify", "'grade'")
def labels_to_stratify_by_that_are_missing(root):
    return pngs(root, stratify="grade")


@refused("table.csv", "GiB")
def table_of_a_terabyte(root):
    config = table(root, "subject,t1,t2\n{row}")
    huge(root / "table.csv")
    return config


@refused("table.csv", "cannot be read")
def table_that_is_a_picture(root):
    config = table(root, "")
    (root / "table.csv").write_bytes((root / "t1" / "p0.png").read_bytes())
    return config


@refused("table.csv", "a folder")
def table_that_is_a_folder(root):
    config = table(root, "")
    (root / "table.csv").unlink()
    (root / "table.csv").mkdir()
    return config


@refused("table.csv", "cannot be read", "save it as UTF-8")
def table_in_utf_16(root):
    config = table(root, "")
    (root / "table.csv").write_bytes("subject,t1,t2\np0,t1/p0.png,t2/p0.png\n".encode("utf-16"))
    return config


@refused("gone.csv", "no such table")
def table_that_is_missing(root):
    return TableConfig(root=str(root), table="gone.csv")


# --------------------------------------------------------------------------------------------------------- dataset.json


LISTS = {
    "json_of_nothing": ("", ("cannot be read as JSON",)),
    "json_that_is_no_object": ("[1, 2]", ("no list `training`",)),
    "json_cut_short": ('{"training": [', ("cannot be read as JSON",)),
    "json_without_lists": ('{"name": "x"}', ("no list `training`",)),
    "json_with_a_list_that_is_none": ('{"training": {"a": 1}}', ("'training' is no list",)),
    "json_that_names_a_missing_file": (
        '{"training": [{rest}, {"t1": "t1/gone.png", "t2": "t2/p1.png"}]}',
        ("training 3", "gone.png"),
    ),
    "json_with_an_image_that_is_a_number": (
        '{"training": [{rest}, {"image": 7}]}',
        ("training 3", "the image must be"),
    ),
    "json_with_an_entry_twice": (
        '{"training": [{rest}, {"t1": "t1/p0.png", "t2": "t2/p0.png"}]}',
        ("training 3", "'p0'", "training 0"),
    ),
    "json_with_one_entry_in_two_lists": (
        '{"training": [{rest}], "test": [{"t1": "t1/p0.png", "t2": "t2/p0.png"}]}',
        ("test 0", "'p0'", "training 0"),
    ),
    "json_with_an_entry_without_images": ('{"training": [{rest}, {"age": 3}]}', ("training 3", "names no image")),
    "json_with_a_number_too_large": (
        '{"training": [{rest}, {"t1": "t1/p1.png", "t2": "t2/p1.png", "age": 1' + "0" * 400 + "}]}",
        ("training 3", "age", "too large"),
    ),
    "json_with_channels_that_are_none": ('{"modality": "T1", "training": [{rest}]}', ("channels are not named",)),
    "json_that_is_deep": ("[" * 100_000 + "]" * 100_000, ("cannot be read as JSON",)),
}


def _list_of(text):
    return lambda root: listed(root, text, key=r"p\d")


REFUSED += [pytest.param(_list_of(text), ("dataset.json", *words), id=name) for name, (text, words) in LISTS.items()]


@refused("dataset.json", "GiB")
def json_of_a_terabyte(root):
    config = listed(root, "{}")
    huge(root / "dataset.json")
    return config


# ------------------------------------------------------------------------------------------------- BIDS, names of scans


@refused("sub-02_run-2_T1w.nii.gz", "and so is sub-02_run-1_T1w.nii.gz", "data.entities (run)")
def bids_with_two_runs(root):
    config = bids(root)
    folder = root / "sub-02" / "anat"
    (folder / "sub-02_T1w.nii.gz").rename(folder / "sub-02_run-1_T1w.nii.gz")
    save_nifti(folder / "sub-02_run-2_T1w.nii.gz", volume("again"))
    return config


@refused("sub-03_T1w.nii.gz", "lies in sub-02 but is named sub-03")
def bids_with_a_file_in_another_folder(root):
    config = bids(root)
    (root / "sub-02" / "anat" / "sub-02_T1w.nii.gz").rename(root / "sub-02" / "anat" / "sub-03_T1w.nii.gz")
    return config


@refused("sub-02", "scan.nii.gz", "no BIDS name")
def bids_with_a_name_that_is_none(root):
    config = bids(root)
    save_nifti(root / "sub-02" / "anat" / "scan.nii.gz", volume("again"))
    return config


@refused("participants.tsv:3", "sub-01 is there twice")
def bids_with_a_participant_twice(root):
    config = bids(root)
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\nsub-01\t31\n")
    return config


@refused("no folder sub-...")
def bids_without_subjects(root):
    return BidsConfig(root=str(root))


@refused("IXI002-A-T9.nii.gz", "'T9' is no modality", "data.aliases")
def scan_of_an_unknown_modality(root):
    config = scans(root)
    save_nifti(root / "IXI002-A-T9.nii.gz", volume("again"))
    return config


@refused("IXI002-A-T1.nii.gz", "is t1 of", "IXI002-A-T1.nii")
def scan_twice(root):
    config = scans(root)
    save_nifti(root / "IXI002-A-T1.nii", volume("again"))
    return config


@refused("IXI009-seg.nii.gz", "of which there is no image")
def scan_of_a_mask_alone(root):
    config = scans(root)
    save_nifti(root / "IXI009-seg.nii.gz", volume("again"))
    return config


# ------------------------------------------------------------------------------------------------------ bytes at random


KINDS = {
    ".png": save_image,
    ".jpg": save_image,
    ".tif": save_image,
    ".npy": np.save,
    ".npz": lambda path, values: np.savez(path, x=values),
    ".h5": save_h5,
    ".nii": lambda path, values: save_nifti(path, values[None]),
    ".nii.gz": lambda path, values: save_nifti(path, values[None]),
    ".dcm": lambda path, values: save_slice(path, values.astype(np.int16), (0, 0, 0), generate_uid()),
    ".wav": save_sound,
    ".csv": save_rows,
}


@pytest.mark.parametrize("suffix", KINDS)
def test_damage_anywhere_is_an_error_or_none(tmp_path, suffix):
    """Files with a few bytes changed are read, or refused by name; no library's own error comes through."""
    rng = np.random.default_rng(list(suffix.encode()))
    path = tmp_path / f"a{suffix}"
    KINDS[suffix](path, pixels("p0"))
    whole, num_refused = path.read_bytes(), 0
    for _ in range(20):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(whole) // 2, 2 * len(whole))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read(str(path), ReadOptions()).values.size
            except MandorlaError as error:
                num_refused += 1
                assert str(path) in str(error)
    assert num_refused
