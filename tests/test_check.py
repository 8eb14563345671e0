"""The data check counts what was planted, says all of it, and proposes recipes that load and train."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import POLYDIGITS, write_scans

from mandorla.check import check_data, find_out
from mandorla.check.advice import judge
from mandorla.check.facts import examine
from mandorla.check.guess import guess
from mandorla.check.page import print_page, render
from mandorla.check.source import NUM_COMPOSED, take_stock
from mandorla.cli import main
from mandorla.errors import MandorlaError
from mandorla.recipe import read_recipe

SUBJECTS, SLICES = 12, 4
TRAINING = ["steps=2", "batch_size=8", "validate_every=2", "checkpoint_every=2", "picture_every=2"]


def disk(subject, number, dim=1.0, dtype=np.uint8, shape=(16, 16)):
    """Return a disk that no other subject and slice has."""
    noise = np.random.default_rng([subject, number, int(10 * dim)]).normal(0, 6, shape)
    y, x = np.indices(shape)
    inside = np.hypot(y - 8 + number % 3 - 1, x - 8 + subject % 5 - 2) < 3 + subject % 3
    values = inside * (200 * dim + noise)
    return values.clip(0, np.iinfo(dtype).max).astype(dtype) if np.dtype(dtype).kind == "u" else values.astype(dtype)


def png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(path, pixels):
    """Write `pixels` (H, W) as a picture or, four times, as a volume."""
    if path.suffix == ".png":
        return png(path, pixels)
    nibabel = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.stack([pixels] * 4, -1), np.eye(4)), path)


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a folder for each of two modalities, paired by name."""
    for subject in range(SUBJECTS):
        for number in range(SLICES):
            png(tmp_path / "mine" / "ct" / f"p{subject:02d}_s{number}.png", disk(subject, number))
            png(tmp_path / "mine" / "mr" / f"p{subject:02d}_s{number}.png", disk(subject, number, 0.9))
    return tmp_path / "mine"


def whats(findings, level=None):
    return [problem.what for problem in findings.problems if level in (None, problem.level)]


def found(findings, text):
    """Return the problem that says `text`."""
    (problem,) = [problem for problem in findings.problems if text in problem.what]
    return problem


def test_a_sound_folder_has_nothing_to_mend(folder):
    findings = find_out(str(folder))
    facts = findings.facts
    assert findings.num_mend == 0 and not whats(findings, "mend")
    assert (facts.num_samples, facts.num_subjects, facts.paired) == (SUBJECTS * SLICES, SUBJECTS, SUBJECTS * SLICES)
    assert [m.name for m in facts.modalities] == ["ct", "mr"]
    assert all(m.shape == (1, 16, 16) and m.dtype == "uint8" and m.num == SUBJECTS * SLICES for m in facts.modalities)
    assert sum(samples for samples, _ in facts.parts.values()) == SUBJECTS * SLICES
    assert sum(subjects for _, subjects in facts.parts.values()) == SUBJECTS


def test_numbers_of_values_are_those_of_the_files(folder):
    findings = find_out(str(folder))
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "ct").iterdir())])
    ct = findings.facts.modalities[0]
    assert (ct.low, ct.high) == (pixels.min(), pixels.max())
    assert ct.background == pytest.approx((pixels == 0).mean(), abs=1e-3)
    assert ct.foreground[50] == pytest.approx(np.median(pixels[pixels > 0]), abs=1)
    assert ct.counts.sum() == pytest.approx(pixels.size, rel=0.01)


def test_all_that_is_wrong_is_said_at_once(folder):
    (folder / "ct" / "p01_s0.png").write_bytes(b"no picture")
    (folder / "mr" / "p02_s1.png").write_bytes((folder / "mr" / "p02_s2.png").read_bytes()[:60])
    (folder / "mr" / "p03_s3.png").unlink()
    png(folder / "ct" / "p04_s0.png", disk(4, 0, shape=(20, 16)))
    png(folder / "ct" / "p05_s1.png", np.zeros((16, 16), np.uint8))
    for subject in range(6, SUBJECTS):  # one image of every other subject is that of the first
        png(folder / "mr" / f"p{subject:02d}_s0.png", disk(6, 0, 0.9))
    findings = find_out(str(folder))
    assert found(findings, "ct: files that cannot be read: 1").where[0].startswith(str(folder / "ct" / "p01_s0.png"))
    assert "p02_s1.png" in found(findings, "mr: files that cannot be read: 1").where[0]
    assert found(findings, "lack a modality: mr 1").where == ["p03/s3 lacks mr"]
    assert found(findings, "ct: 2 different shapes").where[1] == "1 sample 20 x 16"
    assert found(findings, "ct: samples of a single value: 1").where == ["p05/s1"]
    assert found(findings, "lie in two parts").level == "mend"
    assert found(findings, "lack a modality").level == "note"  # the proposed recipe keeps them
    assert {change.key for change in findings.changes} == {"data.unpaired"}


def test_data_in_which_nothing_is_paired_are_to_mend(tmp_path):
    x = np.random.default_rng(0).random((3, 60, 8, 8)).astype(np.float32)
    np.savez(
        tmp_path / "a.npz", **dict(zip("abc", x, strict=True)), odd=np.arange(60) % 2 > 0, even=np.arange(60) % 2 < 1
    )
    data = {"kind": "arrays", "root": str(tmp_path), "present": {"a": "a.npz:odd", "b": "a.npz:even"}}
    images = {name: f"a.npz:{name}" for name in "abc"}
    two, three = (
        find_out("polydigits", [f"data={json.dumps(data | {'images': {name: images[name] for name in names}})}"])
        for names in ("ab", "abc")
    )
    assert found(two, "no training sample has two modalities").level == "mend"
    assert three.num_mend == 0 and found(three, "no training sample has both of: 1").where == ["a and b"]


def test_pictures_of_different_sizes_are_averaged_down_in_the_proposal(folder):
    for number in range(SLICES):
        png(folder / "ct" / f"p04_s{number}.png", disk(4, number, shape=(17, 17)))
    findings = find_out(str(folder))
    assert [whats(findings, level) for level in ("mend", "note")] == [[], ["few samples: 48", "ct: 2 different shapes"]]
    assert {c.key: c.value for c in findings.changes} == {"data.size": [16, 16], "data.sizes": "any"}


def test_the_order_of_problems(folder):
    (folder / "ct" / "p01_s0.png").write_bytes(b"no picture")
    findings = find_out(str(folder))
    assert [problem.level for problem in findings.problems] == sorted(problem.level for problem in findings.problems)


def test_a_recipe_is_judged_as_it_is_and_mended_in_the_proposal(folder, tmp_path):
    (folder / "mr" / "p03_s3.png").unlink()
    for path in (folder / "ct").iterdir():
        png(path, np.asarray(Image.open(path)).astype(np.uint16) * 16)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text('data: {kind: folders, root: mine, folders: {ct: ct, mr: mr}, key: "(?P<subject>p..)_(?P<s>s.)"}')
    findings = find_out(str(recipe))
    assert found(findings, "lack a modality").level == "mend"
    changed = {change.key: change.value for change in findings.changes}
    assert changed["data.unpaired"] == "keep"
    expected = {"kind": "percentile", "foreground": False}
    assert expected in (changed["data.intensity"], changed["data.intensity_of"].get("ct"))
    (tmp_path / "better.yaml").write_text(findings.config)
    better = find_out(str(tmp_path / "better.yaml"))
    assert better.num_mend == 0 and not better.changes


def test_the_proposal_means_the_same_in_another_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        "run: runs/mine\nevaluate: {features: {own: net.onnx}}\n"
        'data: {kind: folders, root: mine, folders: {ct: ct, mr: mr}, key: "(?P<subject>p..)_(?P<s>s.)"}'
    )
    Path("there").mkdir()
    check_data("mine.yaml", recipe_out=Path("there/better.yaml"))
    one, other = read_recipe("mine.yaml"), read_recipe("there/better.yaml")
    assert Path(other.run).resolve() == Path(one.run).resolve() == tmp_path / "runs" / "mine"
    assert other.evaluate.settle() == one.evaluate.settle() and other.data.settle().root == one.data.settle().root


def test_values_without_a_known_range_are_to_mend_in_a_recipe(tmp_path):
    write_scans(tmp_path)
    images = {"t1": "scans.npz:t1", "t2": "scans.npz:t2"}
    data = {"kind": "arrays", "root": str(tmp_path), "images": images, "groups": "scans.npz:patient"}
    findings = find_out("polydigits", [f"data={json.dumps(data)}"])
    assert "range values of type int16" in found(findings, "t1: ").what
    expected = {"kind": "percentile", "foreground": False}
    assert {change.key: change.value for change in findings.changes} == {"data.intensity": expected}


@pytest.mark.parametrize(("darkest", "foreground"), [(300.0, False), (20.0, None)])
def test_background_of_one_value_stays_background(tmp_path, darkest, foreground):
    """Skull-stripped heads: 0 around, nothing between that and the darkest tissue; others reach down to it."""
    x = np.random.default_rng(0).uniform(darkest, 900, (40, 20, 20)).astype(np.float32)
    x[:, :, :8] = 0
    np.savez(tmp_path / "all.npz", a=x, b=x[::-1] + 0)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text('data: {kind: arrays, root: ., images: {a: "all.npz:a", b: "all.npz:b"}}')
    changed = {change.key: change.value for change in find_out(str(recipe)).changes}
    assert changed["data.intensity"] == {"kind": "percentile"} | (
        {} if foreground is None else {"foreground": foreground}
    )


def test_nan_blank_and_copied_arrays_are_counted(tmp_path):
    x = np.random.default_rng(0).random((60, 8, 8)).astype(np.float32)
    y = np.random.default_rng(1).random((60, 8, 8)).astype(np.float32)
    y[7] = x[7]
    x[3, 0, 0], x[5] = np.nan, 0.5
    np.savez(tmp_path / "a.npz", x=x, y=y, who=np.arange(60) // 3, kind=np.arange(60) % 2)
    data = {"kind": "arrays", "root": str(tmp_path), "images": {"a": "a.npz:x", "b": "a.npz:y"}}
    data |= {"groups": "a.npz:who", "labels": {"kind": "a.npz:kind"}}
    findings = find_out("polydigits", [f"data={json.dumps(data)}"])
    assert found(findings, "a: samples with NaN").where == ["1-3"]
    assert found(findings, "a: samples of a single value").where == ["1-5"]
    assert found(findings, "same image as two modalities").where == ["2-7: a and b"]
    (label,) = findings.facts.labels
    assert (label.kind, label.counts) == ("class", {"0": 30, "1": 30})


def test_volumes_on_another_grid_are_named(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for subject in range(6):
        for name in ("t1", "flair"):
            path = tmp_path / f"p{subject}" / f"{name}.nii"
            path.parent.mkdir(exist_ok=True)
            affine = np.diag([1, 1, 2 if (subject, name) == (4, "flair") else 1, 1])
            values = np.random.default_rng([subject, len(name)]).integers(0, 255, (8, 9, 10)).astype(np.uint8)
            values[..., :2] = 0
            nibabel.save(nibabel.Nifti1Image(values, affine), path)
    findings = find_out(str(tmp_path))
    grids = found(findings, "on another grid than their partner: 1")
    assert (grids.level, len(grids.where)) == ("note", 1)  # the proposal resamples
    assert re.match(r"p4: flair against t1: spacing \S+ x \S+ x \S+ mm instead of 1 x 1 x 1", grids.where[0])
    assert {change.key: change.value for change in findings.changes} == {
        "data.geometry.resample": "to_first",
        "data.intensity": {"kind": "percentile"},  # for what is resampled becomes floats
    }
    t1 = findings.facts.modalities[0]
    assert (t1.name, t1.shapes, t1.blank_slices) == ("t1", {(1, 10, 9, 8): 6}, (12, 60))
    assert dict(findings.facts.axes) == {"RAS": 6}
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"data: {{kind: scans, root: {json.dumps(str(tmp_path))}}}")
    assert found(find_out(str(recipe)), "on another grid than their partner: 1").level == "mend"


def test_large_volumes_are_cut_into_slices(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for subject in range(6):
        for name in ("t1", "t2"):
            values = np.random.default_rng([subject, len(name)]).integers(100, 900, (70, 66, 12)).astype(np.int16)
            values[..., :4] = 0
            nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, 1, 3, 1])), tmp_path / f"p{subject}_{name}.nii")
    findings = find_out(str(tmp_path))
    facts = findings.facts
    assert "slices:" in findings.config and findings.num_mend == 0
    assert (facts.num_samples, facts.num_subjects, facts.num_slices) == (6 * 8, 6, 6 * 12)
    assert facts.modalities[0].shape == (1, 66, 70) and dict(facts.spacings) == {"1 x 1 x 3": 6}
    assert facts.pictured == [f"p{subject}/s007" for subject in range(6)]  # from the top of the slices 4 to 11
    (tmp_path / "mine.yaml").write_text(findings.config)
    again = find_out(str(tmp_path / "mine.yaml")).facts
    assert (again.num_samples, again.num_slices) == (6 * 8, 6 * 12)


@pytest.mark.parametrize(
    ("edges", "plane", "size"),
    [((6, 1, 1), "sagittal", (68, 66)), ((1, 4, 1), "coronal", (68, 12)), ((1, 1.1, 1.2), "axial", (66, 12))],
)
def test_volumes_are_cut_across_their_long_voxels(tmp_path, edges, plane, size):
    nibabel = pytest.importorskip("nibabel")
    for subject in range(6):
        for name in ("t1", "t2"):
            values = np.random.default_rng([subject, len(name)]).integers(100, 900, (12, 66, 68)).astype(np.int16)
            values[:, :8] = 0
            nibabel.save(nibabel.Nifti1Image(values, np.diag([*edges, 1])), tmp_path / f"p{subject}_{name}.nii")
    findings = find_out(str(tmp_path))
    (tmp_path / "mine.yaml").write_text(findings.config)
    assert read_recipe(str(tmp_path / "mine.yaml")).data.slices.axis == plane
    assert findings.facts.modalities[0].shape == (1, *size)


def test_what_cannot_be_told_apart_is_one_problem_and_a_page(folder, tmp_path):
    png(folder / "ct" / "again" / "p01_s1.png", disk(1, 1, 0.5))
    findings = find_out(str(folder), ["data.key='(?P<subject>p..)_(?P<slice>s.)'"])
    assert findings.facts is None and findings.num_mend == 1
    assert "p01/s1" in render(findings)


@pytest.mark.parametrize(
    ("names", "kind", "pairs"),
    [
        (["t1/p{s}_{n}.png", "t2/p{s}_{n}.png"], "folders", {"t1": "t1", "t2": "t2"}),
        (["day/p{s}_{n}_day.png", "night/p{s}_{n}_night.png"], "folders", {"day": "day", "night": "night"}),
        (["T1w/p{s}_{n}_T1w.png", "flair/p{s}_{n}_flair.png"], "scans", None),
        (
            ["sub-{s}/ses-{n}/anat/sub-{s}_ses-{n}_T1w.nii", "sub-{s}/ses-{n}/anat/sub-{s}_ses-{n}_T2w.nii"],
            "bids",
            None,
        ),
        (
            [
                "BraTS-GLI-000{s}-00{n}/BraTS-GLI-000{s}-00{n}-t1n.nii",
                "BraTS-GLI-000{s}-00{n}/BraTS-GLI-000{s}-00{n}-t2w.nii",
            ],
            "scans",
            None,
        ),
        (["ct/ct_p{s}_{n}.png", "mr/mr_p{s}_{n}.png"], "folders", {"ct": "ct", "mr": "mr"}),
        (["a/p{s}/s{n}.png", "b/p{s}/s{n}.png"], "folders", {"a": "a", "b": "b"}),
        (["p{s}_{n}_rgb.png", "p{s}_{n}_depth.png"], "folders", {"rgb": "**/*_rgb.png", "depth": "**/*_depth.png"}),
        (["p{s}_{n}_t1.png", "p{s}_{n}_t2w.png"], "scans", None),
        (["p{s}/v{n}/rgb.png", "p{s}/v{n}/depth.png"], "folders", {"rgb": "**/rgb.png", "depth": "**/depth.png"}),
        (["p{s}/v{n}/t1.png", "p{s}/v{n}/t2.png"], "scans", None),
        (
            ["p{s}/2019-03-0{n}/t1_mpr_sag.nii", "p{s}/2019-03-0{n}/flair_tra.nii"],
            "folders",
            {"t1": "**/t1_mpr_sag.nii", "flair": "**/flair_tra.nii"},
        ),
        (
            ["p{s}_{n}_t1_mpr_sag.png", "p{s}_{n}_t2_tse_tra.png"],
            "folders",
            {"t1": "**/*_t1_mpr_sag.png", "t2": "**/*_t2_tse_tra.png"},
        ),
        (["T1.5 (a)/p{s}_{n}.png", "b/p{s}_{n}.png"], "folders", {"T1-5-a": "T1.5 (a)", "b": "b"}),
    ],
)
def test_layouts_are_told_by_their_names(tmp_path, names, kind, pairs):
    for subject in range(10, 10 + SUBJECTS):
        for number in range(SLICES):
            for index, name in enumerate(names):
                write(tmp_path / name.format(s=subject, n=number), disk(subject, number, 1 - index / 10))
    data = guess(tmp_path).data
    assert (data["kind"], data.get("folders")) == (kind, pairs)
    facts = find_out(str(tmp_path)).facts
    assert (facts.paired, facts.num_subjects) == (SUBJECTS * SLICES, SUBJECTS)


def test_folders_of_a_division_with_a_folder_per_modality(tmp_path):
    parts = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    for subject, part in enumerate(parts):
        for number in range(SLICES):
            for name in ("mr", "ct"):
                png(
                    tmp_path / part / name / f"p{subject}_{number}.png", disk(subject, number, 1 - 0.1 * (name == "ct"))
                )
    facts = find_out(str(tmp_path)).facts
    assert facts.parts == {"train": (24, 6), "val": (12, 3), "test": (12, 3)} and facts.paired == 48
    png(tmp_path / "val" / "ct" / "p0_0.png", disk(0, 9, 0.9))
    assert "'p0/0' lies in val, and by" in whats(find_out(str(tmp_path)), "mend")[0]


def test_a_table_and_its_labels(tmp_path):
    lines = ["patient,t1,t2,sex,age,split"]
    for subject in range(30):
        png(tmp_path / "a" / f"{subject}.png", disk(subject, 0))
        png(tmp_path / "b" / f"{subject}.png", disk(subject, 0, 0.8))
        part = ["train", "val", "test"][max(0, subject // 5 - 3)]
        lines.append(f"p{subject},a/{subject}.png,b/{subject}.png,{'fm'[subject % 2]},{subject + 0.5},{part}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    for source in (tmp_path, tmp_path / "list.csv"):
        findings = find_out(str(source))
        assert findings.facts.parts == {"train": (20, 20), "val": (5, 5), "test": (5, 5)}
        labels = {label.name: label for label in findings.facts.labels}
        assert labels["sex"].counts == {"f": 15, "m": 15}
        assert (labels["age"].kind, labels["age"].low, labels["age"].high) == ("number", 0.5, 29.5)
        assert "label: sex" in findings.config
    (tmp_path / "some.csv").write_text("\n".join(lines).replace("b/7.png", "n/a"))
    assert find_out(str(tmp_path / "some.csv"), ["data.unpaired=keep"]).facts.parts["train"] == (20, 20)
    (tmp_path / "some.csv").unlink()
    whole = [line.replace(".5", "") for line in lines]
    (tmp_path / "list.csv").write_text("\n".join(whole))
    findings = find_out(str(tmp_path))
    assert {label.name: label.kind for label in findings.facts.labels} == {"sex": "class", "age": "class"}
    remedies = [problem.remedy for problem in findings.problems]
    assert "meant as a number? then data.numbers: [age]" in remedies
    findings = find_out(str(tmp_path), ["data.numbers=[age]"])
    assert {label.name: label.kind for label in findings.facts.labels} == {"sex": "class", "age": "number"}
    (tmp_path / "list.csv").write_text("\n".join([*lines, "p1,a/0.png,b/0.png,f,3,test"]))
    assert find_out(str(tmp_path)).facts is None


@pytest.mark.parametrize("kind", ["pictures", "volumes", "signals"])
def test_the_proposed_recipe_loads_and_trains(tmp_path, kind, capsys):
    nibabel = pytest.importorskip("nibabel")
    data = tmp_path / "data"
    for subject in range(8):
        rng = np.random.default_rng(subject)
        for index, name in enumerate(("one", "two")):
            path = data / name / f"p{subject}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "pictures":
                png(path.with_suffix(".png"), rng.integers(0, 3000, (20, 24)).astype(np.uint16))
            elif kind == "volumes":
                values = rng.normal(0, 500, (16, 16, 16)).astype(np.float32)
                nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path.with_suffix(".nii"))
            else:
                rows = rng.normal(0, 5, (30 + index, 2))
                path.with_suffix(".csv").write_text("x,y\n" + "\n".join(f"{a:.3f},{b:.3f}" for a, b in rows))
    assert check_data(str(data), [], tmp_path / "page.html", tmp_path / "mine.yaml")
    recipe, said = str(tmp_path / "mine.yaml"), "".join(capsys.readouterr().out.split())
    assert f"This is {recipe}; then: mandorla train vae {recipe}".replace(" ", "") in said and "written" in said
    with pytest.raises(SystemExit) as stop:
        main(["train", "vae", recipe, "--dry-run"])
    assert stop.value.code in (0, None)
    small = [f"vae.training.{key}" for key in TRAINING]
    main_or_exit(["train", "vae", recipe, f"run={json.dumps(str(tmp_path / 'run'))}", "device=cpu", *small])
    assert (tmp_path / "run" / "vae" / "model.json").is_file()


def main_or_exit(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code in (0, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(240)
def test_whatever_a_training_refuses_is_to_mend(tmp_path):
    """Every malformed input that loading refuses is found, also where only the look at all of them can say so."""
    malformed = pytest.importorskip("test_data_malformed")
    by_facts = 0
    for index, case in enumerate(malformed.REFUSED):
        folder = tmp_path / str(index)
        folder.mkdir()
        try:
            config = case.values[0](folder)
            stock = take_stock(config, 0)
        except (MandorlaError, pytest.skip.Exception):
            continue
        problems = judge(examine(stock, config, 0), config)
        assert any(problem.level == "mend" for problem in problems), case.id
        by_facts += 1
    assert by_facts > 100


def test_the_page_needs_nothing_but_itself_and_escapes_names(folder, tmp_path):
    (folder / "ct" / "p01_s1.png").rename(folder / "ct" / "<b>&_s1.png")
    page = render(find_out(str(folder)))
    assert "&lt;b&gt;&amp;" in page and "<b>&_s1" not in page
    assert not re.findall(r"<(?:script|link|iframe)|https?://|url\(|@import", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', page))
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert page.count("<rect") > 20


def test_names_that_a_training_refuses_are_to_mend(tmp_path):
    for subject in range(SUBJECTS):
        for name in ("shared", "other"):
            png(tmp_path / name / f"p{subject}.png", disk(subject, 0, 1 - 0.1 * (name == "other")))
    assert found(find_out(str(tmp_path)), "a modality cannot be called 'shared'").level == "mend"
    assert not find_out(str(tmp_path), ["data.folders={one: shared, two: other}"]).num_mend


def test_exit_status_and_files(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main_or_exit(["data", "check", "mine"])
    printed = capsys.readouterr().out
    assert (tmp_path / "data-check.html").is_file() and "Nothing stands against a training" in printed
    assert "samples 48" in printed and "taken for kind: folders" in printed and "kind: folders" in printed
    (tmp_path / "old.yaml").write_text("{}")
    (folder / "ct" / "p01_s0.png").write_bytes(b"")
    for arguments, status in (
        (["mine", "--out", "nowhere/x.html"], 2),
        (["mine", "--recipe", "old.yaml"], 2),
        (["mine"], 1),
        (["nowhere"], 2),
        (["mine", "data.sise=3"], 2),
        ([str(tmp_path / "x")], 2),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["data", "check", *arguments])
        assert stop.value.code == status, arguments


def test_columns_of_a_table_are_proposed_a_range_each(tmp_path):
    for subject in range(SUBJECTS):
        for name in ("blood", "gait"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{subject}.csv").write_text(f"sodium,calcium\n{140 + subject},{2 + subject / 100}\n")
    assert "per: channel" in find_out(str(tmp_path), ["data.duplicates=keep"]).config


def test_a_table_of_numbers_is_vectors_by_the_beginnings_of_names(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["id,gene_1,gene_2,gene_3,sodium,blood_na,blood_k,bloodtype,split"]
    for row in range(30):
        numbers = ",".join(f"{value:.3f}" for value in rng.normal(5, 2, 6))
        lines.append(f"p{row},{numbers},{'AB0'[row % 3]},{['train', 'val', 'test'][max(0, row // 5 - 3)]}")
    (tmp_path / "all.csv").write_text("\n".join(lines))
    findings = find_out(str(tmp_path / "all.csv"))
    (tmp_path / "mine.yaml").write_text(findings.config)
    data = read_recipe(str(tmp_path / "mine.yaml")).data
    assert data.images == {"gene": "all.csv:gene*", "blood": "all.csv:blood_na,blood_k"}
    assert data.labels == {"sodium": "all.csv:sodium", "bloodtype": "all.csv:bloodtype"}
    assert findings.num_mend == 0 and "per: channel" in findings.config and "kind: perceptron" in findings.config
    assert findings.facts.parts == {"train": (20, 20), "val": (5, 5), "test": (5, 5)}
    (tmp_path / "all.csv").write_text("id,age,weight\n" + "1,2,3\n" * 30)
    with pytest.raises(MandorlaError, match="neither a list of files by sample nor columns of numbers whose names"):
        find_out(str(tmp_path / "all.csv"))


def test_composed_data_are_looked_at_in_part(capsys):
    findings = find_out("polydigits", ["data.num_train=2000", *POLYDIGITS[1:3]])
    assert findings.facts.num_samples == 2060 and findings.facts.looked_at == NUM_COMPOSED + 60
    assert findings.num_mend == 0
    print_page(findings)
    assert "label digit" in capsys.readouterr().out


def test_images_side_by_side_are_told_by_their_width(tmp_path):
    for subject in range(8):
        png(tmp_path / f"{subject}.png", np.hstack([disk(subject, 0), disk(subject, 0, 0.8)]))
    (tmp_path / "0.png").write_bytes(b"no picture")
    findings = find_out(str(tmp_path))
    assert findings.facts.modalities[1].shape == (1, 16, 16) and "kind: side_by_side" in findings.config
    assert [problem.what for problem in findings.problems if problem.level == "mend"] == [
        "left: files that cannot be read: 1",
        "right: files that cannot be read: 1",
    ]


def test_a_folder_of_anything_else_is_refused(tmp_path):
    with pytest.raises(MandorlaError, match="holds no file that can be read"):
        guess(tmp_path)
    png(tmp_path / "one.png", disk(0, 0))
    png(tmp_path / "other.png", disk(0, 1))
    with pytest.raises(MandorlaError, match="nothing says which"):
        guess(tmp_path)


@pytest.mark.parametrize(
    ("names", "tried"),
    [
        (["t1/{n}.png", "t2/00{n}.png"], "tried: a folder per modality: t1, t2"),
        (["one/{n}_sag.png", "other/0{n}_tra.png"], "tried: file names that end in sag, tra; a folder per modality"),
        (["p1_t1_s{n}.png", "p1_t2_s{n}.png"], "nothing says which are one sample; write a recipe"),
    ],
)
def test_a_guess_that_pairs_nothing_is_refused(tmp_path, names, tried):
    for number in range(1, 6):
        for index, name in enumerate(names):
            png(tmp_path / name.format(n=number), disk(number, 0, 1 - index / 10))
    with pytest.raises(MandorlaError, match=tried):
        find_out(str(tmp_path))


def test_a_key_beside_the_folder_pairs_what_a_guess_does_not(tmp_path):
    for number in range(10):
        png(tmp_path / "t1" / f"{number}.png", disk(number, 0))
        png(tmp_path / "t2" / f"00{number}.png", disk(number, 0, 0.9))
    assert find_out(str(tmp_path), ["data.key='[0-9]$'"]).facts.paired == 10
    assert found(find_out(str(tmp_path), ["data.key='.+'"]), "no training sample has two").level == "mend"


def test_what_stands_before_the_numbers_of_subjects_is_no_subject(tmp_path):
    """As where three hands named the folders: PAT, pat and P are not three subjects."""
    names = [f"{['PAT-00', 'pat ', 'P_'][number % 3]}{number}" for number in range(12)]
    for number, name in enumerate(names):
        for index, modality in enumerate(("ct", "mr")):
            png(tmp_path / modality / f"{name}.png", disk(number, 0, 1 - index / 10))
    assert find_out(str(tmp_path)).facts.num_subjects == 12
    for path in tmp_path.glob("*/*.png"):
        png(path.with_name(f"{path.stem}_1.png"), np.asarray(Image.open(path))[::-1])
        path.rename(path.with_name(f"{path.stem}_2.png"))
    assert find_out(str(tmp_path)).facts.num_subjects == 12


def test_the_proposal_is_the_recipe_where_nothing_is_wrong(tmp_path):
    findings = find_out("phantom", ["data.num_train=30", "data.num_val=10", "data.num_test=10"])
    (tmp_path / "same.yaml").write_text(findings.config)
    same = read_recipe(str(tmp_path / "same.yaml"))
    given = read_recipe("phantom", ["data.num_train=30", "data.num_val=10", "data.num_test=10"])
    assert same.model_copy(update={"run": given.run}) == given


def test_volumes_are_judged_as_a_training_reads_them(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for subject in range(6):
        for name, axes in (("t1", "LAS"), ("t2", "PIR" if subject % 2 else "RAS")):
            volume = np.random.default_rng(subject).integers(0, 900, (6, 8, 10)).astype(np.int16)
            turn = nibabel.orientations.axcodes2ornt(axes)
            values = nibabel.orientations.apply_orientation(volume, turn)
            affine = nibabel.orientations.inv_ornt_aff(turn, volume.shape)
            (tmp_path / name).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / name / f"p{subject}.nii.gz")
    settings = {"kind": "folders", "root": str(tmp_path), "folders": {"t1": "t1", "t2": "t2"}, "duplicates": "keep"}

    def mend(**changes):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(json.dumps({"data": settings | {"intensity": {"kind": "minmax"}} | changes}))
        return [problem.what for problem in find_out(str(recipe)).problems if problem.level == "mend"]

    assert mend() == []
    assert mend(slices={}, size=[4, 3]) == []
    assert mend(slices={"axis": "sagittal"}, size=[5, 4]) == []
    assert mend(slices={}, size=[8, 9])[0] == "t1: 8 x 6 cannot be averaged down to data.size [8, 9]"
    assert mend(size=[10, 8, 6]) == []
    assert mend(size=[6, 8, 10])[0] == "t1: 10 x 8 x 6 cannot be averaged down to data.size [6, 8, 10]"
    moved = nibabel.load(tmp_path / "t2" / "p1.nii.gz")
    affine = moved.affine.copy()
    affine[0, 3] += 0.5
    nibabel.save(nibabel.Nifti1Image(np.asarray(moved.dataobj), affine), tmp_path / "t2" / "p1.nii.gz")
    assert mend() == ["volumes on another grid than their partner: 1"]
    assert mend(geometry={"resample": "to_first"}) == []


def test_subjects_without_the_background_of_the_others(folder):
    """Such as an inversion recovery with signs among images of magnitudes: what lies around the head is grey."""
    for number in range(SLICES):
        grey = 90 + 0.6 * disk(3, number).astype(float) - 80 * (disk(3, number + 1) > 0)
        png(folder / "ct" / f"p03_s{number}.png", grey.clip(0, 255).astype(np.uint8))
    problem = found(find_out(str(folder)), "without the dark background")
    assert problem.level == "note"
    assert problem.what.startswith("ct:") and problem.where == ["p03"]
    recipe = folder.parent / "mine.yaml"
    keys = 'folders: {ct: ct, mr: mr}, key: "(?P<subject>p..)_(?P<s>s.)", exclude: [p03]'
    recipe.write_text(f"data: {{kind: folders, root: mine, {keys}}}")
    findings = find_out(str(recipe))
    assert not [what for what in whats(findings) if "background" in what]
    assert sum(subjects for _, subjects in findings.facts.parts.values()) == SUBJECTS - 1


def test_images_that_fill_the_frame_have_no_such_subjects(folder):
    for subject in range(SUBJECTS):
        for number in range(SLICES):
            full = np.random.default_rng([subject, number]).integers(20 * subject % 60, 255, (16, 16), np.uint8)
            png(folder / "ct" / f"p{subject:02d}_s{number}.png", full)
    assert not [what for what in whats(find_out(str(folder))) if "background" in what]
