"""Settings of stage 1."""

from mandorla.config import Settings
from mandorla.training import TrainingConfig
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
