"""The cache between the stages: it holds what the encoder gives, for every sample, and knows whose it is."""

import json
import math
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import latents_of, write_scans

import mandorla
from mandorla.checkpoint import load_tensors, save_tensors
from mandorla.config import load_settings
from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.recipe import Recipe, read_run
from mandorla.refiner.training import train_refiner
from mandorla.storage import locked
from mandorla.vae import encoding
from mandorla.vae.encoding import write_latents

RUNS = ["polydigits_run", "phantom_run", "signals_run"]


@pytest.mark.parametrize("fixture", RUNS)
@pytest.mark.parametrize("part", ["train", "val"])
def test_latents_are_what_the_model_encodes(fixture, part, request):
    run = request.getfixturevalue(fixture)
    model, cached = mandorla.load(run), latents_of(run)[0][part]
    dataset = getattr(model.data(), part)
    assert len(cached) == len(dataset)
    rows = np.arange(len(dataset))[::-3]
    batch, encoded = dataset.batch(rows), cached.batch(rows)
    latents = model.encode(batch.x, batch.present)
    assert encoded.latents.components.keys() == latents.components.keys() == model.vae.layout.shapes.keys()
    for name, z in latents.components.items():
        torch.testing.assert_close(encoded.latents.components[name], z, atol=1e-5, rtol=0)
    for name, present in batch.present.items():
        assert torch.equal(encoded.present[name], present)
        assert (encoded.std[name][present] > 0).all()
        assert (encoded.std[name][~present] == 0).all()


def test_written_once_and_again_when_the_weights_changed(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    manifest = run / "latents" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    write_latents(run)
    assert manifest.stat().st_mtime_ns == written, "nothing to do"
    weights, _ = load_tensors(run / "vae" / "weights.safetensors")
    name = next(name for name in weights if name.endswith("read_shared.1.bias") or "read_shared" in name)
    save_tensors(run / "vae" / "weights.safetensors", weights | {name: weights[name] + 1})
    with pytest.raises(MandorlaError, match="was made by other weights than .* run `mandorla encode"):
        latents_of(run)
    before = json.loads(manifest.read_text())["weights"]
    write_latents(run)
    assert json.loads(manifest.read_text())["weights"] != before
    latents_of(run)


def test_made_anew_of_other_data(scans_run, tmp_path, copy_of):
    """Images that change in place: the run keeps its intensity, its cache is refused until it is that of the data."""
    run = copy_of(scans_run)
    write_scans(tmp_path)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(scans_run.parent / "scans"), str(tmp_path)))
    kept, manifest = (run / "intensity.json").read_text(), run / "latents" / "manifest.json"
    before = manifest.read_text()
    write_latents(run)
    assert manifest.read_text() == before, "the same data at another place"
    write_scans(tmp_path, brightness=500)
    with pytest.warns(MandorlaWarning, match="hold other images than when this run began"):
        mandorla.load(run).data()
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.warns(MandorlaWarning, match="mandorla encode"),
        pytest.raises(KeyboardInterrupt),
    ):
        patch.setattr(encoding, "_encode", _stop)
        write_latents(run)
    with pytest.raises(MandorlaError, match="has no latents, or not all of them: run `mandorla encode"):
        latents_of(run)
    manifest.write_text(before)
    with pytest.raises(MandorlaError, match="was made of other data|has no latents"):
        latents_of(run)
    write_latents(run)
    assert json.loads(manifest.read_text())["data"] != json.loads(before)["data"]
    assert (run / "intensity.json").read_text() == kept
    latents_of(run)
    recipe = load_settings(Recipe, path=config)
    with pytest.raises(MandorlaError, match="on the latents of another stage 1 or of other data"):
        train_diffusion(recipe.model_copy(update={"run": str(run)}))


def test_one_command_at_a_time_notes_other_data(polydigits_run, copy_of, monkeypatch):
    run, seen = copy_of(polydigits_run), []

    def accept(*given):
        with pytest.raises(MandorlaError), locked(run / encoding.LOCK):
            pass
        seen.append(given)

    monkeypatch.setattr(encoding, "accept_data", accept)
    write_latents(run)
    assert len(seen) == 1


def _stop(*_):
    raise KeyboardInterrupt


@pytest.fixture
def small_shards(monkeypatch):
    """Cut the 200 + 40 samples of polydigits into shards of 32, encoded by 16; return what is encoded when it is."""
    encoded = []
    encode = encoding._encode

    def note(vae, dataset, indices, records):
        encoded.append((dataset.batch(indices[:1]).ids[0], len(indices)))
        encode(vae, dataset, indices, records)

    monkeypatch.setattr(encoding, "_MOST", 16)
    monkeypatch.setattr(encoding, "_PER_SHARD", 2)
    monkeypatch.setattr(encoding, "_encode", note)
    return encoded


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "latents").iterdir()}


def test_samples_are_found_in_whatever_shard_they_are(polydigits_run, copy_of, small_shards):
    run = copy_of(polydigits_run)
    whole = latents_of(run)[0]["train"]
    shutil.rmtree(run / "latents")
    write_latents(run)
    assert len(list((run / "latents").glob("train-*.npy"))) == 7
    assert not list((run / "latents").glob("*.lock"))
    rows = np.random.default_rng(0).integers(0, 200, 300)
    sharded, expected = latents_of(run)[0]["train"].batch(rows), whole.batch(rows)
    for name, z in expected.latents.components.items():
        torch.testing.assert_close(sharded.latents.components[name], z, atol=1e-5, rtol=0)
    for name in expected.present:
        assert torch.equal(sharded.present[name], expected.present[name])
        torch.testing.assert_close(sharded.std[name], expected.std[name], atol=1e-5, rtol=0)


def test_side_by_side_they_write_each_shard_once_and_the_same_cache(polydigits_run, copy_of, small_shards):
    """Threads stand for processes: a lock is of the file that was opened, not of the process."""
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "latents")
    write_latents(run)
    alone, small_shards[:] = contents(run), []
    shutil.rmtree(run / "latents")
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write_latents, run) for _ in range(4)]:
            done.result()
    assert len(small_shards) == len(set(small_shards)) == 13 + 3
    assert contents(run) == alone
    small_shards.clear()
    write_latents(run)
    assert not small_shards, "nothing is left to do"


@pytest.mark.parametrize("moment", ["_encode", "_write_shard"])
def test_who_encodes_with_weights_of_before_writes_nothing_into_the_new_cache(
    polydigits_run, copy_of, small_shards, moment
):
    """Stage 1 is trained anew while the first shard is encoded, or between the last one and the statistics."""
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "latents")
    weights, _ = load_tensors(run / "vae" / "weights.safetensors")
    do, calls, new = getattr(encoding, moment), [], {}

    def train_anew(*given):
        do(*given)
        calls.append(given)
        if not new and (moment == "_encode" or len(calls) == 9):
            changed = {name: z + 0.1 if "read_shared" in name else z for name, z in weights.items()}
            save_tensors(run / "vae" / "weights.safetensors", changed)
            new["cache"] = {}  # nothing more happens in the call below
            write_latents(run)
            new["cache"] = contents(run)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(MandorlaError, match="trained anew, .*: run `mandorla enc"),
    ):
        patch.setattr(encoding, moment, train_anew)
        write_latents(run)
    assert new["cache"] == {name: z for name, z in contents(run).items() if not name.endswith(".lock")}
    latents_of(run)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from mandorla.vae import encoding

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def write_half(file, array, version):
    file.write(array.tobytes()[: array.nbytes // 2])
    file.flush()
    die()

class ThirdTime(list):
    def __init__(self, function, then):
        self.function, self.then = function, then

    def __call__(self, *arguments, **more):
        self.append(1)
        return (self.then if len(self) == 3 else self.function)(*arguments, **more)

encoding._MOST, encoding._PER_SHARD = 16, 2
if sys.argv[2] == "encoding":
    encoding._write_shard = ThirdTime(encoding._write_shard, die)
else:
    np.lib.format.write_array = ThirdTime(np.lib.format.write_array, write_half)
encoding.write_latents(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", ["encoding", "writing"])
def test_a_killed_process_leaves_whole_shards_and_a_later_call_writes_the_rest(
    polydigits_run, copy_of, small_shards, moment
):
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "latents")
    write_latents(run)
    expected, small_shards[:] = contents(run), []
    shutil.rmtree(run / "latents")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(run), moment], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    left = {name: content for name, content in contents(run).items() if name.endswith(".npy")}
    assert left == {name: expected[name] for name in ("train-00000.npy", "train-00001.npy")}
    with pytest.raises(MandorlaError, match="has no latents, or not all of them: run `mandorla encode"):
        latents_of(run)
    write_latents(run)
    assert len(small_shards) == 16 - 4
    assert contents(run) == expected


def test_an_interrupted_encoding_is_no_cache(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "latents")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoding.Whitening, "fit", _stop)
        write_latents(run)
    with pytest.raises(MandorlaError, match="has no latents, or not all of them: run `mandorla encode"):
        latents_of(run)
    write_latents(run)
    assert len(latents_of(run)[0]["train"]) == 200


@pytest.mark.parametrize("content", [None, b"", b"half", b"other length"])
def test_a_damaged_shard_is_named_and_written_anew(polydigits_run, copy_of, content):
    run = copy_of(polydigits_run)
    before, file = contents(run), run / "latents" / "train-00000.npy"
    if content is None:
        file.unlink()
    elif content == b"other length":
        shutil.copy(run / "latents" / "val-00000.npy", file)
    else:
        file.write_bytes(content)
    with pytest.raises(MandorlaError, match="train-00000.npy is missing or damaged .* run `mandorla encode"):
        latents_of(run)
    write_latents(run)
    assert contents(run) == before


@pytest.mark.parametrize("place", [0.4, 0.9])
@pytest.mark.parametrize("name", ["train-00000.npy", "val-00000.npy", "statistics.safetensors"])
def test_changed_bytes_are_noticed_before_a_training_and_written_anew(polydigits_run, copy_of, name, place):
    run = copy_of(polydigits_run)
    before, file = contents(run), run / "latents" / name
    changed = bytearray(before[name])
    at = int(place * len(changed)) if name.endswith("npy") else -int(place * 100)  # in its numbers
    changed[at] ^= 64
    file.write_bytes(changed)
    for train in (train_diffusion, train_refiner):
        with pytest.raises(MandorlaError, match=f"{name} is .*damaged.*: run `mandorla encode"):
            train(read_run(run).model_copy(update={"run": str(run)}))
    write_latents(run)
    assert contents(run) == before
    latents_of(run, checked=True)


def test_cut_statistics_are_written_anew(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    before, file = contents(run), run / "latents" / "statistics.safetensors"
    file.write_bytes(before["statistics.safetensors"][:-20])
    write_latents(run)
    assert contents(run) == before


def test_a_cache_without_checksums_goes_on_to_work(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    for shard in (run / "latents").glob("*.npy"):
        shard.write_bytes(shard.read_bytes()[:-4])
    file = run / "latents" / "statistics.safetensors"
    save_tensors(file, load_tensors(file)[0])
    before = contents(run)
    write_latents(run)
    assert contents(run) == before
    latents_of(run, checked=True)


def test_a_cache_of_an_earlier_form_is_written_anew(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    manifest = run / "latents" / "manifest.json"
    of_before = {key: value for key, value in json.loads(manifest.read_text()).items() if key != "rows"}
    manifest.write_text(json.dumps(of_before))
    with pytest.raises(MandorlaError, match="has no latents, or not all of them: run `mandorla encode"):
        latents_of(run)
    write_latents(run)
    latents_of(run)


def test_volumes_are_encoded_a_few_at_once(polydigits_run, copy_of, monkeypatch):
    """No more values than fit into memory go through the networks together: here those of four samples."""
    run, encoded = copy_of(polydigits_run), []
    shutil.rmtree(run / "latents")
    sample = sum(np.prod(m.shape) for m in mandorla.load(run).modalities)
    monkeypatch.setattr(encoding, "CHUNK", 4 * int(sample) + 1)
    monkeypatch.setattr(encoding, "_encode", lambda vae, data, rows, records: encoded.append(len(rows)))
    write_latents(run)
    assert set(encoded) == {4} and sum(encoded) == 240


def test_copies_are_read_from_random_subsets(polydigits_run, copy_of):
    """The first record of each sample is that without copies; the others are what a subset of its images gives."""
    run = copy_of(polydigits_run)
    plain = latents_of(run)[0]["train"].batch(np.arange(200))
    _set_copies(run, 4)
    write_latents(run)
    part = latents_of(run)[0]["train"]
    assert (len(part), part.num_samples) == (800, 200)
    first, rest = part.batch(np.arange(200)), part.batch(np.arange(200, 800))
    assert all(torch.equal(first.latents.components[n], z) for n, z in plain.latents.components.items())
    model = mandorla.load(run)
    x, names = model.data().train.batch(np.arange(200)).x, model.vae.layout.modalities
    subsets = [chosen for size in range(1, 1 + len(names)) for chosen in combinations(names, size)]
    expected = torch.stack([model.encode({name: x[name] for name in chosen}).shared for chosen in subsets])
    near = (expected.repeat(1, 3, 1) - rest.latents.shared).abs().amax(-1) < 1e-4
    assert near.any(0).all(), "each is one of them"
    assert (near.sum(1) > 300 / len(subsets)).all(), "all subsets alike, as far as chance lets them"
    alone = near[0].nonzero()[:, 0]
    again = model.encode({names[0]: x[names[0]][alone % 200]}).private[names[0]]
    torch.testing.assert_close(rest.latents.private[names[0]][alone], again, atol=1e-4, rtol=0)


def test_copies_are_augmented_as_training_images_are(scans_run, copy_of):
    """Turned over or not, at random; the first record and validation stay as they are."""
    run = copy_of(scans_run)
    plain = {name: part.batch(np.arange(len(part))) for name, part in latents_of(run)[0].items()}
    text = (run / "config.yaml").read_text()
    assert text.count("flip: []") == 1
    (run / "config.yaml").write_text(text.replace("flip: []", "flip: [0]"))
    _set_copies(run, 3)
    write_latents(run)
    parts = latents_of(run)[0]
    for name, part in parts.items():
        first = part.batch(np.arange(part.num_samples)).latents
        for n, z in plain[name].latents.components.items():
            torch.testing.assert_close(first.components[n], z, atol=1e-5, rtol=0)
    model = mandorla.load(run)
    names = model.vae.layout.modalities
    subsets = [chosen for size in range(1, 1 + len(names)) for chosen in combinations(names, size)]
    turned_once = {}
    for name in parts:
        part = parts[name]
        x, rest = model.data().parts[name].batch(np.arange(part.num_samples)).x, np.arange(part.num_samples, len(part))
        shared, found = part.batch(rest).latents.shared, []
        for turned in (False, True):
            seen = {n: z.flip(2) if turned else z for n, z in x.items()}
            each = torch.stack([model.encode({n: seen[n] for n in chosen}).shared for chosen in subsets])
            each = each.repeat(1, 2, *[1] * (shared.ndim - 1))
            found.append(((each - shared).abs().flatten(2).amax(-1) < 1e-4).any(0))
        assert (found[0] | found[1]).all(), "each is one of them"
        turned_once[name] = (found[1] & ~found[0]).view(2, -1)
    assert not turned_once["val"].any()
    first, second = turned_once["train"]
    assert (first != second).any() and first.any() and not first.all(), "each copy is drawn on its own"


def test_copies_of_another_augmentation_are_made_anew(scans_run, copy_of):
    run = copy_of(scans_run)
    _set_copies(run, 2)
    write_latents(run)
    before = contents(run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("flip: []", "flip: [0]"))
    with pytest.raises(MandorlaError, match=r"other vae.copies or data.augment than the run has: run `mandorla encode"):
        latents_of(run)
    write_latents(run)
    after = contents(run)
    assert before.keys() == after.keys() and before["train-00000.npy"] != after["train-00000.npy"]
    assert latents_of(run)[0]["train"].copied.startswith(', 2 copies {"flip": [0]')


def test_copies_of_a_single_modality_are_the_same(signals_run, copy_of):
    run = copy_of(signals_run)
    _set_copies(run, 3)
    write_latents(run)
    part = latents_of(run)[0]["train"]
    first, *rest = (part.batch(np.arange(k * part.num_samples, (k + 1) * part.num_samples)) for k in range(3))
    whole = torch.stack(list(first.present.values())).all(0)
    assert 0 < whole.sum() < len(whole)
    for again in rest:
        assert all(torch.equal(again.present[name], there) for name, there in first.present.items())
        same = (again.latents.shared - first.latents.shared).abs().amax(1) < 1e-5
        assert same[~whole].all() and not same[whole].all()


def test_stage_2_belongs_to_its_copies(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    _set_copies(run, 2)
    write_latents(run)
    with pytest.raises(MandorlaError, match=r"with other vae.copies or data.augment: delete it to train"):
        train_diffusion(read_run(run))
    shutil.rmtree(run / "diffusion")
    train_diffusion(read_run(run))
    lines = (run / "diffusion" / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(json.loads(line)["loss"]) for line in lines)


def _set_copies(run, copies):
    text = (run / "config.yaml").read_text()
    assert "copies: 1" in text
    (run / "config.yaml").write_text(text.replace("copies: 1", f"copies: {copies}"))
