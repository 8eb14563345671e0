"""Building blocks for one, two and three spatial dimensions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mandorla.errors import MandorlaError
from mandorla.parallel import gather, world

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


def batch_norm(dims: int, channels: int) -> nn.Module:
    """Build a batch normalisation over `dims` spatial dimensions."""
    return {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](channels)


class CommonNorm(nn.modules.batchnorm._BatchNorm):
    """Normalise by the statistics of the rows of all processes; torch's own such layer (SyncBatchNorm) needs GPUs.

    References: Algorithms for Computing the Sample Variance, Chan, Golub, LeVeque, 1983,
    https://doi.org/10.1080/00031305.1983.10483115 (Eq. 2.1: sums of squares of parts, joined).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, C, *grid)`; the batch of a process may be empty."""
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _NormaliseInCommon.apply(x, self.weight, self.bias, self.eps)
        self.num_batches_tracked += 1
        pace = self.momentum * (count > 0)  # where no process has a row, statistics stay
        self.running_mean.lerp_(mean, pace)
        self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), pace)
        return y

    def _check_input_dim(self, x: Tensor) -> None:
        """Take any number of axes."""


class _NormaliseInCommon(torch.autograd.Function):
    """Return `x` normalised by mean and variance `(C,)` of the rows of all processes, these two, and how many values.

    All passes over `x` but one are torch's own kernels of batch normalisation: sums written out take twice as long.

    References: Batch Normalization, Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167 (Section 3, gradient).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num, nothing = x.numel() // x.shape[1], torch.zeros_like(weight)
        _, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps) if num else 3 * [nothing]
        own = torch.cat([weight.new_full([1], num), mean, scale.square().reciprocal() - eps if num else nothing])
        counts, means, variances = gather(own[None], [1] * world()).split([1, len(mean), len(mean)], 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count.clamp_min(1)
        variance = (counts * (variances + (means - mean).square())).sum(0) / count.clamp_min(1)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        y = F.batch_norm(x, mean, variance, weight, bias, eps=eps) if num else x.clone()
        return y, mean, variance, count

    @staticmethod
    def backward(ctx, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        scale = (variance + ctx.eps).rsqrt()
        of_x, of_weight, of_bias = gradient, *2 * [torch.zeros_like(weight)]
        if len(x):  # torch's kernels do not take an empty batch
            of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(  # as if statistics were constant
                gradient, x, weight, mean, variance, mean, scale, False, ctx.eps, [True, True, True]
            )
        slope, level = (
            gather(torch.stack([of_weight, of_bias])[None], [1] * world()).sum(0) * weight * scale / count.clamp_min(1)
        )
        slope = slope * scale
        level, slope = ((z.view(-1, *[1] * (x.ndim - 2))).to(x) for z in (level - slope * mean, slope))
        return of_x - torch.addcmul(level, slope, x), of_weight, of_bias, None


def normalise_in_common(network: nn.Module) -> None:
    """Let the batch normalisations of `network` see the rows of all processes.

    Raises MandorlaError for one without weights or a moving average, which a network of the user's own may have.
    """
    for name, layer in network.named_modules():
        if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            if not (layer.affine and layer.track_running_stats and layer.momentum):
                raise MandorlaError(f"{name}: several processes need a batch normalisation as torch makes it: {layer}")
            layer.__class__ = CommonNorm  # its weights and statistics stay what they are, and where


def initialise(network: nn.Module, outputs: tuple[nn.Module, ...] = ()) -> None:
    """Draw weights so that activations keep their size through SiLU layers (variance 2 / fan-in), biases zero.

    The layers in `outputs` start a tenth as large: first predictions are near zero, first posteriors near the prior.

    References: Delving Deep into Rectifiers, He et al., 2015, https://arxiv.org/abs/1502.01852 (Eq. 10).
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            taps = math.prod(k / s for k, s in zip(layer.kernel_size, layer.stride, strict=True))
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.in_channels * taps)))
        else:
            continue
        nn.init.zeros_(layer.bias)
    for layer in outputs:
        layer.weight.data.mul_(0.1)


def resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bring `x` (B, C, *grid) to a grid of `size`: average when coarser, nearest when finer; unchanged if empty."""
    if not size or x.shape[2:] == size:
        return x
    if all(a >= b for a, b in zip(x.shape[2:], size, strict=True)):
        pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
        return pool(x, size if len(size) > 1 else size[0])
    return F.interpolate(x, size=size, mode="nearest")


def touched(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the largest value of `x` (B, *grid) in each cell of a coarser grid of `size`, (B, *size); see `resize`."""
    pool = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[len(size)]
    return pool(x[:, None], size)[:, 0]


def trains_in_bf16(network: nn.Module) -> bool:
    """Return whether gradients in bfloat16 can be trusted: not those of three-dimensional convolutions on a CPU.

    There torch (seen with 2.13) gives wrong weight gradients, without a word, for 32 channels or more where the output
    has two cells along the first axis.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    return not (on_cpu and any(isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) for layer in network.modules()))


def num_groups(channels: int) -> int:
    """Return how many groups of channels are normalised together: eight, as far as each has two channels."""
    groups = math.gcd(8, channels)
    return groups if groups < channels else max(1, groups // 2)


class Residual(nn.Module):
    """Add a two-layer convolution, x + conv(silu(conv(silu(norm(x))))), of constant width."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(
            nn.GroupNorm(num_groups(channels), channels),
            nn.SiLU(),
            conv(dims, channels, channels, 3, padding=1),
            nn.SiLU(),
            conv(dims, channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, *grid)` to the same shape."""
        return x + self.layers(x)
