"""Spaces of features: the random one is the same for everyone, ONNX files are read safely, mistakes are one line."""

import importlib.util
import pickle

import numpy as np
import pytest
import torch

from mandorla.data.dataset import Modality
from mandorla.errors import MandorlaError
from mandorla.evaluate import OnnxNetwork, frechet_distance, random_features
from mandorla.evaluate.features import feature_spaces
from mandorla.evaluate.judges import Judge

needs_onnx = pytest.mark.skipif(
    not (importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")), reason="needs mandorla[onnx]"
)
WEIGHT = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)


def write_network(path, shape=("N", 3, 8, 8), weight=WEIGHT, kind="FLOAT", extra_input=False):
    """Write a network of one convolution, a small stand-in for Inception: maps of five channels."""
    from onnx import TensorProto, helper, numpy_helper, save

    def value(name, size):
        return helper.make_tensor_value_info(name, getattr(TensorProto, kind), size)

    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=weight.shape[2:])],
        "tiny",
        [value("x", shape), *([value("more", [1])] if extra_input else [])],
        [value("y", None)],
        [numpy_helper.from_array(weight.astype(np.float64 if kind == "DOUBLE" else np.float32), "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@needs_onnx
@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_an_onnx_network_gives_what_torch_computes(tmp_path, batch):
    network = OnnxNetwork(write_network(tmp_path / "net.onnx", (batch, 3, 8, 8)))
    x = torch.rand(70 if batch == "N" else 6, 3, 8, 8)
    expected = torch.conv2d(x, torch.from_numpy(WEIGHT)).flatten(2).mean(-1)
    torch.testing.assert_close(network.features(x), expected, rtol=1e-4, atol=1e-5)


@needs_onnx
def test_images_are_brought_to_what_the_network_takes(tmp_path):
    network = OnnxNetwork(write_network(tmp_path / "net.onnx"))
    grey = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(network.features(grey), network.features(grey.repeat(1, 3, 1, 1)))
    even = torch.full((2, 3, 20, 12), 0.5)
    torch.testing.assert_close(network.features(even), network.features(torch.full((2, 3, 8, 8), 0.5)))
    sizes = OnnxNetwork(write_network(tmp_path / "any.onnx", ("N", 3, "H", "W")))
    x = torch.rand(2, 3, 9, 7)
    expected = torch.conv2d(x, torch.from_numpy(WEIGHT)).flatten(2).mean(-1)
    torch.testing.assert_close(sizes.features(x), expected, rtol=1e-4, atol=1e-5)


@needs_onnx
def test_spaces_are_named_and_what_does_not_fit_is_said(tmp_path):
    path = write_network(tmp_path / "net.onnx")
    colour, volume = Modality("a", 3, (8, 8)), Modality("b", 1, (8, 8, 8))
    spaces, notes = feature_spaces((colour,), {"a": Judge(colour, {"k": 2})}, {"tiny": str(path)})
    assert list(spaces) == ["judge", "random", "tiny"] and not notes
    spaces, notes = feature_spaces((colour, volume), {}, {"tiny": str(path)})
    assert list(spaces) == ["random"] and "does not fit b" in notes[0]
    assert not OnnxNetwork(path).fits(Modality("c", 2, (8, 8)))


class Trap:
    """Leave a trace when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@needs_onnx
def test_a_file_that_is_no_network_is_one_line_and_runs_nothing(tmp_path):
    (tmp_path / "weights.onnx").write_bytes(pickle.dumps(Trap(tmp_path / "trace")))
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pt")
    for name in ("weights.onnx", "weights.pt"):
        with pytest.raises(MandorlaError, match="is no ONNX network") as error:
            OnnxNetwork(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "trace").exists()


@needs_onnx
@pytest.mark.parametrize("options", [{"kind": "DOUBLE"}, {"extra_input": True}, {"shape": (3,)}])
def test_networks_of_other_inputs_are_refused(tmp_path, options):
    with pytest.raises(MandorlaError, match="export|ONNX"):
        OnnxNetwork(write_network(tmp_path / "net.onnx", **options))


@needs_onnx
def test_missing_files_and_a_missing_library(tmp_path, monkeypatch):
    with pytest.raises(MandorlaError, match="no such file; mend the path in evaluate.features"):
        OnnxNetwork(tmp_path / "none.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MandorlaError, match=r"pip install -c constraints.txt 'mandorla\[onnx\]'"):
        OnnxNetwork(tmp_path / "none.onnx")


@pytest.mark.parametrize("shape", [(3, 24, 24), (1, 64), (1, 16, 16, 16), (5,), (1, 128, 96)])
def test_random_features_are_the_same_for_everyone(shape):
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    first = random_features(x)
    torch.manual_seed(5)
    assert torch.equal(random_features(x.numpy()), first)
    assert first.ndim == 2 and len(first) == 4 and first.std() > 0.01
    torch.testing.assert_close(random_features(x[2:]), first[2:], rtol=1e-4, atol=1e-5)


def test_random_features_tell_blur_noise_and_another_subject_from_another_draw():
    """Stripes of random place and direction; the more blur, the farther."""

    def stripes(seed, frequency=1.0):
        rng = np.random.default_rng(seed)
        angle, phase = rng.uniform(0, np.pi, (2, 400, 1, 1))
        rows, columns = np.mgrid[:32, :32] * frequency
        waves = np.sin(rows * np.sin(angle) + columns * np.cos(angle) + 2 * phase)
        return torch.as_tensor(0.5 + 0.4 * waves, dtype=torch.float32)[:, None]

    real, again = stripes(0), stripes(1)
    sets = {
        "again": again,
        "little blur": torch.nn.functional.avg_pool2d(again, 3, 1, 1),
        "much blur": torch.nn.functional.avg_pool2d(again, 5, 1, 2),
        "noise": (again + 0.1 * torch.randn(again.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1),
        "other": stripes(1, 1.3),
    }
    d = {name: frechet_distance(random_features(real), random_features(x)) for name, x in sets.items()}
    assert 5 * d["again"] < d["little blur"] < d["much blur"]
    assert 5 * d["again"] < d["other"] and 1.5 * d["again"] < d["noise"]


def test_features_of_a_judge_are_what_its_head_sees_averaged():
    judge = Judge(Modality("a", 1, (16, 16)), {"k": 3}).eval()
    x = torch.rand(3, 1, 16, 16)
    maps = judge.body(2 * x - 1).unflatten(1, (judge.features(x).shape[1], -1))
    torch.testing.assert_close(judge.features(x), maps.mean(-1))
