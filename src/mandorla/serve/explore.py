"""What the page can ask of a model: tables of pictures.

Every question is a class of settings, which are also the fields of a form on the page, the parameters of the API and
what a downloaded picture says about itself. Pictures have the pixels of the data; of a volume they are the middle
slice, signals are drawn as lines, plain vectors as bars.
"""

import base64
import json
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

import mandorla
from mandorla.data.dataset import Splits
from mandorla.diffusion.labels import split_labels
from mandorla.errors import MandorlaError
from mandorla.evaluate.audit import LARGEST, flatten_tuples
from mandorla.evaluate.gather import choose
from mandorla.latents import SHARED, Latents
from mandorla.model import Mandorla
from mandorla.pictures import drawable, grid, to_png
from mandorla.serve.samples import MOST_GUIDANCE, MOST_STEPS, Finder, Sample, Uploads, guided, name_of

Name = Annotated[str, Field(max_length=1000, description="a sample: `test:0`, `seed:0:0` or `upload:TOKEN`")]
Steps = Annotated[int | None, Field(ge=1, le=MOST_STEPS, description="steps of the sampler; left out, the recipe's")]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="same seed, same result")]
Guidance = Annotated[
    float | None,
    Field(ge=0, le=MOST_GUIDANCE, description="how far what is given, or asked for, pushes; left out, the recipe's"),
]
Label = Annotated[str, Field(max_length=200, pattern="^[^=]+=.+$")]
_HELD_OUT = 200  # test samples that say which distance to the training samples is usual


class Question(BaseModel):
    """Hold what is asked; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["json", "png"] = Field("json", description="a table of pictures as JSON, or one picture of it")

    def settings(self) -> dict[str, Any]:
        """Return what was asked, less what was left open."""
        asked = self.model_dump(exclude_none=True, exclude={"format"})
        return {name: value for name, value in asked.items() if value != []}


class Generate(Question):
    """Draw new matching tuples."""

    seed: Seed = 0
    num: int = Field(8, ge=1, le=64, description="number of tuples")
    steps: Steps = None
    guidance: Guidance = None
    label: list[Label] = Field([], max_length=16, description="what the tuples shall have, each `NAME=VALUE`")


class Fill(Question):
    """Draw the modalities that a sample lacks, or is taken to lack."""

    a: Name = "test:0"
    given: list[str] = Field(
        [], max_length=64, description="modalities to read; none: all but those wanted, of a whole sample the first"
    )
    wanted: list[str] = Field([], max_length=64, description="modalities to draw; none: all that are not given")
    num: int = Field(4, ge=1, le=16, description="number of draws")
    seed: Seed = 0
    steps: Steps = None
    guidance: Guidance = None


class Pair(Question):
    """Name two samples."""

    a: Name = "test:0"
    b: Name = "test:1"


class Mix(Pair):
    """Swap the shared and private parts of two samples, and mix them."""

    shared: float = Field(0.5, ge=0, le=1, description="share of b in the mixed shared part")
    private: float = Field(0.5, ge=0, le=1, description="share of b in the mixed private parts")
    residual: bool = Field(False, description="swap what of the private parts the shared one does not explain")


class Walk(Pair):
    """Walk from one sample to another."""

    part: Literal["both", "shared", "private"] = Field("both", description="what moves")
    num: int = Field(8, ge=2, le=32, description="number of steps")


class Traverse(Question):
    """Move single channels of one component: what does each change?"""

    a: Name = "test:0"
    component: str = Field(SHARED, max_length=100, description="`shared`, or the modality whose private part moves")
    show: str | None = Field(None, max_length=100, description="modality to show while the shared part moves")
    num: int = Field(5, ge=2, le=15, description="number of steps")
    reach: float = Field(2.0, gt=0, le=10, description="how far to go, in standard deviations of the training set")
    top: int = Field(8, ge=1, le=64, description="number of channels: those that change most")


class Nearest(Question):
    """Find the training samples that look most like a sample."""

    a: Name = "seed:0:0"
    num: int = Field(5, ge=1, le=32, description="number of neighbours")


class Column(BaseModel):
    """Describe one column of a table: its title and, if other questions can name it, its sample."""

    title: str
    sample: str | None = None


class Panel(BaseModel):
    """Hold a table of pictures, each a PNG in base64 that carries its settings; null where there is none."""

    rows: list[str]
    columns: list[Column]
    images: list[list[str | None]]
    notes: list[str] = []
    settings: dict[str, Any] = {}


Table = tuple[list[str], list[Column], list[list[Tensor | None]], list[str]]  # rows, columns, their samples, notes


class Explorer:
    """Answer questions about one model. Calls from several threads do not disturb each other."""

    def __init__(self, model: Mandorla):
        self.model = model
        self.uploads = Uploads(model)
        self.finder = Finder(model, self.uploads, lambda: self.data)
        self._lock = Lock()

    @property
    def data(self) -> Splits:
        """Return the run's data, read once. Raises MandorlaError if they are gone or others."""
        with self._lock:
            return self._data

    @cached_property
    def _data(self) -> Splits:
        return self.model.data()

    @property
    def names(self) -> list[str]:
        """Return the names of the modalities."""
        return [modality.name for modality in self.model.modalities]

    def answer(self, question: Question) -> Panel | bytes:
        """Return the answer to any of the questions, as a table or as one PNG. Raises MandorlaError."""
        kind = type(question).__name__.lower()
        rows, columns, cells, notes = getattr(self, kind)(question)
        notes = [*self._strange(question), *notes]
        about = {"question": kind} | question.settings() | self._origin
        if question.format == "png":
            titles = [column.title for column in columns]
            return grid(cells, rows, titles, note=json.dumps(about))
        images = [
            [
                x if x is None else _encoded(x, about | {"row": row, "column": c.title})
                for x, c in zip(line, columns, strict=True)
            ]
            for row, line in zip(rows, cells, strict=True)
        ]
        return Panel(rows=rows, columns=columns, images=images, notes=notes, settings=about)

    def _strange(self, question: Question) -> list[str]:
        """Return what is strange about the uploads that are asked about: it holds for what is made of them too."""
        tokens = [name.split(":")[1] for name in question.settings().values() if str(name).startswith("upload:")]
        return [note for token in dict.fromkeys(tokens) if (note := self.uploads.get(token).note)]

    @property
    def _origin(self) -> dict[str, Any]:
        run = self.model.run.resolve().name
        return {"run": run, "weights": self.model.weights[:16], "mandorla": mandorla.__version__, "synthetic": True}

    def generate(self, q: Generate) -> Table:
        """Draw tuples: a column each."""
        labels = split_labels(q.label)
        x = guided(self.model, q.guidance).sample(q.num, q.seed, q.steps, labels=labels or None).x
        names = [name_of(q.seed, i, q.steps, q.guidance, labels) for i in range(q.num)]
        columns = [Column(title=str(i), sample=name) for i, name in enumerate(names)]
        notes = []
        if q.guidance not in (None, 1) and not labels and self.model.diffusion.config.mode == "joint":
            notes.append("Guidance pushes towards labels, and none is asked for: it changes nothing here.")
        if self.model.diffusion.config.mode != "joint":
            notes.append("This stage 2 does not draw shared parts: they are those of training samples.")
        return list(x), columns, [list(images) for images in x.values()], notes

    def fill(self, q: Fill) -> Table:
        """Draw what is wanted given what is given: the given sample, each draw, their mean and standard deviation."""
        sample = self.finder.find(q.a)
        given = q.given or [name for name in sample.x if name not in q.wanted]
        if not q.given and set(given) == set(self.names):
            given = given[:1]
        if lacking := [name for name in given if name not in sample.x]:
            raise MandorlaError(f"the sample has no {lacking[0]!r}: give what it has, {', '.join(sample.x)}")
        wanted = q.wanted or [name for name in self.names if name not in given]
        if not given or not wanted:
            raise MandorlaError("nothing to fill in: leave a modality out of what is given, or of what is wanted")
        known = {name: sample.x[name] for name in given}
        drawn = guided(self.model, q.guidance).translate(known, wanted, q.num, q.seed, q.steps)
        columns = [Column(title="given"), *(Column(title=f"draw {k}") for k in range(q.num))]
        columns += [Column(title="mean"), Column(title="std × 2")] if q.num > 1 else []
        columns += [Column(title="real", sample=q.a)] if set(wanted) & sample.x.keys() else []
        cells = []
        for name in [*given, *wanted]:
            row: list[Tensor | None] = [sample.x[name][0] if name in given else None]
            if name in given:
                cells.append(row + [None] * (len(columns) - 1))
                continue
            row += list(drawn[name][:, 0])
            row += [drawn[name][:, 0].mean(0), 2 * drawn[name][:, 0].std(0)] if q.num > 1 else []
            cells.append([*row, sample.x[name][0] if name in sample.x else None][: len(columns)])
        return [*given, *wanted], columns, cells, []

    def mix(self, q: Mix) -> Table:
        """Swap and mix two samples."""
        a, b = self.finder.find(q.a), self.finder.find(q.b)
        parts = {"shared of A, private of B": (0, 1), "shared of B, private of A": (1, 0)}
        parts[f"mixed {q.shared:g} / {q.private:g}"] = (q.shared, q.private)
        mixed = [self.model.mix(_source(a), _source(b), *weights, q.residual) for weights in parts.values()]
        rows = list(mixed[0])
        columns = [Column(title="A", sample=q.a), Column(title="B", sample=q.b), *(Column(title=t) for t in parts)]
        return rows, columns, [[a.x[n][0], b.x[n][0], *(x[n][0] for x in mixed)] for n in rows], []

    def walk(self, q: Walk) -> Table:
        """Walk from one sample to the other."""
        a, b = self.finder.find(q.a), self.finder.find(q.b)
        x = self.model.interpolate(_source(a), _source(b), q.num, q.part)
        columns = [Column(title=f"{k / (q.num - 1):.2f}") for k in range(q.num)]
        columns[0].sample = q.a
        return list(x), columns, [list(images[:, 0]) for images in x.values()], []

    def traverse(self, q: Traverse) -> Table:
        """Move each channel of a component; show those that change most."""
        latents = self._latents(self.finder.find(q.a))
        shapes = self.model.vae.layout.shapes
        if q.component not in shapes:
            raise MandorlaError(f"unknown component {q.component!r}; this model has {', '.join(shapes)}")
        shown = (q.show or next(iter(latents.private))) if q.component == SHARED else q.component
        if shown not in latents.private:
            raise MandorlaError(f"the sample has no {shown!r}: show what it has, {', '.join(latents.private)}")
        latents = replace(latents, private={shown: latents.private[shown]})
        versions = [
            self.model.traverse(latents, q.component, channel, q.num, q.reach)[shown][:, 0]
            for channel in range(shapes[q.component][0])
        ]
        change = [float((x[0] - x[-1]).square().mean().sqrt()) for x in versions]
        order = sorted(range(len(change)), key=lambda channel: -change[channel])[: q.top]
        columns = [Column(title=f"{move:+.2g} sd") for move in np.linspace(-q.reach, q.reach, q.num)]
        what = "shared part" if q.component == SHARED else f"private part of {q.component}"
        note = f"The {what} has {len(change)} channels; those that change {shown} most come first. The number beside a"
        note += " channel is the root mean square difference between its two ends, of values in [0, 1]."
        return [f"{c}: {change[c]:.3f}" for c in order], columns, [list(versions[c]) for c in order], [note]

    def nearest(self, q: Nearest) -> Table:
        """Find what of the training set looks most like a sample."""
        sample = self.finder.find(q.a)
        with self._lock:
            chosen, vectors, present = self._training
        here = torch.stack([present[name] for name in sample.x]).all(0)
        if not here.any():
            raise MandorlaError(f"no training sample has {' and '.join(sample.x)} together: nothing to compare with")
        rows, indices = torch.cat([vectors[name][here] for name in sample.x], 1), chosen[here.numpy()]
        distance, order = _distances(flatten_tuples(sample.x), rows).topk(min(q.num, len(rows)), largest=False)
        train = self.data.train
        batch = train.batch(indices[order[0].numpy()])
        columns = [Column(title="sample", sample=q.a)]
        columns += [Column(title=f"{i}: {d:.3f}") for i, d in zip(batch.ids, distance[0].tolist(), strict=True)]
        test = self.data.test
        held = test.batch(choose(test, _HELD_OUT, 0))
        held_here = torch.stack([held.present[name] for name in sample.x]).all(0)
        notes = [
            f"Among {len(rows)} of {len(train)} training samples. Distances are root mean square differences of images"
            f" in [0, 1], averaged down to at most {LARGEST} pixels a side: blurred images lie close to everything."
        ]
        if held_here.any():
            queries = flatten_tuples({name: held.x[name][held_here] for name in sample.x})
            usual = _distances(queries, rows).min(1).values
            closer = float((usual < distance[0, 0]).float().mean())
            notes.append(f"{closer:.0%} of {len(usual)} unseen real samples lie closer to their nearest than this one.")
        cells = [[sample.x[name][0], *batch.x[name]] for name in sample.x]
        return list(sample.x), columns, cells, notes

    @cached_property
    def _training(self) -> tuple[np.ndarray, dict[str, Tensor], dict[str, Tensor]]:
        """Return which training samples neighbours are looked for among, their images as the copy audit sees them."""
        train, recipe = self._data.train, self.model.recipe
        chosen = choose(train, recipe.evaluate.num_train, recipe.seed)
        batches = [train.batch(rows) for rows in np.array_split(chosen, max(1, len(chosen) // 256))]
        vectors = {n: torch.cat([flatten_tuples({n: batch.x[n]}) for batch in batches]) for n in self.names}
        return chosen, vectors, {n: torch.cat([batch.present[n] for batch in batches]) for n in self.names}

    def _latents(self, sample: Sample) -> Latents:
        return sample.latents or self.model.encode(sample.x)


def _source(sample: Sample) -> Latents | dict[str, Tensor]:
    return sample.latents or sample.x


def _distances(queries: Tensor, rows: Tensor) -> Tensor:
    return torch.cdist(queries, rows) / queries.shape[1] ** 0.5


def _encoded(x: Tensor, about: dict[str, Any]) -> str:
    pixels = (255 * drawable(x)).round().byte().permute(1, 2, 0).numpy()
    return base64.b64encode(
        to_png(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels), json.dumps(about))
    ).decode()
