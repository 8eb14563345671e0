"""A user's own networks and dataset: found from any folder, in both stages, and again after loading."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import mandorla
from mandorla import imports
from mandorla.cli import main
from mandorla.data.dataset import Modality
from mandorla.diffusion.training import train_diffusion
from mandorla.errors import MandorlaError
from mandorla.imports import REGISTERS, import_all
from mandorla.nets.encoder_decoder import ENCODER_DECODERS, CustomConfig, build_encoder_decoder
from mandorla.recipe import read_recipe, read_run

NETS = '''
import torch
from torch import nn

from beside import WIDTH
from mandorla import EncoderDecoder, register


@register("mine")
class Mine(EncoderDecoder):
    """A linear layer for everything."""

    number = 1

    def __init__(self, modality, shared, private, factor=1):
        super().__init__(modality, shared, private)
        size = torch.Size(modality.shape).numel()
        self.read = nn.Sequential(nn.Flatten(), nn.Linear(size, factor * WIDTH), nn.SiLU())
        self.to_shared = nn.Linear(factor * WIDTH, shared[0])
        self.to_private = nn.Linear(factor * WIDTH + shared[0], 2 * private[0])
        self.write = nn.Sequential(nn.Linear(shared[0] + private[0], size), nn.Unflatten(1, modality.shape))

    def features(self, x):
        return self.read(x)

    def encode_shared(self, h):
        return self.to_shared(h)

    def encode_private(self, h, c):
        return self.to_private(torch.cat([h, c], 1)).chunk(2, 1)

    def decode(self, c, u):
        return self.write(torch.cat([c, u], 1))
'''


@pytest.fixture(autouse=True)
def networks_of_other_tests():
    """Leave the networks and datasets registered that were."""
    before = [dict(register.named) for register in REGISTERS]
    yield
    for register, named in zip(REGISTERS, before, strict=True):
        register.named.update(named)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a folder with `mynets.py` and what it imports, which is also the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mynets.py").write_text(NETS)
    (folder / "beside.py").write_text("WIDTH = 8\n")
    monkeypatch.chdir(folder)
    return folder


RECIPE = """
run: ../r
device: cpu
imports: [mynets.py]
data: {kind: polydigits, num_train: 64, num_val: 16, num_test: 16}
vae:
  model: {shared: {channels: 4}, private: {channels: 4}, encoder_decoder: {kind: mine, options: {factor: 2}}}
  training: {steps: 2, batch_size: 16}
diffusion:
  network: {width: 16, depth: 1, heads: 2}
  training: {steps: 2, batch_size: 16}
  sampling: {steps: 2}
"""


def command(*arguments: str) -> None:
    """Run a command line, which must succeed, as if nothing had been imported."""
    forget()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code


def forget() -> None:
    """Forget all networks and datasets of users."""
    for register in REGISTERS:
        register.named.clear()
    imports._files.clear()


def test_both_stages_and_loading_from_other_folders(project, tmp_path, monkeypatch):
    Path("mine.yaml").write_text(RECIPE)
    command("train", "vae", "mine.yaml")
    assert read_run(tmp_path / "r").imports == (str(project / "mynets.py"),)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    command("train", "diffusion", "../r")
    command("sample", "../r", "--num", "2", "--out", "here")
    assert Path("here/view0/0001.png").is_file()
    monkeypatch.chdir(tmp_path)
    forget()
    assert type(mandorla.load("r").vae.networks["view1"]).__name__ == "Mine"
    new = "import mandorla; print(mandorla.load('../r').sample(2).x['view1'].shape)"
    environment = os.environ | {"PYTHONPATH": str(Path(mandorla.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", new], cwd="elsewhere", env=environment, capture_output=True, text=True
    )
    assert "torch.Size([2, 3, 24, 24])" in result.stdout, result.stderr
    (project / "mynets.py").unlink()
    with pytest.raises(
        MandorlaError, match="r/config.yaml: imports: .*mynets.py: no such file; put it there, or write"
    ):
        mandorla.load("r")


OWN = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from mandorla import DiffusionNetwork, register


@register("mine")
class Pairs(Dataset):
    def __init__(self, root, num=90):
        self.images = np.load(root / "images.npy")[:num]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        images = {"a": self.images[i], "b": self.images[i, :, ::2].mean(2) if i % 4 else None}
        return {"images": images, "group": f"p{i // 3:02d}", "labels": {"kind": "xy"[i // 3 % 2]}}


@register("mine")
class Flow(DiffusionNetwork):
    def __init__(self, layout, labels, width=8):
        super().__init__(layout, labels)
        sizes = [torch.Size(shape).numel() for shape in layout.shapes.values()]
        known = len(sizes) + sum(labels.values())
        self.layers = nn.Sequential(nn.Linear(sum(sizes) + known, width), nn.SiLU(), nn.Linear(width, sum(sizes)))

    def forward(self, components, times, held, labels):
        told = [labels[name].nan_to_num() for name in self.labels]
        return self.layout.split(self.layers(torch.cat([self.layout.join(components), times, *told], 1)))
"""
ALL_THREE = """
run: ../r
device: cpu
imports: [mynets.py, own.py]
data: {kind: python, dataset: mine, root: images, options: {num: 75}, intensity: {kind: minmax}}
vae:
  model: {shared: {channels: 4}, private: {channels: 4}, encoder_decoder: {kind: mine, options: {factor: 2}}}
  training: {steps: 2, batch_size: 16, compile: true}
diffusion:
  labels: [kind]
  network: {kind: mine, options: {width: 12}}
  weak_share: 0.5
  training: {steps: 2, batch_size: 16, compile: true}
  sampling: {steps: 2, autoguidance: 1.5}
evaluate:
  {num_train: 20, num_test: 10, num_generated: 10, num_translated: 2, num_samples: 2, judge_steps: 2, label: kind}
"""


@pytest.fixture
def all_three(project):
    """Write a dataset and a network of stage 2 into the project, and a recipe with an encoder/decoder too."""
    (project / "images").mkdir()
    np.save(project / "images" / "images.npy", np.random.default_rng(0).normal(100, 20, (90, 1, 8, 6)))
    (project / "own.py").write_text(OWN)
    (project / "mine.yaml").write_text(ALL_THREE)
    return project


def test_dataset_and_both_networks_from_other_folders(all_three, tmp_path, monkeypatch):
    command("train", "vae", "mine.yaml")
    command("train", "vae", "mine.yaml")  # there is nothing to do, and nothing else is found
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    command("train", "diffusion", "../r")
    command("sample", "../r", "--num", "3", "--label", "kind=y", "--out", "drawn")
    command("evaluate", "../r")
    assert Path("../r/report.html").is_file()

    forget()
    model = mandorla.load("../r")
    assert [type(net).__name__ for net in (model.diffusion.network, model.diffusion.weak)] == ["Flow", "Flow"]
    assert model.diffusion.network.layers[0].out_features == 12
    parts = model.data().parts
    assert sum(map(len, parts.values())) == 75
    batch = parts["test"].batch(range(9))
    x = {name: z[batch.present["b"]][:2] for name, z in batch.x.items()}
    assert model.translate({"a": x["a"]}, wanted=["b"], num_samples=3)["b"].shape == (3, 2, 1, 4)
    assert model.sample(4, labels={"kind": "x"}).x["a"].shape == (4, 1, 8, 6)
    assert model.log_likelihood(model.encode(x), num_probes=1).isfinite().all()

    new = "import mandorla; m = mandorla.load('r'); print(m.sample(2).x['a'].shape, m.data().test.ids)"
    environment = os.environ | {"PYTHONPATH": str(Path(mandorla.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", new], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == f"torch.Size([2, 1, 8, 6]) {parts['test'].ids}", result.stderr


def test_files_for_an_own_dataset(all_three, tmp_path):
    """Arrays (C, *size) in files of their own have the scale of the dataset's, those in an .npz are in [0, 1]."""
    command("train", "vae", "mine.yaml")
    command("train", "diffusion", "mine.yaml")
    model, images = mandorla.load("../r"), np.load("images/images.npy")
    unit = model.to_unit({"a": images[:2]})
    Path("new").mkdir()
    for row in range(2):
        np.save(f"new/{row}.npy", images[row])
    np.savez("new.npz", a=unit["a"])
    for source in ("new", "new.npz"):
        command("translate", "../r", source, f"from-{source}", "--given", "a", "--wanted", "b")
    for row, (known, _) in enumerate(zip(*[iter(sorted(Path("from-new/b").iterdir()))] * 2, strict=True)):
        assert known.name.startswith(str(row))
    command("swap", "../r", "--shared-from", "0", "--private-from", "1", "--out", "swapped")


def test_a_network_of_stage_2_may_come_later(all_three, tmp_path):
    """What stage 1 imported stays, and what stage 2 imports stays when stage 1 is asked for again."""
    first = ALL_THREE.replace(", own.py]", "]").replace(
        ALL_THREE.splitlines()[4], "data: {kind: polydigits, num_train: 64}"
    )
    own = "  labels: [kind]\n  network: {kind: mine, options: {width: 12}}\n"
    assert own in first
    Path("first.yaml").write_text(first.replace(own, ""))
    command("train", "vae", "first.yaml")
    Path("second.yaml").write_text("base: first.yaml\nimports: [own.py]\ndiffusion: {network: {kind: mine}}")
    command("train", "diffusion", "second.yaml")
    command("train", "vae", "first.yaml")
    assert read_run(tmp_path / "r").imports == (str(all_three / "own.py"), str(all_three / "mynets.py"))
    forget()
    model = mandorla.load("../r")
    assert type(model.diffusion.network).__name__ == "Flow"
    assert type(model.vae.networks["view0"]).__name__ == "Mine"
    (all_three / "own.py").rename("moved.py")
    Path("second.yaml").write_text("base: first.yaml\nimports: [moved.py]\ndiffusion: {network: {kind: mine}}")
    for stage, recipe in (("vae", "first.yaml"), ("diffusion", "second.yaml")):  # what is gone is forgotten
        command("train", stage, recipe)
    assert read_run(tmp_path / "r").imports == (str(all_three / "mynets.py"), str(all_three / "moved.py"))


def test_all_three_by_their_paths_of_import(all_three, tmp_path, monkeypatch):
    text = ALL_THREE.replace("imports: [mynets.py, own.py]\n", "").replace("dataset: mine", "dataset: 'own:Pairs'")
    text = text.replace("encoder_decoder: {kind: mine", "encoder_decoder: {kind: 'mynets:Mine'")
    Path("mine.yaml").write_text(text.replace("network: {kind: mine", "network: {kind: 'own:Flow'"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path and not (Path(path) / "own.py").exists()])
    for name in ("own", "mynets"):
        sys.modules.pop(name, None)
    command("train", "vae", "project/mine.yaml")
    assert read_run(tmp_path / "r").imports == tuple(str(all_three / name) for name in ("mynets.py", "own.py"))
    forget()
    assert len(mandorla.load("r").data().train) > 40


def test_a_mistake_in_the_network_of_stage_2_leaves_the_run_as_it_was(all_three, tmp_path):
    command("train", "vae", "mine.yaml")
    before = (tmp_path / "r" / "config.yaml").read_text()
    Path("own.py").write_text(OWN.replace("*told], 1)))", "*told], 1)))['a']"))
    forget()
    with pytest.raises(MandorlaError, match="diffusion.network 'mine': `forward` fails on two empty samples"):
        train_diffusion(read_recipe("mine.yaml", ["diffusion.mode=private"]))
    assert (tmp_path / "r" / "config.yaml").read_text() == before
    assert not (tmp_path / "r" / "diffusion").exists()


def test_a_run_from_before_stage_2_had_kinds_of_networks(polydigits_run, copy_of):
    run = copy_of(polydigits_run)
    text = (run / "config.yaml").read_text()
    assert "    kind: transformer\n" in text
    (run / "config.yaml").write_text(text.replace("    kind: transformer\n", ""))
    model = mandorla.load(run)
    assert torch.equal(model.sample(2).x["view0"], mandorla.load(polydigits_run).sample(2).x["view0"])
    train_diffusion(read_recipe(str(run), [f"run={json.dumps(str(run))}"], "diffusion"))
    assert (run / "config.yaml").read_text() == text
    with pytest.raises(MandorlaError, match="was begun with diffusion.network.depth=1, not 2"):
        train_diffusion(
            read_recipe(str(run), [f"run={json.dumps(str(run))}", "diffusion.network.depth=2"], "diffusion")
        )


@pytest.mark.parametrize("here", [".", "..", "../elsewhere"])
def test_a_network_by_its_path_of_import_is_found_again(project, tmp_path, monkeypatch, here):
    """`kind: module:Class` means the file beside the recipe, wherever the command is given, and stays that file."""
    Path("mine.yaml").write_text(
        RECIPE.replace("imports: [mynets.py]\n", "").replace("kind: mine", "kind: 'mynets:Mine'")
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path and not (Path(path) / "mynets.py").exists()])
    sys.modules.pop("mynets", None)
    command("train", "vae", str(project / "mine.yaml"))
    assert read_run(tmp_path / "r").imports == (str(project / "mynets.py"),)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path and not (Path(path) / "mynets.py").exists()])
    sys.modules.pop("mynets", None)
    command("train", "diffusion", "../r")
    assert type(mandorla.load("../r").vae.networks["view1"]).__name__ == "Mine"


def test_two_projects_may_use_one_name(project, tmp_path):
    """Each reading of a recipe gives the name to its own network; a file that changed is read again."""
    other = tmp_path / "other.py"
    other.write_text(NETS.replace("number = 1", "number = 2"))
    for _ in range(2):
        import_all(["mynets.py"], "recipe")
        assert ENCODER_DECODERS.named["mine"].number == 1
        import_all([str(other)], "recipe")
        assert ENCODER_DECODERS.named["mine"].number == 2
    other.write_text(NETS.replace("number = 1", "number = 33"))
    os.utime(other, (1, 1))
    import_all([str(other)], "recipe")
    assert ENCODER_DECODERS.named["mine"].number == 33


def test_two_projects_may_use_one_name_of_what_they_import(tmp_path):
    """A file and a package, both beside the file that imports them."""
    for number, folder in enumerate("ab"):
        (tmp_path / folder / "my_blocks").mkdir(parents=True)
        (tmp_path / folder / "my_layers.py").write_text(f"number = {number}")
        (tmp_path / folder / "my_blocks" / "__init__.py").touch()
        (tmp_path / folder / "my_blocks" / "deep.py").write_text(f"number = {10 + number}")
        imports = "from my_blocks import deep\nimport my_layers\n"
        network = NETS.replace("number = 1", "number = my_layers.number, deep.number")
        (tmp_path / folder / "mynets.py").write_text(imports + network)
    for _ in range(2):
        for number, folder in enumerate("ab"):
            import_all([str(tmp_path / folder / "mynets.py")], "recipe")
            assert ENCODER_DECODERS.named["mine"].number == (number, 10 + number)
            assert import_module("mynets").Mine.number == (number, 10 + number), "also by its path of import"
    forget()
    import_all([str(tmp_path / "a" / "mynets.py")], "recipe")
    assert ENCODER_DECODERS.named["mine"].number == (0, 10)


def test_modules_are_imported_by_name(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    shutil.copy("mynets.py", "my_module_of_nets.py")
    import_all(["my_module_of_nets"], "recipe")
    assert ENCODER_DECODERS.named["mine"].__module__ == "my_module_of_nets"
    assert imports.settle(["my_module_of_nets", "mynets.py"]) == ("my_module_of_nets", str(project / "mynets.py"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, "mine.yaml: imports: .*none.py: no such file; put it there, or write where it is now"),
        ("no_such_module", None, "imports: no_such_module: No module named 'no_such_module'; install it, or name its"),
        ("a.py", "x = 1\nx ===", r"imports: .*a.py:2: SyntaxError: invalid syntax.*; mend it"),
        ("b.py", "\n1 / 0", r"imports: .*b.py:2: ZeroDivisionError: division by zero; mend it"),
        ("c.py", "\nimport not_installed", r"imports: .*c.py:2: No module named 'not_installed'; install it"),
        ("d.py", "import sys\nsys.exit('bye')", r"imports: .*d.py:2: SystemExit: bye; mend it"),
        ("e.py", "import mandorla\n@mandorla.register('perceptron')\nclass A: pass", "e.py:2: .*'perceptron'.* choose"),
        ("f.py", "import mandorla\n@mandorla.register('a')\nclass A: pass", "f.py:2: .*no subclass of mandorla"),
        ("g.py", "import mandorla\n@mandorla.register\nclass A: pass", "g.py:2: .*write @register"),
    ],
)
def test_what_cannot_be_imported_is_named(project, name, text, message):
    if text:
        Path(name).write_text(text)
    Path("mine.yaml").write_text(RECIPE.replace("mynets.py", name))
    for _ in range(2):
        with pytest.raises(MandorlaError, match=message):
            read_recipe("mine.yaml")


def test_an_unknown_network_says_where_it_could_come_from():
    with pytest.raises(
        MandorlaError, match="'mien' is not known: .* or name the file that registers it under `imports`"
    ):
        build_encoder_decoder(CustomConfig(kind="mien"), Modality("x", 1, (4,)), (4,), (4,))
