"""Spaces of features in which sets of images are compared; each has a name, without which its figures mean nothing.

- *judge*: the last layer of the supervised classifier of the modality, averaged over space: what matters for the class
- *random*: the same network with random weights of a fixed seed: no weights, no labels, the same for everyone; it sees
  texture, sharpness and colour and is not partial to photographs
- those of the user (`evaluate.features`): any network as an ONNX file, Inception or RadImageNet's among them. ONNX
  holds a graph of known operations and numbers: unlike pickle it runs no code when it is opened.

Reference: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020,
https://arxiv.org/abs/2002.09797, section 4 (random networks, where the data are no photographs).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mandorla.data.dataset import Modality
from mandorla.device import own_random
from mandorla.errors import MandorlaError
from mandorla.evaluate.images import Images, unit_images
from mandorla.evaluate.judges import Judge
from mandorla.evaluate.settings import OWN_SPACES
from mandorla.optional import library

JUDGE, RANDOM = OWN_SPACES
_CHUNK = 64
_SEED = 0  # of the random networks: another one would be another space


def random_network(modality: Modality) -> Judge:
    """Return the network of the space *random* for data of this shape: He's weights, no biases."""
    with own_random(_SEED):
        network = Judge(modality, {})
        for layer in network.body:
            if hasattr(layer, "weight"):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
    return network.eval()


def random_features(images: Images) -> Tensor:
    """Return the features `(B, F)` of `images` `(B, C, *size)` in [0, 1] in the space *random*.

    Raises MandorlaError for what are no such images.
    """
    images = unit_images(images)
    return random_network(Modality("", images.shape[1], tuple(images.shape[2:]))).features(images)


class OnnxNetwork:
    """Read features off the first output of a network in an ONNX file, averaged over space where it is a map.

    The network gets float32 images in [0, 1], `(B, C, *size)`: what else it needs (another range, mean and standard
    deviation) belongs into the file. Images are resized where it has a fixed size, and a single channel is repeated
    where it takes three. Raises MandorlaError if the file is no such network or onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        onnxruntime = library("onnxruntime", "onnx")
        if not path.is_file():
            raise MandorlaError(f"{path}: no such file; mend the path in evaluate.features")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors are raised as well
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of error for every kind of damage
            raise MandorlaError(f"{path}: is no ONNX network ({_line(error)}): export it again") from error
        self.path, (self.input, *others) = path, self.session.get_inputs()
        if others or self.input.type != "tensor(float)" or len(self.input.shape) < 2:
            raise MandorlaError(f"{path}: takes {self._takes()}: export a network of one float32 input (B, C, *size)")
        self.channels, *self.size = self.input.shape[1:]
        self.batch = self.input.shape[0] if isinstance(self.input.shape[0], int) else _CHUNK

    def fits(self, modality: Modality) -> bool:
        """Return whether images of this shape can be brought to what the network takes."""
        known = isinstance(self.channels, int)
        return len(self.size) == len(modality.size) and (
            not known or modality.channels == self.channels or modality.channels == 1
        )

    def features(self, images: Images) -> Tensor:
        """Return the features `(B, F)` of `images` `(B, C, *size)` in [0, 1].

        Raises MandorlaError for what are no such images, none at all, and those that the network does not take.
        """
        images = unit_images(images)
        if not len(images) or images.ndim != 2 + len(self.size):
            raise MandorlaError(f"{self.path}: takes {self.input.shape}, not images {tuple(images.shape)}")
        return torch.cat([self._read(part) for part in images.split(self.batch)])

    def _read(self, x: Tensor) -> Tensor:
        num = len(x)
        if isinstance(self.channels, int) and x.shape[1] == 1:
            x = x.repeat(1, self.channels, *[1] * len(self.size))
        size = [want if isinstance(want, int) else have for want, have in zip(self.size, x.shape[2:], strict=True)]
        if size != list(x.shape[2:]):
            mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
            x = nn.functional.interpolate(x, size, mode=mode, antialias=mode == "bilinear", align_corners=False)
        if isinstance(self.input.shape[0], int) and num < self.batch:  # a fixed batch is filled up
            x = torch.cat([x, x[-1:].expand(self.batch - num, *x.shape[1:])])
        try:
            answer = torch.from_numpy(np.asarray(self.session.run(None, {self.input.name: x.numpy()})[0], np.float32))
        except Exception as error:
            raise MandorlaError(
                f"{self.path}: fails on images {tuple(x.shape)} ({_line(error)}): export it again"
            ) from error
        if answer.ndim < 2 or len(answer) != len(x):
            raise MandorlaError(f"{self.path}: gives {tuple(answer.shape)} for {len(x)} images, expected (B, F, ...)")
        return answer[:num].flatten(2).mean(-1) if answer.ndim > 2 else answer[:num]

    def _takes(self) -> str:
        inputs = self.session.get_inputs()
        return ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)


Networks = Mapping[str, Judge | OnnxNetwork]  # of each modality


def feature_spaces(
    modalities: tuple[Modality, ...], judges: Mapping[str, Judge], files: Mapping[str, str]
) -> tuple[dict[str, Networks], list[str]]:
    """Return the networks of each space that all `modalities` have, and a note on each that was left out.

    `judges` are those of the data's labels, if they have any; `files` names spaces and their ONNX files.
    """
    spaces: dict[str, Networks] = {RANDOM: {m.name: random_network(m) for m in modalities}}
    if judges.keys() >= spaces[RANDOM].keys():
        spaces = {JUDGE: judges} | spaces
    notes = []
    for name, path in files.items():
        network = OnnxNetwork(Path(path))
        unfit = [m.name for m in modalities if not network.fits(m)]
        if unfit:
            notes.append(
                f"Left out: the features '{name}' ({Path(path).name}), a network of {network.input.shape}, which does"
                f" not fit {', '.join(unfit)}."
            )
        else:
            spaces[name] = dict.fromkeys(spaces[RANDOM], network)
    return spaces, notes


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
