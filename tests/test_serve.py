"""The page's API: what it answers, what it refuses, and that users do not see or disturb each other."""

import base64
import io
import json
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_recipe

import mandorla
from mandorla.diffusion.model import Diffusion
from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError
from mandorla.pictures import drawable
from mandorla.serve import samples as serve_samples
from mandorla.serve import serve
from mandorla.serve.app import create_app, listen
from mandorla.vae.training import train_vae

BINARY = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def model(polydigits_run):
    return mandorla.load(polydigits_run)


@pytest.fixture(scope="module")
def client(model):
    with TestClient(create_app(model), base_url="http://127.0.0.1:8000") as client:
        yield client


def png(image: np.ndarray) -> bytes:
    """Return `(C, H, W)` in [0, 1] as the bytes of a PNG."""
    file = io.BytesIO()
    pixels = np.rint(255 * image).astype(np.uint8)
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def pixels(text: str) -> np.ndarray:
    """Return a picture of an answer, `(H, W, 3)` or `(H, W)`."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def as_shown(x: torch.Tensor) -> np.ndarray:
    """Return one colour image `(3, H, W)` as an answer has it."""
    return (255 * x.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()


def upload(client, modality: str, name: str, content: bytes, **query: str):
    return client.post(f"/api/uploads/{modality}", params={"name": name, **query}, content=content, headers=BINARY)


def test_what_is_drawn_is_what_the_model_draws(client, model):
    answer = client.get("/api/generate?seed=5&num=3&steps=2").json()
    x = model.sample(3, seed=5, steps=2).x
    assert answer["rows"] == list(x)
    assert [c["sample"] for c in answer["columns"]] == ["seed:5:0:2", "seed:5:1:2", "seed:5:2:2"]
    for row, images in zip(answer["rows"], answer["images"], strict=True):
        for index, image in enumerate(images):
            assert np.array_equal(pixels(image), as_shown(x[row][index]))
    again = client.get("/api/walk", params={"a": "seed:5:2:2", "b": "test:0", "num": 2}).json()
    decoded = model.decode(model.sample(3, seed=5, steps=2).latents[2:])
    assert np.abs(pixels(again["images"][0][0]).astype(int) - as_shown(decoded["view0"][0])).max() <= 1


def test_tuples_are_asked_for_by_labels_and_found_again(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    shutil.rmtree(run / "diffusion")
    train_diffusion(tiny_recipe(run, "polydigits", "diffusion.labels=[digit]"))
    model = mandorla.load(run)
    with TestClient(create_app(model), base_url="http://127.0.0.1:8000") as client:
        assert client.get("/api/model").json()["labels"] == {"digit": list("0123456789")}
        asked = "seed=5&num=2&steps=2&label=digit%3D3&guidance=4"
        answer = client.get(f"/api/generate?{asked}").json()
        model.sampling = model.sampling.model_copy(update={"guidance": 4.0})
        x = model.sample(2, seed=5, steps=2, labels={"digit": "3"}).x
        assert np.array_equal(pixels(answer["images"][0][1]), as_shown(x["view0"][1]))
        name = answer["columns"][1]["sample"]
        assert name == "seed:5:1:2:4.0:digit=3" and answer["settings"]["label"] == ["digit=3"]
        model.sampling = model.sampling.model_copy(update={"guidance": 1.0})
        again = client.get("/api/mix", params={"a": name}).json()
        assert np.abs(pixels(again["images"][0][0]).astype(int) - as_shown(x["view0"][1])).max() <= 1
        assert "changes nothing" in client.get("/api/generate?num=1&guidance=2").json()["notes"][0]
        for query, line in [
            ("label=digit%3D11", "label 'digit' has no class '11'"),
            ("label=sex%3Df", "stage 2 was trained with no label 'sex', only digit"),
            ("label=digit", "label 0: String should match pattern"),
        ]:
            refused = client.get(f"/api/generate?num=1&{query}")
            assert refused.status_code == 422 and refused.json()["detail"].startswith(line)


def test_pictures_say_how_they_were_made(client, model):
    query = {"seed": 4, "num": 2, "steps": 3}
    tile = client.get("/api/generate", params=query).json()["images"][1][1]
    whole = client.get("/api/generate", params=query | {"format": "png"})
    assert whole.headers["content-type"] == "image/png"
    expected = {"question": "generate", **query, "weights": model.weights[:16], "synthetic": True}
    for content in (base64.b64decode(tile), whole.content):
        about = json.loads(Image.open(io.BytesIO(content)).text["mandorla"])
        assert expected.items() <= about.items()
    assert json.loads(Image.open(io.BytesIO(base64.b64decode(tile))).text["mandorla"])["column"] == "1"


def test_fill_in_from_an_uploaded_file(client, model):
    x = model.data().test.batch([3]).x["view1"]
    token = upload(client, "view1", "my digit.png", png(x[0].numpy())).json()["token"]
    query = {"a": f"upload:{token}", "wanted": ["view2"], "num": 2, "seed": 6}
    answer = client.get("/api/fill", params=query).json()
    assert answer["rows"] == ["view1", "view2"]
    assert [c["title"] for c in answer["columns"]] == ["given", "draw 0", "draw 1", "mean", "std × 2"]
    read = torch.from_numpy(np.rint(255 * x.numpy()).astype(np.float32) / 255)
    drawn = model.translate({"view1": read}, ["view2"], 2, seed=6)["view2"]
    for index in range(2):
        assert np.abs(pixels(answer["images"][1][1 + index]).astype(int) - as_shown(drawn[index, 0])).max() <= 1
    assert answer["images"][1][0] is None and answer["images"][0][1] is None
    known = client.get("/api/fill?a=test:3&given=view1&wanted=view2&num=1").json()
    assert [c["title"] for c in known["columns"]] == ["given", "draw 0", "real"]
    assert np.array_equal(pixels(known["images"][1][2]), as_shown(model.data().test.batch([3]).x["view2"][0]))


def test_what_is_given_by_default_is_what_a_sample_has(client):
    token = upload(client, "view1", "x.png", png(np.random.default_rng(0).random((3, 24, 24)))).json()["token"]
    for a, rows in ((f"upload:{token}", ["view1", "view0", "view2"]), ("test:0", ["view0", "view1", "view2"])):
        answer = client.get("/api/fill", params={"a": a, "num": 1}).json()
        assert answer["rows"] == rows and answer["images"][0][0] and not answer["images"][1][0]


def test_guidance_is_of_one_question_alone(client, monkeypatch):
    seen, generate = [], Diffusion.generate

    def spy(self, noise, known, wanted, sampling, **more):
        seen.append(sampling.guidance)
        return generate(self, noise, known, wanted, sampling, **more)

    monkeypatch.setattr(Diffusion, "generate", spy)
    for more in ("", "&guidance=4", ""):
        assert client.get(f"/api/fill?a=test:3&given=view1&num=1{more}").status_code == 200
    assert seen == [1.0, 4.0, 1.0]
    assert client.get("/api/fill?guidance=11").status_code == 422


def test_what_is_strange_about_an_upload_is_said_of_what_is_made_of_it(client):
    kept = upload(client, "view0", "white.png", png(np.ones((3, 24, 24)))).json()
    assert "brighter than anything" in kept["note"]
    name = f"upload:{kept['token']}"
    for question in (f"fill?a={name}&num=1&steps=1", f"walk?a=test:0&b={name}", f"mix?a={name}&b={name}"):
        assert client.get(f"/api/{question}").json()["notes"] == [kept["note"]]


def test_uploads_of_one_sample_come_together(client, model):
    x = model.data().test.batch([3]).x
    first = upload(client, "view0", "a.png", png(x["view0"][0].numpy())).json()["token"]
    both = upload(client, "view2", "b.PNG", png(x["view2"][0].numpy()), token=first).json()
    assert both["modalities"] == ["view0", "view2"] and both["token"] != first and both["slices"] is None
    answer = client.get("/api/fill", params={"a": f"upload:{both['token']}", "num": 1}).json()
    assert answer["rows"] == ["view0", "view2", "view1"]
    assert client.get("/api/walk", params={"a": f"upload:{first}", "b": "test:0"}).json()["rows"] == ["view0"]


def test_swaps_and_mixes(client, model):
    answer = client.get("/api/mix?a=test:1&b=test:2&shared=0.25&private=0.75").json()
    a, b = (model.data().test.batch([i]).x for i in (1, 2))
    for column, expected in {
        0: a,
        1: b,
        2: model.swap(shared_from=a, private_from=b),
        3: model.swap(shared_from=b, private_from=a),
        4: model.mix(a, b, 0.25, 0.75),
    }.items():
        for row, name in enumerate(answer["rows"]):
            shown = pixels(answer["images"][row][column]).astype(int)
            assert np.abs(shown - as_shown(expected[name][0])).max() <= 1, (name, column)


def test_dimensions_come_in_the_order_of_what_they_change(client, model):
    answer = client.get("/api/traverse?a=test:0&component=view1&num=3&top=4").json()
    numbers = [float(row.partition(": ")[2]) for row in answer["rows"]]
    assert numbers == sorted(numbers, reverse=True) and len(numbers) == 4
    channel = int(answer["rows"][0].partition(":")[0])
    x = model.data().test.batch([0]).x
    ends = model.traverse(x, "view1", channel, 2)["view1"]
    assert np.abs(pixels(answer["images"][0][2]).astype(int) - as_shown(ends[1, 0])).max() <= 1
    assert numbers[0] == pytest.approx(float((ends[0] - ends[1]).square().mean().sqrt()), abs=6e-4)
    assert client.get("/api/traverse?component=shared&show=view2").status_code == 200


def test_a_training_image_is_its_own_nearest_neighbour(client, model):
    from mandorla.evaluate.gather import choose

    train = model.data().train
    index = choose(train, model.recipe.evaluate.num_train, model.recipe.seed)[7]
    x = train.batch([index]).x
    token = None
    for name in x:  # within the rounding of a PNG
        more = {"token": token} if token else {}
        token = upload(client, name, "x.png", png(x[name][0].numpy()), **more).json()["token"]
    answer = client.get("/api/nearest", params={"a": f"upload:{token}", "num": 3}).json()
    assert answer["columns"][1]["title"].endswith(": 0.001") or answer["columns"][1]["title"].endswith(": 0.000")
    assert np.array_equal(pixels(answer["images"][0][1]), as_shown(x["view0"][0]))
    assert answer["notes"][1].startswith("0% of")


def test_what_the_model_is(client, model):
    about = client.get("/api/model").json()
    assert about["modalities"] == {m.name: list(m.shape) for m in model.modalities}
    assert about["components"]["shared"] == list(model.vae.layout.shapes["shared"])
    assert (about["steps"], about["guidance"]) == (model.sampling.steps, model.sampling.guidance)
    assert client.get("/api/data").json() == {name: len(part) for name, part in model.data().parts.items()}
    described = client.get("/api/openapi.json").json()
    for path, verbs in described["paths"].items():
        for operation in verbs.values():
            assert operation["summary"], path
    assert "seed" in [p["name"] for p in described["paths"]["/api/generate"]["get"]["parameters"]]


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("generate?num=65", "num: Input should be less than or equal to 64"),
        ("generate?seed=x", "seed: Input should be a valid integer"),
        ("generate?sed=1", "sed: Extra inputs are not permitted"),
        ("generate?steps=201", "steps: Input should be less"),
        ("walk?a=test:99999", "no sample 99999 in the test part: it has 20"),
        ("walk?a=test:-1", "names no sample"),
        ("walk?a=../../etc/passwd", "names no sample"),
        ("walk?a=upload:nobody", "this upload is not here, or no longer"),
        ("walk?a=seed:0:99999999", "names no sample"),
        ("walk?a=seed:0:0:9999", "names no sample"),
        ("walk?a=seed:0:0::nan", "names no sample: 'nan' is no guidance from 0 to 10"),
        ("walk?a=seed:0:0:::digit=3", "stage 2 was trained with no label 'digit'"),
        ("fill?given=viw0", "the sample has no 'viw0': give what it has, view0"),
        ("fill?wanted=viw0", "unknown modality 'viw0', did you mean 'view0'?"),
        ("fill?given=view0&given=view1&given=view2", "nothing to fill in"),
        ("traverse?component=view9", "unknown component 'view9'"),
        ("traverse?show=view9", "the sample has no 'view9': show what it has, view0"),
    ],
)
def test_what_cannot_be_asked_is_one_line(client, query, line):
    answer = client.get(f"/api/{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(line) or line in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "content", "status", "line"),
    [
        ("x.exe", b"MZ", 422, "x.exe: not a kind of file that can be uploaded"),
        ("x.png", b"no picture", 422, "x.png: cannot be read as an image"),
        ("x.png", b"", 422, "x.png: cannot be read as an image"),
        ("../../x.png", b"", 422, "x.png: cannot be read as an image"),
        ("x.nii.gz", zlib.compress(b"0" * 10**6), 422, "x.nii.gz: cannot be read"),
        ("x.npy", b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", 422, "x.npy:"),
        ("x.npz", b"", 422, "x.npz: not a kind of file"),
        ("x.png", png(np.zeros((3, 8, 8))), 422, "x.png: "),
        ("x.png", png(np.zeros((1, 24, 24))), 422, "x.png: channels: 1, but modality 'view0' of this model has 3"),
    ],
)
def test_uploads_that_are_refused(client, name, content, status, line):
    answer = upload(client, "view0", name, content)
    assert (answer.status_code, answer.json()["detail"][: len(line)]) == (status, line)
    assert "/" not in answer.json()["detail"].replace("24 x 24", "").replace("and/or", ""), "no path of the server"


def test_uploads_have_limits(client, monkeypatch):
    digit = png(np.zeros((3, 24, 24)))
    assert client.post("/api/uploads/view0?name=x.png", content=digit).status_code == 415
    assert upload(client, "viw0", "x.png", digit).json()["detail"].startswith("unknown modality 'viw0'")
    kept = upload(client, "view0", "x.png", digit).json()["token"]
    monkeypatch.setattr("mandorla.serve.app.LARGEST_FILE", 1000)
    assert upload(client, "view0", "x.png", digit + b"0" * 1001).status_code == 413
    monkeypatch.setattr(serve_samples, "LARGEST_CONTENT", 10**6)
    bomb = io.BytesIO()
    np.save(bomb, np.zeros((3, 24, 24)))
    header = bomb.getvalue()[:128].replace(b"(3, 24, 24), }", b"(3, 24, 9**9)}")
    assert len(header) == 128
    assert upload(client, "view0", "x.npy", header).status_code == 422
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f8", "fortran_order": False, "shape": (3, 1000, 1000)})
    assert "declares 0.0 GiB" in upload(client, "view0", "x.npy", huge.getvalue()).json()["detail"]
    monkeypatch.setattr(serve_samples, "LARGEST_STORE", 20_000)
    for _ in range(4):
        last = upload(client, "view0", "x.png", digit).json()["token"]
    gone = client.get("/api/walk", params={"a": f"upload:{kept}"})
    assert gone.json()["detail"] == "this upload is not here, or no longer: upload the file again"
    assert client.get("/api/walk", params={"a": f"upload:{last}"}).status_code == 200


def test_only_this_machine_and_this_page_may_ask(client):
    assert client.get("/", headers={"host": "attacker.example"}).status_code == 400
    assert client.get("/api/model", headers={"host": "attacker.example:8000"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:8000"}).status_code == 200
    for site in ("cross-site", "same-site"):
        assert client.get("/api/generate", headers={"sec-fetch-site": site}).status_code == 403
        assert client.get("/", headers={"sec-fetch-site": site}).status_code == 200, "a link to the page"
    answer = client.get("/api/model", headers={"origin": "http://attacker.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for text in (page.text, client.get("/page.js").text, client.get("/page.css").text):
        assert "http://" not in text and "https://" not in text and "//cdn" not in text
    for path in ("/../pyproject.toml", "/page.css/../app.py", "/%2e%2e/config.yaml", "/config.yaml", "/docs"):
        assert client.get(path).status_code == 404, path


def test_figures_and_report_of_a_run_cannot_run_scripts(copy_of, polydigits_run):
    run = copy_of(polydigits_run)
    with TestClient(create_app(mandorla.load(run)), base_url="http://localhost") as client:
        for path in ("/api/metrics", "/report"):
            assert client.get(path).status_code == 404
        record = {"name": "a/b", "value": 1.0, "error": 0.0, "n": 3, "definition": "<script>alert(1)</script>"}
        (run / "metrics.json").write_text(json.dumps({"records": [record]}))
        (run / "report.html").write_text("<script>alert(1)</script>")
        assert client.get("/api/metrics").json()[0]["definition"] == record["definition"]
        policy = client.get("/report").headers["content-security-policy"]
        assert policy.startswith("sandbox; default-src 'none'") and "script-src" not in policy
        wrong = json.dumps({"records": [record | {"value": "many"}]})
        for broken in ("{", "[]", '{"records": [{"nme": 1}]}', '{"records": 3}', '{"records": [3]}', wrong):
            (run / "metrics.json").write_text(broken)
            assert client.get("/api/metrics").status_code == 422, broken


def test_eight_users_at_once(client):
    """200 requests: no error, and everybody gets what was asked for, never another one's upload."""
    rng = np.random.default_rng(0)
    digits = rng.random((8, 3, 24, 24))

    def use(user: int) -> list[str]:
        token = upload(client, "view0", "mine.png", png(digits[user])).json()["token"]
        seen = []
        for turn in range(12):
            answer = client.get("/api/fill", params={"a": f"upload:{token}", "num": 1, "steps": 1, "seed": turn})
            assert answer.status_code == 200, answer.text
            assert np.array_equal(pixels(answer.json()["images"][0][0]), as_shown(torch.from_numpy(digits[user])))
            drawn = client.get(f"/api/generate?seed={user}&num=1&steps=1")
            assert drawn.status_code == 200
            seen.append(drawn.json()["images"][0][0])
        return seen

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(use, range(8)))
    assert all(len(set(seen)) == 1 for seen in results), "the same question, the same answer"
    assert len({seen[0] for seen in results}) == 8, "other seeds, other answers"


FIELDS = ["a", "b", "num", "seed", "steps", "given", "wanted", "shared", "part", "component", "show", "reach", "top"]
TEXT = st.text(max_size=40) | st.sampled_from(["test:0", "seed:1:2:3", "upload:x", "view0", "0", "-1", "1e99", "nan"])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    question=st.sampled_from(["generate", "fill", "mix", "walk", "traverse", "nearest"]),
    query=st.dictionaries(
        st.sampled_from(
            [
                "a",
                "b",
                "num",
                "seed",
                "steps",
                "given",
                "wanted",
                "shared",
                "part",
                "component",
                "show",
                "reach",
                "top",
                "format",
            ]
        ),
        TEXT,
    ),
)
def test_any_question_is_answered_or_refused(client, question, query):
    assert client.get(f"/api/{question}", params=query).status_code in (200, 422)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from([f"x{suffix}" for suffix in serve_samples.ACCEPTED]) | st.text(max_size=30),
    content=st.binary(max_size=400),
    cut=st.integers(0, 400),
)
def test_any_upload_is_read_or_refused(client, name, content, cut):
    real = png(np.zeros((3, 24, 24)))
    for body in (content, real[:cut] + content):
        assert upload(client, "view0", name, body).status_code in (201, 422)


def test_volumes_are_uploaded_slice_by_slice(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    for name in ("t1", "t2"):
        (tmp_path / name).mkdir()
        for subject in range(10):
            volume = np.zeros((20, 18, 8), np.int16)
            volume[3:-3, 3:-3, 2:7] = rng.integers(50, 200, (14, 12, 5))
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / name / f"s{subject}.nii.gz")
    data = "data={kind: folders, root: %s, folders: {t1: t1, t2: t2}, key: '(?P<subject>s.)', slices: {axis: axial}, "
    data = data % json.dumps(str(tmp_path)) + "intensity: {kind: minmax}}"
    recipe = tiny_recipe(tmp_path / "run", "phantom", data)
    train_vae(recipe)
    with TestClient(create_app(mandorla.load(tmp_path / "run")), base_url="http://localhost") as client:
        t1, t2 = ((tmp_path / name / "s3.nii.gz").read_bytes() for name in ("t1", "t2"))
        one = upload(client, "t1", "s3.nii.gz", t1).json()
        assert sorted(one["slices"]) == [2, 3, 4, 5, 6]
        both = upload(client, "t2", "s3.nii.gz", t2, token=one["token"]).json()
        assert both["modalities"] == ["t1", "t2"]
        answer = client.get("/api/mix", params={"a": f"upload:{both['token']}:4", "b": f"upload:{both['token']}:2"})
        shown = pixels(answer.json()["images"][0][0])
        volume = nibabel.load(tmp_path / "t1" / "s3.nii.gz").get_fdata()[:, :, 4].T[::-1, ::-1]
        assert np.corrcoef(shown.ravel(), volume.ravel())[0, 1] > 0.999
        gone = client.get("/api/mix", params={"a": f"upload:{both['token']}:7"})
        assert gone.json()["detail"] == "the upload has no slice 7 with foreground: choose another one"


def test_stage_1_alone_can_be_explored(copy_of, polydigits_run):
    run = copy_of(polydigits_run)
    (run / "diffusion" / "weights.safetensors").unlink()
    with TestClient(create_app(mandorla.load(run)), base_url="http://localhost") as client:
        assert client.get("/api/model").json()["mode"] is None
        assert "train diffusion" in client.get("/api/generate").json()["detail"]
        assert client.get("/api/mix").status_code == 200


def test_signals_are_drawn_as_lines(signals_run):
    with TestClient(create_app(mandorla.load(signals_run)), base_url="http://localhost") as client:
        answer = client.get("/api/generate?num=2")
        assert answer.status_code == 200
        image = pixels(answer.json()["images"][0][0])
        assert image.shape == (96, 160) and (image == 255).any() and (image < 200).any()
        assert client.get("/api/generate?num=2&format=png").status_code == 200


@pytest.mark.parametrize("num", [2, 5, 19])
def test_lines_stay_whole_where_they_are_shown_smaller(num):
    image = drawable(torch.rand(1, num, generator=torch.Generator().manual_seed(num)))[0]
    for first in (0, 1):
        assert (image[first::2, ::2] < 0.8).any(0)[2:-2].all()


def test_many_channels_do_not_hide_each_other():
    levels = drawable(torch.full((12, 300), 0.5))[0]
    dark = (levels[1:-1, 80] < 0.5).int()
    assert int((dark.diff() == 1).sum()) == 12


def test_a_port_that_is_taken_is_named(model):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MandorlaError, match="choose another with --port"):
            listen(model, taken.getsockname()[1])


def test_what_is_not_installed_is_named(polydigits_run, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mandorla.serve.app", None)
    with pytest.raises(MandorlaError, match=r"pip install -c constraints.txt 'mandorla\[serve\]'"):
        serve(polydigits_run, 0)
