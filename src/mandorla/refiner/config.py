"""Settings of the refiner."""

from pydantic import Field

from mandorla.config import Settings
from mandorla.nets.unet import UNetConfig
from mandorla.training import TrainingConfig


class RefinerConfig(Settings):
    """Learn the detail that the decoder of stage 1 leaves out."""

    network: UNetConfig = UNetConfig()
    """U-Net of each modality"""
    steps: int = Field(8, ge=0)
    """steps from noise to detail for every image that is made; 0: images stay as stage 1 decodes them"""
    temperature: float = Field(0.8, ge=0)
    """factor on the noise: 1 draws as learned; below, images stay nearer to what was decoded, and show the same more
    often"""
    guidance: float = Field(0.4, ge=0)
    """how far an image that is drawn is led to where stage 1 reads the vectors that it is drawn for, in standard
    deviations of the detail; 0: not at all. Maps need none: they say what is where"""
    training: TrainingConfig = TrainingConfig(steps=2000, batch_size=64, learning_rate=2e-3, ema=0.998)
    """length, optimiser, logs"""
