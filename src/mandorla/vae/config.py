"""Settings of stage 1."""

from pydantic import Field

from mandorla.config import Settings
from mandorla.training import TrainingConfig
from mandorla.vae.distillation import DistillationConfig
from mandorla.vae.model import ModelConfig
from mandorla.vae.objective import LossConfig


class VAEConfig(Settings):
    """Learn shared and private latents."""

    model: ModelConfig = ModelConfig()
    """networks and latent sizes"""
    loss: LossConfig = LossConfig()
    """terms and their weights"""
    training: TrainingConfig = TrainingConfig()
    """length, optimiser, logs"""
    distillation: DistillationConfig | None = None
    """after the training: shared codes learn to say what the others' say, which takes out of c what is private"""
    copies: int = Field(1, ge=1)
    """latents of each sample that stage 2 learns from: the first read from all its modalities, each further one,
    augmented as stage 1's batches are, from a random subset of them, as in a translation; may change after the
    training, stage 2 is then trained anew"""
