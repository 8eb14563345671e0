"""Settings of stage 2."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mandorla.config import Settings
from mandorla.diffusion.samplers import SamplingConfig
from mandorla.nets.diffusion_network import OwnNetworkConfig
from mandorla.nets.transformer import TransformerConfig
from mandorla.training import TrainingConfig


def _tag(value: Any) -> str:
    kind = value.get("kind", "transformer") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if kind == "transformer" else "custom"


NetworkConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")] | Annotated[OwnNetworkConfig, Tag("custom")], Discriminator(_tag)
]


class DiffusionConfig(Settings):
    """Learn the distribution of the latents that stage 1 wrote."""

    mode: Literal["joint", "conditional", "private"] = "joint"
    """joint: c and all private parts, and each given others; conditional: private parts given c; private: without c"""
    labels: tuple[str, ...] = ()
    """labels of the data, classes or numbers, on which everything can be conditioned; each is optional when used"""
    network: NetworkConfig = TransformerConfig()
    """network over the latent components"""
    joint_share: float = Field(0.5, ge=0, lt=1)
    """share of training samples in which all components travel together; of the others it learns each given others,
    which translation asks of it"""
    time_std: float = Field(1.0, gt=0)
    """spread of the logit-normal times"""
    time_shift: float = Field(1.0, gt=0)
    """above 1: more of the times near noise, as maps of many cells want, whose neighbours tell of each other; below:
    near data"""
    region_share: float = Field(0.0, ge=0, le=1)
    """share of the travelling maps of which a random region is known: what in-painting needs"""
    weak_share: float = Field(0.0, ge=0, lt=1)
    """share of the steps for which a second, weaker network is trained first, that samples can be led away from
    (`sampling.autoguidance`); 0: none"""
    training: TrainingConfig = TrainingConfig(steps=1500, learning_rate=2e-3, ema=0.998)
    """length, optimiser, logs"""
    sampling: SamplingConfig = SamplingConfig()
    """how samples are drawn"""
