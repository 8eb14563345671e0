"""Files with random damage, of every kind: read, or refused in one line; never another error, never much memory."""

import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import wavfile

from mandorla.data.images import MOST_BYTES
from mandorla.data.places import ReadOptions
from mandorla.data.readers import read
from mandorla.errors import MandorlaError

LIMIT = 2**24  # bytes that a place may declare here
KINDS = ["a.png", "a.jpg", "a.tif", "a.npy", "a.npz", "a.nii", "a.nii.gz", "a.h5", "a.dcm", "a.wav", "a.csv"]
DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with a sound file of each kind."""
    nibabel, h5py, pydicom = (pytest.importorskip(name) for name in ("nibabel", "h5py", "pydicom"))
    folder, rng = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    pixels = rng.integers(0, 255, (12, 10), np.uint8)
    for name in ("a.png", "a.jpg", "a.tif"):
        Image.fromarray(pixels).save(folder / name)
    np.save(folder / "a.npy", pixels)
    np.savez_compressed(folder / "a.npz", x=pixels)
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(rng.integers(0, 99, (6, 5, 4)).astype(np.int16), np.eye(4)), folder / name)
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = pixels
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = pydicom.uid.MRImageStorage, pydicom.uid.generate_uid()
    image.Rows, image.Columns, image.BitsAllocated, image.BitsStored, image.HighBit = 12, 10, 8, 8, 7
    image.SamplesPerPixel, image.PixelRepresentation, image.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    image.PixelData = pixels.tobytes()
    image.save_as(folder / "a.dcm", enforce_file_format=True)
    wavfile.write(folder / "a.wav", 16000, rng.integers(-999, 999, 20000).astype(np.int16))
    (folder / "a.csv").write_text("x,y\n1,2\n3,4\n")
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_sound_files_are_read(whole, name):
    options = ReadOptions(dimensions=2 if name.endswith((".npy", ".npz", ".h5")) else None)
    assert read(str(whole / name), options).values.size


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(damage=DAMAGE, cut=st.floats(0, 1) | st.none(), more=st.binary(max_size=40))
def test_damaged_files_are_read_or_refused(whole, tmp_path_factory, name, damage, cut, more):
    content = bytearray((whole / name).read_bytes())
    for place, byte in damage:
        content[int(place * (len(content) - 1))] = byte
    content = content[: None if cut is None else int(cut * len(content))] + more
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    path.write_bytes(content)
    before = MOST_BYTES.set(LIMIT)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = read(str(path), ReadOptions()).values
        assert values.size and np.isfinite(values).all()
    except MandorlaError as error:
        assert "\n" not in str(error) and name in str(error)
    finally:
        MOST_BYTES.reset(before)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        path.unlink()
    assert peak < 40 * LIMIT
