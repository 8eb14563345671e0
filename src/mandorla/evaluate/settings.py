"""Settings of the evaluation."""

import re
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from mandorla.config import Relative, Settings

Suite = Literal["disentanglement", "coherence", "fidelity", "translation", "audit"]
SUITES: tuple[Suite, ...] = get_args(Suite)
OWN_SPACES = ("judge", "random")  # spaces of features that come with mandorla


class EvaluateConfig(Settings):
    """What is measured, on how many samples, and which factors of the data are what."""

    suites: tuple[Suite, ...] = SUITES
    """questions to answer"""
    num_train: int = Field(4000, ge=20)
    """training samples that probes are fitted on"""
    num_searched: int | None = Field(None, ge=20)
    """training samples that copies are looked for among; null for all"""
    num_test: int = Field(2000, ge=10)
    """test samples at most"""
    num_residual: int = Field(1000, ge=0)
    """training samples and test samples whose residual private parts are probed; 0 for none"""
    num_generated: int = Field(1000, ge=10)
    """generated samples for coherence, swaps, fidelity and the copy audit"""
    num_translated: int = Field(64, ge=1)
    """test samples that are translated on every route and reconstructed"""
    num_samples: int = Field(8, ge=1)
    """samples per translation; likeness is given for a single one and for the mean of all"""
    routes: tuple[tuple[str, str], ...] = ()
    """translations to measure, as pairs of modalities [given, wanted]; empty for all ordered pairs"""
    judge_steps: int = Field(600, ge=1)
    """training steps of the supervised classifiers"""
    judge_batch_size: int = Field(64, ge=2)
    """samples per training step of the supervised classifiers"""
    label: str = "digit"
    """factor that all modalities share: the class; without it in the data, what needs it is left out"""
    private_label: str = "quadrant"
    """factor that each modality has for itself, called `<this>_<modality>` in the data"""
    quantities: tuple[str, ...] | None = None
    """factors that are numbers (age, echo time), each modality's own if called `<this>_<modality>`; null for all"""
    lesion: str = "lesion_present"
    """factor that says whether a sample has a lesion; its place is the factor `lesion_mask`"""
    segmenter_steps: int = Field(400, ge=0)
    """training steps of the network that outlines lesions, where there is a `lesion_mask`; 0 for none"""
    lesion_modality: str = "t2"
    """the modality that shows the lesion"""
    features: Annotated[dict[str, str], Relative()] = {}
    """further spaces of features for fidelity, by name: ONNX files of networks that take images in [0, 1]"""

    @field_validator("suites")
    @classmethod
    def _something_is_measured(cls, suites: tuple[Suite, ...]) -> tuple[Suite, ...]:
        if not suites:
            raise ValueError(f"nothing is measured: name some of {', '.join(SUITES)}")
        return suites

    @field_validator("features")
    @classmethod
    def _names_are_free(cls, features: dict[str, str]) -> dict[str, str]:
        for name in features:
            if name in OWN_SPACES or not re.fullmatch(r"[\w-]{1,40}", name):
                raise ValueError(f"a space cannot be called {name!r}: take letters, digits, - and _, not {OWN_SPACES}")
        return features

    def settle(self) -> "EvaluateConfig":
        """Return the settings with absolute paths, whatever the current folder will be."""
        return self.model_copy(update={"features": {name: str(Path(p).resolve()) for name, p in self.features.items()}})
