"""The training loop that both stages share: keyed randomness, moving average, checkpoints, resume, logs.

Everything random in step k follows from (seed, k): which samples form the batch, and the generator's state before the
forward pass. So a resumed training needs no stored random state and equals an uninterrupted one, bit by bit on a CPU.

Weights that are used afterwards are an exponential moving average, updated after each optimiser step with the decay
min(ema, (1 + k) / (10 + k)).

Several processes divide each batch (`mandorla.parallel`) and take every step together; the first one writes, what it
writes does not depend on their number, and training goes on with any other number of them.
"""

import copy
import math
import signal
import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mandorla.checkpoint import STATE, WEIGHTS, restore, restore_moments, save_state, save_tensors
from mandorla.config import Settings
from mandorla.device import own_random
from mandorla.environment import begun_with, note_environment
from mandorla.errors import MandorlaError
from mandorla.nets.blocks import trains_in_bf16
from mandorla.parallel import anyone, is_first, led, wait, world
from mandorla.replay import Replay
from mandorla.sharded import divided, full, on_first
from mandorla.storage import locked, write_bytes
from mandorla.track import Name
from mandorla.training_log import Log, in_short, progress_line

_FIGURES_EVERY = 20  # steps
_BAR_WIDTH = 66  # characters before the figures
_LINE = 96  # characters of figures in a line about a validation


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


class Task:
    """Say what is trained, on what; a stage overrides what it has of its own.

    `title` and `key` name the training and its settings, such as `vae.training`, in messages; everything random follows
    `seed`. Each of `num_samples` training samples has `copies`: index i is one of sample i % num_samples.
    """

    title: str
    key: str
    seed: int
    num_samples: int
    copies: int = 1

    @property
    def batch_key(self) -> str:
        """Return the name of the setting that says how many samples a step has."""
        return f"{self.key}.batch_size"

    def fetch(self, indices: np.ndarray, step: int) -> Any:
        """Return the batch of these training samples for that step."""
        raise NotImplementedError

    def prepare(self, batch: Any) -> Any:
        """Return, in the step, the inputs that `loss` takes."""
        return batch

    def loss(self, module: nn.Module, inputs: Any, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its named terms."""
        raise NotImplementedError

    def kind(self, module: nn.Module, inputs: Any, progress: float) -> Hashable:
        """Return what steps that run the same kernels have in common; None where that is not known.

        Inputs of steps of a kind are dicts of tensors of the same shapes.
        """
        return None

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Return named figures, of which `loss` decides what is best."""
        raise NotImplementedError

    def picture(self, module: nn.Module) -> bytes | None:
        """Return a PNG of what the module does now, if there is one."""
        return None

    def export(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that belong to the model; those of the best validation become `weights.safetensors`."""
        return module.state_dict()

    def parts(self, module: nn.Module) -> Iterable[nn.Module]:
        """Return the parts of the module whose weights processes divide, inner ones first."""
        return [module]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other commands from training in it; processes that work together call this together.

    Raises MandorlaError if another command is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with led(locked(folder), None):
        yield


def fit(
    task: Task,
    module: nn.Module,
    config: TrainingConfig,
    folder: Path,
    track: Sequence[Name] = ("tensorboard",),
    strategy: Literal["ddp", "fsdp"] = "ddp",
) -> None:
    """Train `module`, or go on where `folder` says that an earlier call stopped; the caller is `alone_in` it.

    `track` names the trackers that the figures go to. Processes that work together have all weights each (`strategy`
    ddp), or divide them (fsdp); they call the methods of `task` together, each with the indices of the whole batch.
    Control-C saves the state after the current step. Raises MandorlaError if the loss stops being finite, or memory
    does not suffice.
    """
    training = _Training(task, module, config, folder, strategy)
    if training.step < config.steps:
        _go_on(training, track)
    elif not (folder / WEIGHTS).is_file():
        raise MandorlaError(f"{folder} ended its training, but {WEIGHTS} is missing: restore it, or delete {folder}")


def _go_on(training: "_Training", track: Sequence[Name]) -> None:
    """Take all steps from the one that `training` is at."""
    task, module, config, folder = training.task, training.module, training.config, training.folder

    def batch_at(step: int) -> Any:
        indices = batch_indices(task.seed, step, config.batch_size, task.copies * task.num_samples)
        return task.fetch(indices, step)

    with (
        ThreadPoolExecutor(1) as ahead,
        progress_line() as progress,
        Log(folder, track, training.step, training.waiting) as training.log,
        _errors_named(training),
        compiled(module) if config.compile else nullcontext(),
        _Interrupt() as interrupt,
    ):
        if training.step and (threads := begun_with(folder)):
            torch.set_num_threads(threads)  # sums over another number of parts end in other digits
        if is_first():
            for left in folder.glob(".tmp*"):  # that safetensors was writing to when a training was killed
                left.unlink()
            note_environment(folder, task.seed, anew=not training.step)
        line = progress.add_task(task.title, total=config.steps, completed=training.step, figures="")
        upcoming = ahead.submit(batch_at, training.step)
        while training.step < config.steps:
            batch = upcoming.result()
            if training.step + 1 < config.steps:
                upcoming = ahead.submit(batch_at, training.step + 1)
            training.advance(batch)
            progress.update(line, completed=training.step)
            if (
                training.due(_FIGURES_EVERY)
                or training.due(config.validate_every)
                or training.due(config.checkpoint_every)
            ):
                figures = training.write_figures()
                progress.update(line, figures=in_short(figures, progress.console.width - _BAR_WIDTH))
            if training.due(config.validate_every):
                text = in_short(training.validate(), _LINE)
                progress.console.print(f"step {training.step}, validation: {text}", highlight=False, soft_wrap=True)
            if training.due(config.picture_every):
                training.draw()
            stop = anyone(interrupt.asked)
            if training.due(config.checkpoint_every) or stop:
                training.save()
            if stop:
                raise KeyboardInterrupt
        wait()  # until the first process has written the weights, which others may read next


class _Training:
    """Hold what changes during a training: weights, their moving average, the optimiser, step, best validation loss."""

    def __init__(self, task: Task, module: nn.Module, config: TrainingConfig, folder: Path, strategy: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.task, self.module, self.config, self.folder = task, module, config, folder
        self.average = copy.deepcopy(module).requires_grad_(False).eval()
        self.in_bf16 = config.precision == "bf16" and trains_in_bf16(module)
        moments, self.step, self.best, self.waiting = restore(folder, module, self.average)
        parts = task.parts if strategy == "fsdp" else None
        self.together = divided(module, self.average, parts) if world() > 1 else module
        self.optimizer = torch.optim.AdamW(
            module.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        restore_moments(self.optimizer, module, moments)
        self.replay = Replay(module.parameters(), f"{task.key}.cuda_graph")
        on_one_gpu = next(module.parameters()).device.type == "cuda" and world() == 1
        self.replays = config.cuda_graph and on_one_gpu
        self.log: Log | None = None  # opened by whoever trains: a finished training is left as it is

    def due(self, every: int) -> bool:
        """Return whether what happens every so many steps happens now; everything happens after the last step."""
        return self.step % every == 0 or self.step == self.config.steps

    def advance(self, batch: Any) -> None:
        """Take one optimiser step, then move the average after the weights."""
        config, done = self.config, self._done
        torch.manual_seed(_key(self.task.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * lr_schedule(done, config.warmup)
        inputs = self.task.prepare(batch)
        alike = self.task.kind(self.module, inputs, done) if self.replays or config.compile else None
        written = config.compile and alike is None  # steps of other shapes would each be compiled anew
        with torch.compiler.set_stance("force_eager") if written else nullcontext():
            terms = self.replay(self._gradients, inputs, alike if self.replays else None)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), config.clip)
        self.optimizer.step()
        _lerp(self.average, self.module, min(config.ema, (1 + self.step) / (10 + self.step)))
        self.step += 1
        self.log.add(terms | {"gradient": full(norm)})

    @property
    def _done(self) -> float:
        return self.step / self.config.steps

    def _gradients(self, inputs: Any) -> dict[str, Tensor]:
        """Leave the gradients of a step in the weights, and return the terms of its loss."""
        device = next(self.module.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.in_bf16):
            value, terms = self.task.loss(self.together.train(), inputs, self._done)
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
        task = self.task
        rows = batch_indices(task.seed, step - 1, self.config.batch_size, task.copies * task.num_samples)
        rows %= task.num_samples
        shown = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        kept = f"; {self.folder} keeps the last good state" if (self.folder / STATE).is_file() else ""
        raise MandorlaError(
            f"the loss of {task.title} is not finite at step {step} (batch: training samples {shown}, counted from 0):"
            f" lower {task.key}.learning_rate (now {self.config.learning_rate:g}) or set"
            f" {task.key}.precision to fp32, in another run folder{kept}"
        )

    def validate(self) -> dict[str, float]:
        """Log and return the figures of the average, and keep its weights if they are the best so far."""
        with own_random(self.task.seed), torch.no_grad():
            self.log.add(figures := self.task.validate(self.average))
        self.log.write("val", self.step)
        if figures["loss"] <= self.best:
            self.best = figures["loss"]
            if tensors := on_first(self.task.export(self.average)):
                save_tensors(self.folder / WEIGHTS, tensors)
        return figures

    def draw(self) -> None:
        """Write a picture of what the average does now, if there is one."""
        with own_random(), torch.no_grad():
            content = self.task.picture(self.average)
        if content and is_first():
            (self.folder / "pictures").mkdir(exist_ok=True)
            write_bytes(self.folder / "pictures" / f"step_{self.step:06d}.png", content)

    def save(self) -> None:
        """Write the state from which training resumes."""
        self.check()
        waiting = self.log.waiting_numbers()
        save_state(self.folder, self.module, self.average, self.optimizer, self.step, self.best, waiting)


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
    task = training.task
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise MandorlaError(
            f"{task.title}, step {training.step + 1}: a batch has a single sample of a modality, and a network that"
            f" normalises over the batch needs two: raise {task.batch_key}, or choose fewer channels (levels)"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if training.config.compile and isinstance(error, torch._dynamo.exc.TorchDynamoException):
            cause = " ".join(str(error).splitlines()[:2])
            raise MandorlaError(
                f"{task.title} cannot be compiled here ({cause}): set {task.key}.compile to false"
            ) from error
        if not (isinstance(error, MemoryError) or "memory" in str(error)):
            raise
        first = f"set {training.replay.setting} to false, or " if training.replays else ""
        raise MandorlaError(
            f"not enough memory for {task.title}, step {training.step + 1}: {first}lower"
            f" {task.batch_key} (now {training.config.batch_size}) or"
            f" data.size, and choose another run folder or delete {training.folder}"
        ) from error
