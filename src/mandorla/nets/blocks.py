"""Building blocks for one, two and three spatial dimensions."""

from torch import Tensor, nn
from torch.nn import functional as F

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def conv(dims: int, channels_in: int, channels_out: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Module:
    """Build a convolution over `dims` spatial dimensions."""
    return _CONV[dims](channels_in, channels_out, kernel, stride, padding)


def transposed_conv(
    dims: int, channels_in: int, channels_out: int, kernel: int, stride: int = 1, padding: int = 0
) -> nn.Module:
    """Build a transposed convolution over `dims` spatial dimensions."""
    return _TRANSPOSED[dims](channels_in, channels_out, kernel, stride, padding)


def resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bring `x` (B, C, *grid) to a grid of `size`: average when coarser, nearest when finer; unchanged if empty."""
    if not size or x.shape[2:] == size:
        return x
    if all(a >= b for a, b in zip(x.shape[2:], size, strict=True)):
        pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
        return pool(x, size if len(size) > 1 else size[0])
    return F.interpolate(x, size=size, mode="nearest")


class Residual(nn.Module):
    """Add a two-layer convolution, x + conv(silu(conv(silu(norm(x))))), of constant width."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(
            nn.GroupNorm(min(8, channels), channels),
            nn.SiLU(),
            conv(dims, channels, channels, 3, padding=1),
            nn.SiLU(),
            conv(dims, channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, *grid)` to the same shape."""
        return x + self.layers(x)
