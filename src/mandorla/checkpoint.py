"""Weights in files, and the state from which a training resumes: whole, with a checksum, the one before it kept."""

import hashlib
import json
import math
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.parallel import gather
from mandorla.sharded import on_first, part_of
from mandorla.storage import whole

WEIGHTS = "weights.safetensors"
Module = TypeVar("Module", bound=nn.Module)
STATE, PREVIOUS = "last.safetensors", "previous.safetensors"


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, keep_as: Path | None = None
) -> None:
    """Write a safetensors file that is there whole or not at all; `keep_as` is where the one before it goes.

    Raises MandorlaError where it cannot be written, as on a full disk.
    """
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


def build(make: Callable[[], Module], weights: dict[str, Tensor], mistake: str) -> Module:
    """Return the module that `make` builds, with these weights and ready for use.

    Raises MandorlaError, the `mistake`, if they are of another module, one of more than twice as many weights too:
    settings of a run folder that do not go with its weights may ask for more memory, or blocks, than there can be.
    """
    try:
        with _no_more_than(2 * sum(z.numel() for z in weights.values())):  # some build what they then replace
            module = make()
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise MandorlaError(mistake) from error
    return module.requires_grad_(False).eval()


@contextmanager
def _no_more_than(left: int) -> Iterator[None]:
    """Raise RuntimeError as soon as modules that are built inside get more than `left` weights."""
    seen: set[tuple[nn.Module, str]] = set()
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


def save_state(
    folder: Path,
    module: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    best: float,
    waiting: Sequence[dict[str, float]],
) -> None:
    """Write what `restore` takes up; the state before it stays as `previous.safetensors`.

    All processes call it, the first writes. `waiting`: figures of steps that are not yet written.
    """
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for name, parameter in module.named_parameters():
        tensors |= {f"optimizer.{name}.{k}": v for k, v in optimizer.state.get(parameter, {}).items()}
    if not (tensors := on_first(tensors)):
        return
    metadata = {"step": str(step), "best": repr(best), "waiting": json.dumps(waiting)}
    metadata["checksum"] = str(checksum(tensors))
    save_tensors(folder / STATE, tensors, metadata, keep_as=folder / PREVIOUS)


def restore(
    folder: Path, module: nn.Module, average: nn.Module
) -> tuple[dict[str, Tensor], int, float, list[dict[str, float]]]:
    """Take up the last state in `folder`, or the one before it.

    Return what the optimiser remembers, the step, the best loss, and figures not yet written. Raises MandorlaError if
    the processes do not find the same, no state is whole, or it is of another training.
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


def restore_moments(optimizer: torch.optim.Optimizer, module: nn.Module, moments: dict[str, Tensor]) -> None:
    """Give `optimizer` back what it remembered of the weights of `module`, of which this process may have a part."""
    parameters = dict(module.named_parameters())
    for key, value in moments.items():
        name, _, entry = key.rpartition(".")
        like = parameters[name]  # the fused optimiser pairs numbers by their place in memory: keep its layout
        if entry != "step":
            value = torch.empty_like(like, requires_grad=False).copy_(part_of(value, like))
        optimizer.state[like][entry] = value


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


def _load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = load_tensors(path)
    if metadata.get("checksum") != str(checksum(tensors)) or not {"step", "best", "waiting"} <= metadata.keys():
        raise MandorlaError(f"{path} is damaged: restore it, or delete {path.parent}")
    return tensors, metadata


def checksum(tensors: dict[str, Tensor]) -> int:
    """Return a number that tells whether the bytes of named tensors are those that were written."""
    total = 0
    for name in sorted(tensors):
        content = tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        total = zlib.crc32(content, zlib.crc32(name.encode(), total))
    return total


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """Return a hash over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        digest.update(tensors[name].cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
