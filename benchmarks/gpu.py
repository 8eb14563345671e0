#!/usr/bin/env python3
"""How much of a GPU the trainings of both stages use.

    python benchmarks/gpu.py --write        # into experiments/SPEED.md, on a machine with a GPU that does nothing else

Each line is a training step on random data, as `mandorla train` takes it: in bfloat16, launched by Python, replayed as
a CUDA graph (`cuda_graph`), or that with the networks' kernels fused (`compile`). Its work is that of the products and
convolutions, forwards and backwards, as torch counts them; the peak is that of one large product in bfloat16, measured
here. What memory a step needs at least are weights, gradients, the optimiser's moments and the moving average in
float32, and what the backward pass asks for again.

The last lines are an evaluation of stage 2's network, as for samples, beside what it must take at least: its products
at the peak, or its weights, read once.
"""

import argparse
import gc
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from statistics import median

import torch
from sections import write_section
from speed import TABLES, count, named_modalities
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mandorla.data.dataset import Batch, all_present
from mandorla.diffusion.model import Diffusion
from mandorla.environment import commit, processor
from mandorla.recipe import read_recipe
from mandorla.replay import Inputs, Replay, Work
from mandorla.tables import markdown_head, markdown_row
from mandorla.training import compiled
from mandorla.vae.model import VAE
from mandorla.vae.objective import Objective

LARGE = [
    "vae.model.shared={channels: 8, stride: 4}",
    "vae.model.private={channels: 8, stride: 4}",
    "vae.model.encoder_decoder={kind: convolutional, patch: 2, channels: [128, 256, 512, 512], num_blocks: 2}",
    "diffusion.network={width: 768, depth: 12, heads: 6, patch: 4}",
]
LGG_128 = [
    "vae.model.private={channels: 4, stride: 2}",
    "vae.model.encoder_decoder={kind: convolutional, patch: 2, channels: [64, 128, 256, 256], num_blocks: 1}",
    "diffusion.network={width: 512, depth: 8, heads: 8, patch: 4, stack: private}",
]
SETTINGS = {  # recipe, changes, modalities, channels, pixels along an edge, batch of stage 1, of stage 2
    "large": ("lgg", LARGE, 3, 1, 256, 16, 32),
    "lgg": ("lgg", [], 3, 1, 64, 16, 16),
    "lgg-128": ("lgg", LGG_128, 3, 1, 128, 16, 32),
    "polymnist-quadrant": ("polymnist-quadrant", [], 5, 3, 64, 256, 512),
}
HOW = ("launched", "graph", "compiled")
_USUAL = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
STATES = 5  # numbers in float32 that a training keeps for each weight
PRODUCT, COPIED = 8192, 2**30  # rows of the product that is the peak; bytes that are copied


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--how", nargs="+", choices=HOW, default=HOW, help="how the steps of a training are taken")
    parser.add_argument("--repeats", type=int, default=7, help="steps that are timed (default: 7)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try this program")
    parser.add_argument("--size", type=int, help="pixels along an edge of all settings, to try this program")
    parser.add_argument("--batch", type=int, help="samples in a batch of all settings, to try this program")
    parser.add_argument("--channels-last", action="store_true", help="images of stage 1 in memory with channels last")
    parser.add_argument("--cudnn", action="store_true", help="attention by cuDNN, and its search for convolutions")
    parser.add_argument("--profile", action="store_true", help="print the kernels that take longest")
    parser.add_argument("--write", action="store_true", help="the section into experiments/SPEED.md")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU: run this on a machine that has one, or with --device cpu")
    lines = []
    torch.backends.cudnn.benchmark = asked.cudnn
    order = [SDPBackend.CUDNN_ATTENTION] * asked.cudnn + _USUAL
    with sdpa_kernel(order, set_priority=True):
        for line in table(asked):
            print(line, flush=True)
            lines.append(line)
    if asked.write:
        name = torch.cuda.get_device_name() if asked.device == "cuda" else "no GPU"
        command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
        made = (
            f"Made by `{command}`. {name}, {processor()}, torch {torch.__version__}; commit {commit() or 'unknown'}.\n"
        )
        write_section(TABLES, "gpu", "\n".join([made, *lines]), "# Speed\n")


def table(asked: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table."""
    device = torch.device(asked.device)
    peak, bandwidth = measure_peak(device)
    yield f"Peak: {peak / 1e12:.0f} TFLOP/s; a copy reads and writes {bandwidth / 1e12:.2f} TB/s.\n"
    yield from markdown_head(
        ["setting", "step of", "as", "parameters", "ms", "TFLOP", "of the peak", "GiB", "at least"]
    )
    on_gpu = device.type == "cuda"
    for name in asked.settings:
        for stage in ("vae", "diffusion"):
            flops, saved = count_work(*training(name, stage, False, asked))  # what was counted cannot be recorded
            for how in asked.how if on_gpu else HOW[:1]:
                module, step = training(name, stage, how != "launched", asked)
                with compiled(module) if how == "compiled" else nullcontext():
                    seconds, most = timed(step, device, asked.repeats)
                    if asked.profile:
                        print(profiled(step, device))
                least = 4 * STATES * count(module) + saved
                what, share = (name, stage, how, f"{count(module):,}"), flops / seconds / peak
                memory = (f"{size / 2**30:.1f}" for size in (most, least))
                yield markdown_row([*what, f"{1e3 * seconds:.1f}", f"{flops / 1e12:.2f}", f"{share:.0%}", *memory])
                del module, step  # and the memory of the graph
        for how in [how for how in asked.how if how != "graph"] if on_gpu else HOW[:1]:
            module, evaluate = evaluation(name, asked)
            flops, _ = count_work(module, evaluate)
            with compiled(module) if how == "compiled" else nullcontext():
                seconds, most = timed(evaluate, device, asked.repeats)
            floor = max(flops / peak, 2 * count(module) / bandwidth)
            what, share = (name, "evaluation", how, f"{count(module):,}"), floor / seconds
            took = (f"{1e3 * seconds:.1f}", f"{flops / 1e12:.2f}", f"{share:.0%}", f"{most / 2**30:.1f}")
            yield markdown_row([*what, *took, ""])
            del module, evaluate


def training(name: str, stage: str, graph: bool, asked: argparse.Namespace) -> tuple[nn.Module, Callable[[], object]]:
    """Return what one stage of a setting trains, and a step of it."""
    torch.manual_seed(0)
    recipe, changes, modalities, channels, size, of_vae, of_diffusion = SETTINGS[name]
    build, batch = (vae_work, of_vae) if stage == "vae" else (diffusion_work, of_diffusion)
    shape = (channels, *2 * [asked.size or size])
    module, work = build(
        read_recipe(recipe, changes), modalities, shape, asked.batch or batch, torch.device(asked.device)
    )
    if asked.channels_last and stage == "vae":
        module.to(memory_format=torch.channels_last)
    return module, optimised(module, work, graph)


def evaluation(name: str, asked: argparse.Namespace) -> tuple[nn.Module, Callable[[], object]]:
    """Return stage 2 of a setting, and what evaluates its network."""
    module, _ = training(name, "diffusion", False, asked)
    return module, network_call(module, asked.batch or SETTINGS[name][-1], torch.device(asked.device))


def measure_peak(device: torch.device) -> tuple[float, float]:
    """Return operations per second of a product in bfloat16, and bytes per second of a copy, read and written."""
    rows, size = (PRODUCT, COPIED) if device.type == "cuda" else (PRODUCT // 16, COPIED // 16)
    a, b = (torch.randn(rows, rows, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, _ = timed(lambda: a @ b, device, 20)
    copy, _ = timed(lambda: target.copy_(source), device, 20)
    return 2 * rows**3 / product, 2 * size / copy


def vae_work(recipe, modalities: int, shape: tuple[int, ...], batch: int, device: torch.device):
    """Return stage 1 and what leaves the gradients of a step of all terms in it."""
    named = named_modalities(modalities, shape)
    objective = Objective(VAE(recipe.vae.model, named), recipe.vae.loss).to(device)
    x = {m.name: torch.rand(batch, *m.shape, device=device) for m in named}
    paired = Batch(x, all_present(x))
    return objective, descending(lambda: objective(paired)[0], device)


def diffusion_work(recipe, modalities: int, shape: tuple[int, ...], batch: int, device: torch.device):
    """Return stage 2 and what leaves the gradients of a step in it."""
    layout = VAE(recipe.vae.model, named_modalities(modalities, shape)).layout
    diffusion = Diffusion(recipe.diffusion, layout).to(device)
    data = {name: torch.randn(batch, *size, device=device) for name, size in layout.shapes.items()}
    given = {name: torch.ones(batch, dtype=torch.bool, device=device) for name in data}
    return diffusion, descending(lambda: diffusion.loss(data, given)[0], device)


def network_call(diffusion: Diffusion, batch: int, device: torch.device) -> Callable[[], object]:
    """Return what evaluates the network of stage 2 for one time of all samples."""
    data = {name: torch.randn(batch, *size, device=device) for name, size in diffusion.layout.shapes.items()}
    times = torch.full((1, len(data)), 0.5, device=device)

    @torch.no_grad()
    def call():
        with torch.autocast(device.type, torch.bfloat16):
            return diffusion.network(data, times)

    return call


def descending(loss: Callable[[], Tensor], device: torch.device) -> Work:
    """Return what computes a loss in bfloat16 and its gradients."""

    def work(_: Inputs) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16):
            value = loss()
        value.backward()
        return {"loss": value.detach()}

    return work


def optimised(module: nn.Module, work: Work, graph: bool) -> Callable[[], object]:
    """Return a training step."""
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    replay = Replay(module.parameters())

    def step() -> None:
        replay(work, (), "any" if graph else None)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return step


def count_work(module: nn.Module, step: Callable[[], object]) -> tuple[int, int]:
    """Return how many operations a step takes, and how many bytes beside weights it keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(z: Tensor) -> Tensor:
        kept[z.untyped_storage().data_ptr()] = z.untyped_storage().nbytes()
        return z

    step()  # the moments of the optimiser are there from then on
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda z: z):
        step()
    for parameter in module.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return counter.get_total_flops(), sum(kept.values())


def timed(step: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, int]:
    """Return the seconds of a step, the median of `repeats`, and the most bytes that were taken of the GPU."""
    on_gpu, seconds = device.type == "cuda", []
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    gc.collect()  # what was compiled or counted before refers to itself
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(5):  # libraries choose kernels, and a graph is recorded
        step()
    for _ in range(repeats):
        wait()
        begun = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - begun)
    return median(seconds), torch.cuda.max_memory_reserved() if on_gpu else 0


def profiled(step: Callable[[], object], device: torch.device) -> str:
    """Return a table of the operations of a step that take longest."""
    activities = [getattr(torch.profiler.ProfilerActivity, name) for name in {"CPU", device.type.upper()}]
    with torch.profiler.profile(activities=activities) as profile:
        step()
    order = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    return profile.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=60)


if __name__ == "__main__":
    main()
