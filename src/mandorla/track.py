"""Watch a training: its figures go to TensorBoard, Weights & Biases, MLflow, or several of them.

| `track` | writes to, in the folder of the stage | look at it with |
|---|---|---|
| tensorboard | `tensorboard/` | `tensorboard --logdir RUN` |
| wandb | `wandb/` | `wandb sync RUN/vae/wandb/offline-run-*`, which sends it |
| mlflow | `mlflow.db` | `mlflow ui --backend-store-uri sqlite:///RUN/vae/mlflow.db` |

Nothing leaves this machine unless its user says so to those programs themselves: by `WANDB_MODE=online`, or
`MLFLOW_TRACKING_URI`. What they would report of their own use, and of errors, is off. `metrics.jsonl` has all figures
in any case. A resumed training goes on in the same record.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from mandorla.config import CONFIG, read_yaml
from mandorla.errors import MandorlaError
from mandorla.storage import write_text

Name = Literal["tensorboard", "wandb", "mlflow"]
PROJECT = "mandorla"
_QUIET = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
_QUIET |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


class Tracker:
    """Take the figures of one training."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures, such as `train/loss`, of a step."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is not written yet."""
        raise NotImplementedError


def check_trackers(names: Sequence[Name]) -> None:
    """Raise `MandorlaError` if a tracker is asked for that is not installed."""
    for name in names:
        if name not in _TRACKERS:
            raise MandorlaError(f"track: no tracker {name!r}, use one of {', '.join(_TRACKERS)}")
        if find_spec(name) is None:
            raise MandorlaError(f"track: {name} is not installed: pip install {name}, or leave it out")


def open_trackers(names: Sequence[Name], folder: Path, step: int) -> list[Tracker]:
    """Return the trackers of a training in `folder`, the stage of a run, that begins or goes on at `step`.

    Raises MandorlaError where one cannot begin, as without an account or with no server at its address.
    """
    check_trackers(names)
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    trackers = []
    for name in dict.fromkeys(names):
        with blamed(name):
            trackers.append(_TRACKERS[name](folder.resolve(), step))
    return trackers


@contextmanager
def blamed(name: str) -> Iterator[None]:
    """Raise MandorlaError, one line that names the tracker, for whatever it raises inside."""
    try:
        yield
    except Exception as error:  # each has its own
        raise MandorlaError(
            f"track: {name} fails ({error}): see to it, or leave it out; the same command goes on"
        ) from error


class TensorBoard(Tracker):
    """Write event files; what a killed training wrote after `step` is hidden."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases(Tracker):
    """Write a run of W&B, called like the run folder, in a group with that of the other stage."""

    def __init__(self, folder: Path, step: int):
        wandb = import_module("wandb")
        run = _run_of(folder)
        self.run = wandb.init(
            project=PROJECT,
            dir=str(folder),
            id=_remembered(folder / "wandb-id", lambda: secrets.token_hex(4)),
            name=_title(folder),
            group=run.name,
            resume="allow",
            config=_settings(run),
            settings=wandb.Settings(console="off", disable_git=True, save_code=False, x_disable_meta=True),
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow(Tracker):
    """Write a run of MLflow, called like the run folder, in a database of the stage."""

    def __init__(self, folder: Path, step: int):
        mlflow = import_module("mlflow")
        self.metric = mlflow.entities.Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        self.client = mlflow.MlflowClient(tracking_uri=uri)

        def begin() -> str:
            experiment = self.client.get_experiment_by_name(PROJECT)
            number = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
            run = self.client.create_run(number, run_name=_title(folder)).info.run_id
            settings = _settings(_run_of(folder)).items()
            self.client.log_batch(run, params=[mlflow.entities.Param(key, str(value)) for key, value in settings])
            return run

        self.run = _remembered(folder / "mlflow-id", begin)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        self.client.log_batch(self.run, [self.metric(name, value, now, step) for name, value in figures.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run)


_TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def _run_of(folder: Path) -> Path:
    """Return the run folder that a training's `folder` lies in."""
    return next((above for above in folder.parents if (above / CONFIG).is_file()), folder.parent)


def _title(folder: Path) -> str:
    """Return the name of a run and of what is trained in it, such as `lgg/vae`."""
    return folder.relative_to(_run_of(folder).parent).as_posix()


def _settings(run: Path) -> dict[str, object]:
    """Return the settings of a run, `vae.training.steps` and so on; none of a folder that has none."""
    tree, flat = read_yaml(run / CONFIG)[0] if (run / CONFIG).is_file() else {}, {}
    waiting = list(tree.items())
    for key, value in waiting:
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}", each) for name, each in value.items()]
        else:
            flat[key] = value
    return flat


def _remembered(path: Path, make: Callable[[], str]) -> str:
    """Return the name in the file at `path`; make one, and write it there, if there is none."""
    if not path.is_file():
        write_text(path, make())
    return path.read_text(encoding="utf-8")
