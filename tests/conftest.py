"""Rules for all tests, and runs that many of them look at.

What is marked `gpu` is skipped where torch sees no CUDA device. A run is trained once and not to be changed: tests that
write into one take `copy_of`.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny; and a fork of a process with threads may hang
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command line sets it, but before torch is imported
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # a busy machine is no fault of the example
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    """Seed torch before each test, so that what it draws depends on no other test of its process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(int(os.environ.get("MANDORLA_TEST_SEED", "0")))


def _train(recipe) -> Path:
    from mandorla.diffusion.training import train_diffusion
    from mandorla.vae.training import train_vae

    train_vae(recipe)
    train_diffusion(recipe)
    return Path(recipe.run)


@pytest.fixture(scope="session")
def polydigits_run(tmp_path_factory) -> Path:
    """Return a run of three modalities with vector latents."""
    from tiny import tiny_recipe

    return _train(tiny_recipe(tmp_path_factory.mktemp("runs") / "polydigits"))


@pytest.fixture(scope="session")
def phantom_run(tmp_path_factory) -> Path:
    """Return a run of two modalities with map latents, of a size that no stride divides."""
    from tiny import tiny_recipe

    return _train(tiny_recipe(tmp_path_factory.mktemp("runs") / "phantom", "phantom"))


@pytest.fixture(scope="session")
def volumes_run(tmp_path_factory) -> Path:
    """Return a run of two modalities of three-dimensional maps."""
    from tiny import tiny_recipe

    volumes = "data={kind: phantom, size: [16, 18, 17], num_train: 40, num_val: 10, num_test: 10}"
    return _train(tiny_recipe(tmp_path_factory.mktemp("runs") / "volumes", "phantom", volumes))


@pytest.fixture(scope="session")
def signals_run(tmp_path_factory) -> Path:
    """Return a run of two one-dimensional modalities of different length, one missing for a third of the samples."""
    from tiny import signals_recipe

    return _train(signals_recipe(tmp_path_factory.mktemp("runs") / "signals", tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="session")
def scans_run(tmp_path_factory) -> Path:
    """Return a run of two modalities of 16-bit files with labels; their folder is `scans` beside it."""
    from tiny import scans_recipe, write_scans

    folder = tmp_path_factory.mktemp("runs")
    (folder / "scans").mkdir()
    write_scans(folder / "scans")
    return _train(scans_recipe(folder / "run", folder / "scans"))


@pytest.fixture(scope="session")
def tables_run(tmp_path_factory) -> Path:
    """Return a run of two modalities that are columns of a table; its folder is `tables` beside it."""
    from tiny import tables_recipe

    folder = tmp_path_factory.mktemp("runs")
    (folder / "tables").mkdir()
    return _train(tables_recipe(folder / "run", folder / "tables"))


@pytest.fixture
def copy_of(tmp_path):
    """Return a function that copies a run, to be changed."""

    def copy(run: Path) -> Path:
        return shutil.copytree(run, tmp_path / run.name)

    return copy


@pytest.fixture
def benchmark_named(monkeypatch) -> Callable[[str], ModuleType]:
    """Return what imports a script of `benchmarks/`, anew for each test."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load
