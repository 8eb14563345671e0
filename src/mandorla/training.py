"""The training loop that both stages share: keyed randomness, moving average, checkpoints, resume, logs.

Everything random in step k follows from (seed, k): which samples form the batch, and the generator's state before the
forward pass. So a resumed training needs no stored random state and equals an uninterrupted one, bit by bit on a CPU.

Weights that are used afterwards are an exponential moving average, updated after each optimiser step with the decay
min(ema, (1 + k) / (10 + k)).
"""

import copy
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mandorla.config import Settings
from mandorla.environment import begun_with, note_environment
from mandorla.errors import MandorlaError
from mandorla.nets.blocks import trains_in_bf16
from mandorla.storage import locked, whole, write_text

WEIGHTS, STATE, LOG = "weights.safetensors", "last.safetensors", "metrics.jsonl"
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
    validate_every: int = Field(100, ge=1)
    """steps between two validations; the best one's weights are kept"""
    checkpoint_every: int = Field(200, ge=1)
    """steps between two states from which training resumes"""
    picture_every: int = Field(500, ge=1)
    """steps between two grids of pictures"""


def fit(
    module: nn.Module,
    config: TrainingConfig,
    folder: Path,
    *,
    seed: int,
    num_samples: int,
    fetch: Callable[[np.ndarray, int], Any],
    loss: Callable[[nn.Module, Any, float], tuple[Tensor, dict[str, Tensor]]],
    validate: Callable[[nn.Module], dict[str, float]],
    picture: Callable[[nn.Module, Path], None],
    export: Callable[[nn.Module], dict[str, Tensor]],
    title: str,
) -> None:
    """Train `module`, or go on where `folder` says that an earlier call stopped.

    - `fetch(indices, step)` gives the batch of these training samples for that step
    - `loss(module, batch, progress)` gives its loss and named terms
    - `validate(module)` gives named figures, of which `loss` decides what is best; `picture(module, path)` draws a PNG
    - `export(module)` names the tensors that belong to the model; those of the best validation become
      `weights.safetensors`

    Raises MandorlaError if the loss stops being finite.
    """
    training = _Training(module, config, folder, seed, title)
    if training.step == config.steps:
        if not (folder / WEIGHTS).is_file():
            raise MandorlaError(
                f"{folder} ended its training, but {WEIGHTS} is missing: restore it, or delete {folder}"
            )
        return

    def batch_at(step: int) -> Any:
        return fetch(batch_indices(seed, step, config.batch_size, num_samples), step)

    with (
        locked(folder),
        ThreadPoolExecutor(1) as ahead,
        _progress() as progress,
        _Log(folder, training.step) as training.log,
    ):
        if training.step and (threads := begun_with(folder)):
            torch.set_num_threads(threads)  # sums over another number of parts end in other digits
        note_environment(folder, seed)
        task = progress.add_task(title, total=config.steps, completed=training.step, figures="")
        upcoming = ahead.submit(batch_at, training.step)
        while training.step < config.steps:
            batch = upcoming.result()
            if training.step + 1 < config.steps:
                upcoming = ahead.submit(batch_at, training.step + 1)
            training.advance(loss, batch)
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
            if training.due(config.checkpoint_every):
                training.save()


class _Training:
    """Hold what changes during a training: weights, their moving average, the optimiser, step, best validation loss."""

    def __init__(self, module: nn.Module, config: TrainingConfig, folder: Path, seed: int, title: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.module, self.config, self.folder, self.seed, self.title = module, config, folder, seed, title
        self.average = copy.deepcopy(module).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            module.parameters(), config.learning_rate, (0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self.in_bf16 = config.precision == "bf16" and trains_in_bf16(module)
        self.step, self.best = _restore(folder / STATE, module, self.average, self.optimizer)
        self.log: _Log | None = None  # opened by whoever trains: a finished training is left as it is

    def due(self, every: int) -> bool:
        """Return whether what happens every so many steps happens now; everything happens after the last step."""
        return self.step % every == 0 or self.step == self.config.steps

    def advance(self, loss: Callable[[nn.Module, Any, float], tuple[Tensor, dict[str, Tensor]]], batch: Any) -> None:
        """Take one optimiser step, then move the average after the weights."""
        config, done = self.config, self.step / self.config.steps
        torch.manual_seed(_key(self.seed, self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * lr_schedule(done, config.warmup)
        device = next(self.module.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.in_bf16):
            value, terms = loss(self.module.train(), batch, done)
        self.optimizer.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), config.clip)
        self.optimizer.step()
        _lerp(self.average, self.module, min(config.ema, (1 + self.step) / (10 + self.step)))
        self.step += 1
        self.log.add(terms | {"gradient": norm})

    def write_figures(self) -> dict[str, float]:
        """Log the terms since the last time and return their means. Raises MandorlaError if one is not finite."""
        figures = self.log.write("train", self.step)
        if not all(map(math.isfinite, figures.values())):
            raise MandorlaError(
                f"the loss of {self.title} is not finite at step {self.step}: lower training.learning_rate (now"
                f" {self.config.learning_rate:g}) or set training.precision to fp32; {self.folder} keeps the last good"
                " state"
            )
        return figures

    def validate(self, measure: Callable[[nn.Module], dict[str, float]], export: Callable) -> dict[str, float]:
        """Log and return the figures of the average, and keep its weights if they are the best so far."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.seed)
            self.log.add(figures := measure(self.average))
        self.log.write("val", self.step)
        if figures["loss"] <= self.best:
            self.best = figures["loss"]
            save_tensors(self.folder / WEIGHTS, export(self.average))
        return figures

    def draw(self, picture: Callable[[nn.Module, Path], None]) -> None:
        """Write a picture of what the average does now."""
        (self.folder / "pictures").mkdir(exist_ok=True)
        with torch.random.fork_rng(), torch.no_grad():
            picture(self.average, self.folder / "pictures" / f"step_{self.step:06d}.png")

    def save(self) -> None:
        """Write the state from which training resumes."""
        _save_state(self.folder / STATE, self.module, self.average, self.optimizer, self.step, self.best)


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
    """Return the device that `auto`, `cpu` or `cuda` means here. Raises MandorlaError if cuda is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise MandorlaError("device: cuda is set, but no CUDA device is available: set device to auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that is there whole or not at all."""
    with whole(path) as part:
        save_file(
            {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}, part, metadata
        )


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors and its metadata. Raises MandorlaError if it is missing or damaged."""
    if not path.is_file():
        raise MandorlaError(f"{path} is missing: train this stage first")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:
        raise MandorlaError(f"{path} cannot be read ({error}): delete {path.parent} and make it again") from error


def _key(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)


@torch.no_grad()
def _lerp(average: nn.Module, module: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
    for kept, value in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(value)


def _save_state(path: Path, module: nn.Module, average: nn.Module, optimizer, step: int, best: float) -> None:
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for name, parameter in module.named_parameters():
        tensors |= {f"optimizer.{name}.{k}": v for k, v in optimizer.state.get(parameter, {}).items()}
    save_tensors(path, tensors, {"step": str(step), "best": repr(best)})


def _restore(path: Path, module: nn.Module, average: nn.Module, optimizer) -> tuple[int, float]:
    if not path.is_file():
        return 0, math.inf
    tensors, metadata = load_tensors(path)
    for prefix, target in (("module.", module), ("average.", average)):
        try:
            target.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        except RuntimeError as error:
            raise MandorlaError(f"{path} is of another training: restore it, or delete {path.parent}") from error
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, _, entry = key.removeprefix("optimizer.").rpartition(".")
            like = parameters[name]  # the fused optimiser pairs numbers by their place in memory: keep its layout
            value = value if entry == "step" else torch.empty_like(like, requires_grad=False).copy_(value)
            optimizer.state[like][entry] = value
    return int(metadata["step"]), float(metadata["best"])


class _Log:
    """Average named figures between two writes; append them to `metrics.jsonl` and TensorBoard."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / LOG
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        self.waiting: list[dict[str, Tensor | float]] = []

    def add(self, figures: dict[str, Tensor] | dict[str, float]) -> None:
        self.waiting.append(figures)

    def write(self, part: str, step: int) -> dict[str, float]:
        names = {name: None for figures in self.waiting for name in figures}
        values = {n: [float(figures[n]) for figures in self.waiting if n in figures] for n in names}
        means = {name: sum(v) / len(v) for name, v in values.items()}
        self.waiting = []
        for name, value in means.items():
            self.writer.add_scalar(f"{part}/{name}", value, step)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "part": part} | means) + "\n")
        return means

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.close()


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
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
