"""Encoders and decoders: every number of dimensions, every mixture of vectors and maps, users' own classes."""

import itertools
import math
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from mandorla.config import Settings, dump, load_settings
from mandorla.data.dataset import Modality
from mandorla.errors import MandorlaError
from mandorla.imports import register
from mandorla.nets.encoder_decoder import (
    ENCODER_DECODERS,
    ConvolutionalConfig,
    CustomConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    PerceptronConfig,
    build_encoder_decoder,
)

SMALL = ConvolutionalConfig(channels=(6, 8), patch=2, hidden=12, num_blocks=1)  # a stride of 4
SIZES = {1: (18,), 2: (18, 13), 3: (9, 10, 6)}  # not divisible by it


def shape_of(kind: str, channels: int, size: tuple[int, ...], stride: int = 4) -> tuple[int, ...]:
    return (channels, *(math.ceil(n / stride) for n in size if kind == "map"))


def check(network: EncoderDecoder, num: int) -> None:
    """Encode and decode `num` samples; every shape must be right and every weight must matter."""
    x = torch.rand(num, *network.modality.shape)
    network.train(num > 1)
    h = network.features(x)
    c = network.encode_shared(h)
    mean, log_std = network.encode_private(h, c)
    assert c.shape == (num, *network.shared)
    assert mean.shape == log_std.shape == (num, *network.private)
    again = network.decode(c, mean + log_std.exp())
    assert again.shape == x.shape
    if num > 1:
        (again.square().mean() + mean.mean() + log_std.mean()).backward()
        idle = [name for name, p in network.named_parameters() if p.grad is None]
        assert not idle


@pytest.mark.parametrize("dims", SIZES)
@pytest.mark.parametrize(("shared", "private"), list(itertools.product(["vector", "map"], repeat=2)))
@pytest.mark.parametrize("stride", [4, 2])
def test_convolutional(dims, shared, private, stride):
    modality = Modality("x", 2, SIZES[dims])
    shapes = shape_of(shared, 3, modality.size, stride), shape_of(private, 4, modality.size, 8)
    network = build_encoder_decoder(SMALL, modality, *shapes)
    check(network, 3)
    check(network, 1)


def test_a_cell_of_a_fine_map_sees_its_surroundings():
    """The features of a fine map come from the coarse levels too: they see further than their own level does."""
    far = {}
    for channels in ((6,), (6, 8, 8, 8)):
        config = ConvolutionalConfig(channels=channels, patch=2)
        network = build_encoder_decoder(config, Modality("x", 1, (32, 32)), (2, 16, 16), (2,)).eval()
        x = torch.rand(1, 1, 32, 32, requires_grad=True)
        network.encode_shared(network.features(x))[0, 0, 8, 8].backward()
        far[len(channels)] = (x.grad[0, 0] != 0).nonzero().float().std().item()
    assert far[4] > 3 * far[1]


@pytest.mark.parametrize("size", [(), (5,), (4, 3)])
def test_perceptron(size):
    network = build_encoder_decoder(PerceptronConfig(hidden=(7, 6)), Modality("x", 3, size), (2,), (4,))
    check(network, 3)
    check(network, 1)


@pytest.mark.parametrize("config", [SMALL, PerceptronConfig(hidden=(16,))])
def test_samples_do_not_see_each_other_in_use(config):
    network = build_encoder_decoder(config, Modality("x", 1, (9, 9)), (2,), (3,)).eval()
    x = torch.rand(4, 1, 9, 9)
    together, alone = (network.encode_shared(network.features(z)) for z in (x, x[1:2]))
    torch.testing.assert_close(alone, together[1:2], atol=1e-5, rtol=0)


def test_first_outputs_are_small():
    network = build_encoder_decoder(SMALL, Modality("x", 1, (16, 16)), (4,), (4,)).eval()
    x = torch.rand(8, 1, 16, 16)
    c = network.encode_shared(network.features(x))
    mean, log_std = network.encode_private(network.features(x), c)
    assert mean.abs().mean() < 0.5
    assert log_std.abs().mean() < 0.5


@pytest.mark.parametrize(
    ("config", "size", "shared", "private", "message"),
    [
        (SMALL, (), (2,), (2,), "'x' has no spatial size: set its encoder_decoder to `kind: perceptron`"),
        (SMALL, (8, 8), (2, 8, 8), (2,), r"shared map \(8, 8\) of modality 'x' is finer .* raise shared.stride to 2"),
        (SMALL, (8, 8), (2,), (2, 8, 8), r"private map .* raise private.stride to 2"),
        (PerceptronConfig(), (4,), (2, 4), (2,), "a perceptron has vector latents only"),
        (CustomConfig(kind="unheard"), (4,), (2,), (2,), "'unheard' is not known: use one of convolutional"),
        (CustomConfig(kind="no.such:Net"), (4,), (2,), (2,), "'no.such:Net' cannot be imported"),
        (CustomConfig(kind="torch:NoSuch"), (4,), (2,), (2,), "'torch:NoSuch' cannot be imported"),
        (CustomConfig(kind="torch.nn:Linear"), (4,), (2,), (2,), "not a subclass of mandorla.EncoderDecoder"),
    ],
)
def test_mistakes(config, size, shared, private, message):
    with pytest.raises(MandorlaError, match=message):
        build_encoder_decoder(config, Modality("x", 1, size), shared, private)


class Averages(EncoderDecoder):
    """Read and write nothing but means: the smallest network there is."""

    def __init__(self, modality, shared, private, gain: float = 1.0):
        super().__init__(modality, shared, private)
        self.gain = nn.Parameter(torch.tensor(gain))

    def encode_shared(self, h):
        return (self.gain * h.flatten(1).mean(1, keepdim=True)).expand(-1, *self.shared)

    def encode_private(self, h, c):
        mean = h.flatten(1).amax(1, keepdim=True).expand(-1, *self.private)
        return mean, torch.zeros_like(mean)

    def decode(self, c, u):
        return (c.mean(1) + u.mean(1)).view(-1, 1, *[1] * len(self.modality.size)).expand(-1, *self.modality.shape)


class Holder(Settings):
    net: EncoderDecoderConfig = ConvolutionalConfig()


def from_yaml(tmp_path, text: str) -> EncoderDecoderConfig:
    path = tmp_path / "net.yaml"
    path.write_text(text)
    config = load_settings(Holder, path=path)
    path.write_text(dump(config))
    assert load_settings(Holder, path=path) == config
    return config.net


def test_own_class_by_registered_name(tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODER_DECODERS.named, "averages", None)
    assert register("averages")(Averages) is Averages
    config = from_yaml(tmp_path, "net: {kind: averages, options: {gain: 2.0}}")
    network = build_encoder_decoder(config, Modality("x", 1, (4,)), (2,), (3,))
    assert isinstance(network, Averages)
    assert network.gain.item() == 2
    check(network, 3)
    with pytest.raises(MandorlaError, match="'averages' for 'x' cannot be built: .*size"):
        build_encoder_decoder(CustomConfig(kind="averages", options={"size": 1}), Modality("x", 1, (4,)), (2,), (3,))


def test_own_class_by_import_path(tmp_path, monkeypatch):
    module = ModuleType("my_package")
    module.Net = Averages
    monkeypatch.setitem(sys.modules, "my_package", module)
    config = from_yaml(tmp_path, "net: {kind: 'my_package:Net'}")
    assert isinstance(build_encoder_decoder(config, Modality("x", 1, (4,)), (2,), (3,)), Averages)


def test_unknown_key_of_a_network_is_named(tmp_path):
    with pytest.raises(MandorlaError, match="did you mean `net.hidden`"):
        from_yaml(tmp_path, "net: {kind: perceptron, hiden: [3]}")


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("encode_shared", lambda h: h[:, :1], r"`encode_shared` fails .*its code has shape \(2, 1\), not \(2, 2\)"),
        (
            "encode_private",
            lambda h, c: (h[:, :3], c),
            r"`encode_private` .*its log std has shape \(2, 2\), not \(2, 3\)",
        ),
        ("encode_private", lambda h, c: h, r"`encode_private` .*its mean has shape \(4,\), not \(2, 3\)"),
        ("decode", lambda c, u: c, r"`decode` .*its reconstruction has shape \(2, 2\), not \(2, 1, 4\)"),
        ("encode_shared", None, r"`encode_shared` fails on two empty samples \("),
        ("encode_private", None, r"`encode_private` fails on two empty samples \("),
        ("decode", None, r"`decode` fails on two empty samples \(NotImplementedError\): mend it"),
    ],
)
def test_own_class_with_a_mistake(monkeypatch, method, result, message):
    class Wrong(EncoderDecoder):
        def features(self, x):
            return x.flatten(1)

        def encode_shared(self, h):
            return h[:, :2]

        def encode_private(self, h, c):
            return h[:, :3], h[:, :3]

        def decode(self, c, u):
            return torch.cat([c, u], 1)[:, None, :4]

    monkeypatch.setitem(ENCODER_DECODERS.named, "wrong", Wrong)
    build = (CustomConfig(kind="wrong"), Modality("x", 1, (4,)), (2,), (3,))
    assert build_encoder_decoder(*build).training
    monkeypatch.setattr(Wrong, method, EncoderDecoder.decode if result is None else lambda self, *z: result(*z))
    with pytest.raises(MandorlaError, match=f"encoder_decoder 'wrong' for 'x': {message}"):
        build_encoder_decoder(*build)
