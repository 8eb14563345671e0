"""The training loop that both stages share: keyed randomness, moving average, checkpoints, resume, logs.

Everything random in step k follows from (seed, k): which samples form the batch, and the generator's state before the
forward pass. So a resumed training needs no stored random state and equals an uninterrupted one, bit by bit on a CPU.
The state from which it resumes is written whole, with a checksum; the one before it is kept.

Weights that are used afterwards are an exponential moving average, updated after each optimiser step with the decay
min(ema, (1 + k) / (10 + k)).

Several processes divide each batch (`mandorla.parallel`) and take every step together; the first one writes, what it
writes does not depend on their number, and training goes on with any other number of them.
"""

import copy
import json
import math
import os
import signal
import threading
import warnings
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mandorla.config import Settings
from mandorla.environment import begun_with, note_environment
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.nets.blocks import normalise_in_common, trains_in_bf16
from mandorla.parallel import anyone, gather, is_first, wait, world
from mandorla.replay import Replay
from mandorla.storage import locked, whole, write_bytes, write_text
from mandorla.track import Name, blamed, open_trackers

WEIGHTS, LOG = "weights.safetensors", "metrics.jsonl"
STATE, PREVIOUS = "last.safetensors", "previous.safetensors"
_FIGURES_EVERY = 20  # steps
_BAR_WIDTH = 66  # characters before the figures
_WITH_BAR, _WITH_TIME = 76, 56  # characters that a terminal must have to show these beside step and loss
_LINE = 96  # characters of figures in a line about a validation


Loss = Callable[[nn.Module, Any, float], tuple[Tensor, dict[str, Tensor]]]


class TrainingConfig(Settings):
    """Length, batches, optimiser and logs of one training."""

    steps: int = Field(1000, ge=1)
    """optimiser steps"""
    batch_size: int = Field(256, ge=2)
    """samples per step"""
    learning_rate: float = Field(2e-3, gt=0)
    """peak learning rate of AdamW: linear warm-up, then a cosine to zero"""
    warmup: float = Field(0.05, ge=0, lt=1)
    """share of the steps that warm up"""
    weight_decay: float = Field(0.02, ge=0)
    """decoupled weight decay"""
    clip: float = Field(1.0, gt=0)
    """largest norm of the gradient"""
    ema: float = Field(0.99, ge=0, lt=1)
    """longest decay of the moving average of the weights"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """arithmetic of the networks: bfloat16 autocast, or float32 throughout (as volumes on a CPU always are)"""
    cuda_graph: bool = True
    """on one GPU, record steps that are alike as a graph of kernels and replay it: faster, for more memory"""
    compile: bool = False
    """let torch.compile fuse the kernels of the networks in steps that are alike, which takes a minute or two at first:
    for large ones on a GPU"""
    validate_every: int = Field(100, ge=1)
    """steps between two validations; the best one's weights are kept"""
    checkpoint_every: int = Field(200, ge=1)
    """steps between two states from which training resumes"""
    picture_every: int = Field(500, ge=1)
    """steps between two grids of pictures"""


class TrainerConfig(Settings):
    """The processes that train together."""

    devices: int = Field(1, ge=1)
    """processes on each machine, each with a GPU of its own if there are GPUs; torchrun and SLURM bring their own"""
    num_nodes: int = Field(1, ge=1)
    """machines, on each of which the same command is typed; they share the run folder"""
    rendezvous: str | None = Field(None, pattern=r"^[^\s:]+:\d+$")
    """host:port where several machines meet; the host is one of them"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every process has all weights; fsdp: each has a part of them, for networks that are too large for one"""


def fit(
    module: nn.Module,
    config: TrainingConfig,
    folder: Path,
    *,
    seed: int,
    num_samples: int,
    copies: int = 1,
    fetch: Callable[[np.ndarray, int], Any],
    loss: Loss,
    validate: Callable[[nn.Module], dict[str, float]],
    picture: Callable[[nn.Module], bytes | None],
    export: Callable[[nn.Module], dict[str, Tensor]],
    title: str,
    key: str,
    track: Sequence[Name] = ("tensorboard",),
    strategy: Literal["ddp", "fsdp"] = "ddp",
    parts: Callable[[nn.Module], Iterable[nn.Module]] = lambda module: [module],
    prepare: Callable[[Any], Any] = lambda batch: batch,
    kind: Callable[[Any, float], Hashable] = lambda inputs, progress: None,
) -> None:
    """Train `module`, or go on where `folder` says that an earlier call stopped.

    - `fetch(indices, step)` gives the batch of these training samples for that step; where each has `copies`, index i
      is one of sample i % num_samples
    - `prepare(batch)` makes of it, in the step, what `loss(module, inputs, progress)` gives a loss and named terms of
    - `kind(inputs, progress)`: steps of one kind run the same kernels, and their inputs are dicts of tensors of the
      same shapes; None, of steps of which that is not known
    - `validate(module)` gives named figures, of which `loss` decides what is best; `picture(module)` gives a PNG
    - `export(module)` names the tensors that belong to the model; those of the best validation become
      `weights.safetensors`
    - `title` and `key` name the training and its settings, such as `vae.training`, in messages
    - `track` names the trackers that the figures go to
    - `strategy`: processes that work together have all weights each (ddp), or divide among them those of each of the
      `parts(module)`, inner ones first (fsdp)

    Processes that work together call all of these together, each with the indices of the whole batch. Control-C saves
    the state after the current step. Raises MandorlaError if the loss stops being finite, or memory does not suffice.
    """
    sharded = parts if strategy == "fsdp" else None
    training = _Training(module, config, folder, seed, num_samples, copies, title, key, loss, sharded)
    if training.step == config.steps:
        if not (folder / WEIGHTS).is_file():
            raise MandorlaError(
                f"{folder} ended its training, but {WEIGHTS} is missing: restore it, or delete {folder}"
            )
        return

    def batch_at(step: int) -> Any:
        return fetch(batch_indices(seed, step, config.batch_size, copies * num_samples), step)

    with (
        locked(folder) if is_first() else nullcontext(),
        ThreadPoolExecutor(1) as ahead,
        _progress() as progress,
        _Log(folder, track, training.step, training.waiting) as training.log,
        _errors_named(training),
        compiled(module) if config.compile else nullcontext(),
        _Interrupt() as interrupt,
    ):
        if training.step and (threads := begun_with(folder)):
            torch.set_num_threads(threads)  # sums over another number of parts end in other digits
        if is_first():
            for left in folder.glob(".tmp*"):  # that safetensors was writing to when a training was killed
                left.unlink()
            note_environment(folder, seed)
        task = progress.add_task(title, total=config.steps, completed=training.step, figures="")
        upcoming = ahead.submit(batch_at, training.step)
        while training.step < config.steps:
            batch = upcoming.result()
            if training.step + 1 < config.steps:
                upcoming = ahead.submit(batch_at, training.step + 1)
            training.advance(batch, prepare, kind)
            progress.update(task, completed=training.step)
            if (
                training.due(_FIGURES_EVERY)
                or training.due(config.validate_every)
                or training.due(config.checkpoint_every)
            ):
                figures = training.write_figures()
                progress.update(task, figures=_in_short(figures, progress.console.width - _BAR_WIDTH))
            if training.due(config.validate_every):
                figures = training.validate(validate, export)
                line = f"step {training.step}, validation: {_in_short(figures, _LINE)}"
                progress.console.print(line, highlight=False, soft_wrap=True)
            if training.due(config.picture_every):
                training.draw(picture)
            stop = anyone(interrupt.asked)
            if training.due(config.checkpoint_every) or stop:
                training.save()
            if stop:
                raise KeyboardInterrupt
        wait()  # until the first process has written the weights, which others may read next


class _Training:
    """Hold what changes during a training: weights, their moving average, the optimiser, step, best validation loss."""

    def __init__(
        self,
        module: nn.Module,
        config: TrainingConfig,
        folder: Path,
        seed: int,
        num_samples: int,
        copies: int,
        title: str,
        key: str,
        loss: Loss,
        sharded: Callable[[nn.Module], Iterable[nn.Module]] | None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.module, self.config, self.folder, self.seed = module, config, folder, seed
        self.num_samples, self.copies, self.title, self.key = num_samples, copies, title, key
        self.average = copy.deepcopy(module).requires_grad_(False).eval()
        self.in_bf16 = config.precision == "bf16" and trains_in_bf16(module)
        moments, self.step, self.best, self.waiting = _restore(folder, module, self.average)
        self.together = _divided(module, self.average, sharded) if world() > 1 else module
        self.optimizer = torch.optim.AdamW(
            module.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        _restore_moments(self.optimizer, module, moments)
        self.loss, self.replay = loss, Replay(module.parameters(), f"{key}.cuda_graph")
        on_one_gpu = next(module.parameters()).device.type == "cuda" and world() == 1
        self.replays = config.cuda_graph and on_one_gpu
        self.log: _Log | None = None  # opened by whoever trains: a finished training is left as it is

    def due(self, every: int) -> bool:
        """Return whether what happens every so many steps happens now; everything happens after the last step."""
        return self.step % every == 0 or self.step == self.config.steps

    def advance(self, batch: Any, prepare: Callable[[Any], Any], kind: Callable[[Any, float], Hashable]) -> None:
        """Take one optimiser step, then move the average after the weights."""
        config, done = self.config, self._done
        torch.manual_seed(_key(self.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * lr_schedule(done, config.warmup)
        inputs = prepare(batch)
        alike = kind(inputs, done) if self.replays or config.compile else None
        written = config.compile and alike is None  # steps of other shapes would each be compiled anew
        with torch.compiler.set_stance("force_eager") if written else nullcontext():
            terms = self.replay(self._gradients, inputs, alike if self.replays else None)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), config.clip)
        self.optimizer.step()
        _lerp(self.average, self.module, min(config.ema, (1 + self.step) / (10 + self.step)))
        self.step += 1
        self.log.add(terms | {"gradient": _whole(norm)})

    @property
    def _done(self) -> float:
        return self.step / self.config.steps

    def _gradients(self, inputs: Any) -> dict[str, Tensor]:
        """Leave the gradients of a step in the weights, and return the terms of its loss."""
        device = next(self.module.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.in_bf16):
            value, terms = self.loss(self.together.train(), inputs, self._done)
        value.backward()
        return terms

    def write_figures(self) -> dict[str, float]:
        """Log the terms since the last time and return their means. Raises MandorlaError if one is not finite."""
        self.check()
        return self.log.write("train", self.step)

    def check(self) -> None:
        """Raise MandorlaError if a term since the last line of figures is not finite."""
        if (ago := self.log.not_finite_since()) is None:
            return
        step = self.step - ago
        rows = batch_indices(self.seed, step - 1, self.config.batch_size, self.copies * self.num_samples)
        rows %= self.num_samples
        shown = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        kept = f"; {self.folder} keeps the last good state" if (self.folder / STATE).is_file() else ""
        raise MandorlaError(
            f"the loss of {self.title} is not finite at step {step} (batch: training samples {shown}, counted from 0):"
            f" lower {self.key}.learning_rate (now {self.config.learning_rate:g}) or set"
            f" {self.key}.precision to fp32, in another run folder{kept}"
        )

    def validate(self, measure: Callable[[nn.Module], dict[str, float]], export: Callable) -> dict[str, float]:
        """Log and return the figures of the average, and keep its weights if they are the best so far."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.seed)
            self.log.add(figures := measure(self.average))
        self.log.write("val", self.step)
        if figures["loss"] <= self.best:
            self.best = figures["loss"]
            if tensors := _on_first(export(self.average)):
                save_tensors(self.folder / WEIGHTS, tensors)
        return figures

    def draw(self, picture: Callable[[nn.Module], bytes | None]) -> None:
        """Write a picture of what the average does now, if there is one."""
        with torch.random.fork_rng(), torch.no_grad():
            content = picture(self.average)
        if content and is_first():
            (self.folder / "pictures").mkdir(exist_ok=True)
            write_bytes(self.folder / "pictures" / f"step_{self.step:06d}.png", content)

    def save(self) -> None:
        """Write the state from which training resumes; the one before it stays as `previous.safetensors`."""
        self.check()
        tensors = _on_first(_state(self.module, self.average, self.optimizer))
        if not tensors:
            return
        metadata = {"step": str(self.step), "best": repr(self.best), "waiting": json.dumps(self.log.waiting_numbers())}
        metadata["checksum"] = str(_checksum(tensors))
        save_tensors(self.folder / STATE, tensors, metadata, keep_as=self.folder / PREVIOUS)


def batch_indices(seed: int, step: int, batch_size: int, num_samples: int) -> np.ndarray:
    """Return the indices `(B,)` of step `step`: passes over all samples, each in an order of its own.

    A batch is never larger than the data; one that would run over the end of a pass takes from the next.
    """
    batch_size = min(batch_size, num_samples)
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    indices = np.empty(batch_size, dtype=np.int64)
    for turn in np.unique(positions // num_samples):
        here = positions // num_samples == turn
        indices[here] = _order(seed, int(turn), num_samples)[positions[here] % num_samples]
    return indices


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng((seed, turn)).permutation(num_samples)


def lr_schedule(progress: float, warmup: float) -> float:
    """Return the factor on the learning rate at `progress` in [0, 1]: linearly to 1 at `warmup`, by a cosine to 0."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here, of several GPUs that of this process (LOCAL_RANK).

    Raises MandorlaError if cuda is not there, or processes that work together would share a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise MandorlaError("device: cuda is set, but no CUDA device is available: set device to auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    alone = gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ  # SLURM may show each process its own and no other
    if world() > 1 and here > gpus and not alone:
        raise MandorlaError(f"{here} processes, but {gpus} GPUs: start as many as there are, or set device to cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % gpus)


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, keep_as: Path | None = None
) -> None:
    """Write a safetensors file that is there whole or not at all; `keep_as` is where the one before it goes."""
    with whole(path) as part:
        save_file(
            {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}, part, metadata
        )
        if keep_as and path.is_file():
            path.replace(keep_as)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors and its metadata. Raises MandorlaError if it is missing or damaged."""
    if not path.is_file():
        raise MandorlaError(f"{path} is missing: train this stage first")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:
        raise MandorlaError(f"{path} cannot be read ({error}): delete {path.parent} and make it again") from error


@contextmanager
def built_for(tensors: dict[str, Tensor]) -> Iterator[None]:
    """Raise RuntimeError as soon as modules that are built inside get more than twice the weights that `tensors` hold.

    Settings of a run folder that do not go with its weights may ask for more memory, or blocks, than there can be.
    """
    left, seen = 2 * sum(z.numel() for z in tensors.values()), set()  # some build what they then replace
    here = threading.get_ident()  # the hook is asked of what other threads build too

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        if parameter is not None and threading.get_ident() == here and (module, name) not in seen:
            seen.add((module, name))
            left -= parameter.numel()
        if left < 0:
            raise RuntimeError("more weights than there are in the file")

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def compiled(module: nn.Module) -> Iterator[None]:
    """Fuse, inside, the kernels of those methods that parts of `module` name in `compiled`, when they are called.

    References: PyTorch 2, Ansel et al., 2024, https://doi.org/10.1145/3620665.3640366.
    """
    methods = [(part, name) for part in module.modules() for name in getattr(part, "compiled", ())]
    for part, name in methods:
        setattr(part, name, torch.compile(getattr(part, name), dynamic=False))
    try:
        yield
    finally:
        for part, name in methods:
            delattr(part, name)  # what is left is the class's


def _key(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)


@torch.no_grad()
def _lerp(average: nn.Module, module: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
    for kept, value in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(value)


def _state(module: nn.Module, average: nn.Module, optimizer) -> dict[str, Tensor]:
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for name, parameter in module.named_parameters():
        tensors |= {f"optimizer.{name}.{k}": v for k, v in optimizer.state.get(parameter, {}).items()}
    return tensors


def _divided(
    module: nn.Module, average: nn.Module, sharded: Callable[[nn.Module], Iterable[nn.Module]] | None
) -> nn.Module:
    """Return `module` so that all processes train it together; what they have of it and of its `average` is the same.

    References: PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, Zhao et al., 2023,
    https://arxiv.org/abs/2304.11277.
    """
    normalise_in_common(module)
    if sharded is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that this torch would call the first of these otherwise
            return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # takes seconds

    mesh = init_device_mesh(next(module.parameters()).device.type, (world(),))
    for network in (module, average):
        for part in sharded(network):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)  # False: what is only looked at stays whole
    return module


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Give each process all weights of `network` inside, of which it may have a part, until it is called as a whole."""
    parts = [part for part in network.modules() if hasattr(part, "unshard")]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def _whole(z: Tensor) -> Tensor:
    """Return a tensor of which each process may have a part."""
    return z.full_tensor() if hasattr(z, "full_tensor") else z


def _part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Undo `_whole`, for a tensor of which processes have the parts that they have of `like`."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements)


def _on_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which each process may have a part as a whole on the CPU of the first; nothing on the others.

    One after another: all of them together may not fit into a GPU.
    """
    whole = {}
    for name, z in tensors.items():
        z = _whole(z)
        if is_first():
            whole[name] = z.detach().cpu()
    return whole


def _checksum(tensors: dict[str, Tensor]) -> int:
    """Return a number that tells whether the bytes of named tensors are those that were written."""
    total = 0
    for name in sorted(tensors):
        content = tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        total = zlib.crc32(content, zlib.crc32(name.encode(), total))
    return total


def _load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = load_tensors(path)
    if metadata.get("checksum") != str(_checksum(tensors)) or not {"step", "best", "waiting"} <= metadata.keys():
        raise MandorlaError(f"{path} is damaged: restore it, or delete {path.parent}")
    return tensors, metadata


def _restore(
    folder: Path, module: nn.Module, average: nn.Module
) -> tuple[dict[str, Tensor], int, float, list[dict[str, float]]]:
    """Take up the last state in `folder`, or the one before it.

    Return what the optimiser remembers, the step, the best loss, and figures not yet written. Raises MandorlaError if
    the processes do not find the same.
    """
    found = _find_state(folder)
    step = int(found[1]["step"]) if found else 0
    if len(gather(torch.tensor([step])).unique()) > 1:
        raise MandorlaError(f"{folder}: the machines see different states here: use a folder that they share")
    if not found:
        return {}, 0, math.inf, []
    tensors, metadata = found
    for prefix, target in (("module.", module), ("average.", average)):
        try:
            target.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        except RuntimeError as error:
            raise MandorlaError(f"{folder / STATE} is of another training: restore it, or delete {folder}") from error
    moments = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
    return moments, step, float(metadata["best"]), json.loads(metadata["waiting"])


def _find_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return the tensors and metadata of the last state in `folder` that is whole; None if there is none."""
    path, previous = folder / STATE, folder / PREVIOUS
    if not path.is_file() and not previous.is_file():
        return None
    try:
        return _load_state(path if path.is_file() else previous)
    except MandorlaError as error:
        if not (path.is_file() and previous.is_file()):
            raise
        tensors, metadata = _load_state(previous)
        warnings.warn(
            f"{error}; going on from the one before it, step {metadata['step']}", MandorlaWarning, stacklevel=5
        )
        return tensors, metadata


def _restore_moments(optimizer: torch.optim.Optimizer, module: nn.Module, moments: dict[str, Tensor]) -> None:
    """Give `optimizer` back what it remembered of the weights of `module`, of which this process may have a part."""
    parameters = dict(module.named_parameters())
    for key, value in moments.items():
        name, _, entry = key.rpartition(".")
        like = parameters[name]  # the fused optimiser pairs numbers by their place in memory: keep its layout
        if entry != "step":
            value = torch.empty_like(like, requires_grad=False).copy_(_part_of(value, like))
        optimizer.state[like][entry] = value


class _Interrupt:
    """Note a first Control-C, so that the work can end in good order; a second one ends it at once."""

    def __init__(self):
        self.asked, self._before = False, None

    def __enter__(self) -> "_Interrupt":
        in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python has no say in signals
        if in_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of commands in the background
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)


@contextmanager
def _errors_named(training: _Training) -> Iterator[None]:
    """Turn a lack of memory, or of what compiles, into an error that names the setting to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if training.config.compile and isinstance(error, torch._dynamo.exc.TorchDynamoException):
            cause = " ".join(str(error).splitlines()[:2])
            raise MandorlaError(
                f"{training.title} cannot be compiled here ({cause}): set {training.key}.compile to false"
            ) from error
        if not (isinstance(error, MemoryError) or "memory" in str(error)):
            raise
        first = f"set {training.replay.setting} to false, or " if training.replays else ""
        raise MandorlaError(
            f"not enough memory for {training.title}, step {training.step + 1}: {first}lower"
            f" {training.key}.batch_size (now {training.config.batch_size}) or"
            f" data.size, and choose another run folder or delete {training.folder}"
        ) from error


class _Log:
    """Average named figures between two writes; the first process appends them to `metrics.jsonl`, and tells the
    trackers.
    """

    def __init__(self, folder: Path, track: Sequence[Name], step: int, waiting: list[dict[str, float]]):
        self.waiting: list[dict[str, Tensor | float]] = list(waiting)
        self.trackers = []
        if not is_first():
            return
        self.path = folder / LOG
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.trackers = open_trackers(track, folder, step)

    def waiting_numbers(self) -> list[dict[str, float]]:
        """Return what was not written yet, as plain numbers: a resumed training writes the same means."""
        return [{name: float(value) for name, value in figures.items()} for figures in self.waiting]

    def not_finite_since(self) -> int | None:
        """Return how many steps ago a figure first was not finite; None if all are."""
        for index, figures in enumerate(self.waiting_numbers()):
            if not all(map(math.isfinite, figures.values())):
                return len(self.waiting) - 1 - index
        return None

    def add(self, figures: dict[str, Tensor] | dict[str, float]) -> None:
        self.waiting.append(figures)

    def write(self, part: str, step: int) -> dict[str, float]:
        names = {name: None for figures in self.waiting for name in figures}
        values = {n: [float(figures[n]) for figures in self.waiting if n in figures] for n in names}
        means = {name: sum(v) / len(v) for name, v in values.items()}
        self.waiting = []
        if not is_first():
            return means
        for tracker in self.trackers:
            with blamed(type(tracker).__name__):
                tracker.write(step, {f"{part}/{name}": value for name, value in means.items()})
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "part": part} | means) + "\n")
        except OSError as error:
            raise MandorlaError(f"{self.path} cannot be written ({error}): make room, then type the same") from error
        return means

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *error: object) -> None:
        for tracker in self.trackers:
            with blamed(type(tracker).__name__):
                tracker.close()


def _step_of(line: str) -> float:
    """Return the step of a line of figures, infinity where it is damaged: a killed training leaves half a line."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _in_short(figures: dict[str, float], width: int) -> str:
    """Return the loss and as many other figures as `width` characters hold."""
    text = f"loss {figures['loss']:.3g}"
    for name, value in figures.items():
        longer = f"{text}  {name} {value:.3g}"
        if name != "loss" and len(longer) <= width:
            text = longer
    return text


class _Rate(ProgressColumn):
    """Show steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.1f}/s")


def _progress() -> Progress:
    """Return a line that shows, however narrow the terminal is, how far a training is and its loss."""
    width, whole = get_console().width, Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}", table_column=whole),
        *[BarColumn(20)] * (width >= _WITH_BAR),
        MofNCompleteColumn(table_column=whole),
        *[_Rate(table_column=whole), TimeRemainingColumn(table_column=whole)] * (width >= _WITH_TIME),
        TextColumn("{task.fields[figures]}"),
    )
