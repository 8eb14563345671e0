"""The command line: one command, `mandorla`, with verbs. It parses and delegates; torch is imported inside the verbs.

A mistake of the user (`MandorlaError`) is one line on stderr and exit status 2; `--debug` anywhere shows the
traceback as well. A warning (`MandorlaWarning`) is one line on stderr. An interrupted command exits with 130 and is
taken up again by typing it once more.
"""

import io
import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

import mandorla
from mandorla.errors import MandorlaError, MandorlaWarning
from mandorla.processes import joined, speaks, start, starts, together

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
train = typer.Typer(no_args_is_help=True)
app.add_typer(train, name="train", help="Train stage 1 (`vae`), stage 2 (`diffusion`), or the `refiner`.")
data = typer.Typer(no_args_is_help=True)
app.add_typer(data, name="data", help="Look at data before a training; pack them.")

UsageError = typer.BadParameter.__base__  # click's, wherever this typer keeps it
OVERRIDES = "[KEY.SUB=VALUE]..."
SUITES = "disentanglement,coherence,fidelity,translation,audit"

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as written by `train` or `demo`.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar=f"[RECIPE] {OVERRIDES}",
        help="Recipe: a YAML file, a run folder, or the name of a recipe that ships with mandorla; then changes to it.",
    ),
]
Measured = Annotated[
    list[str] | None,
    typer.Argument(metavar="[evaluate.KEY=VALUE]...", help="Changes to what is measured, for this call."),
]
RunTo = Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder to write to; short for `run=RUN`.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="A label that samples shall have, of `diffusion.labels`."),
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]
Steps = Annotated[int | None, typer.Option(min=1, max=10_000, help="Steps of the sampler; by default the recipe's.")]
Part = Literal["polydigits", "phantom", "both"]
Stage = Literal["vae", "diffusion", "refiner"]
Format = Literal["nifti", "png", "npz"]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Index into the run's test split; an .npz of arrays (N, C, *size) in [0, 1]; of a run on tables, a table"
        " with a row per sample; or a folder with a file for each modality, or with a folder of files for each, called"
        " like it; or a BIDS dataset.",
    ),
]
IN = (
    "A BIDS dataset; a folder with one sub-folder of files per given modality, paired by name, or a file of that name;"
    " if one modality is given, a folder of files, one file, a part of it (case.nii.gz:0), or the folder of a DICOM"
    " series; an .npz with one array (N, C, *size) in [0, 1] per modality; of a run on tables, a table with a row per"
    " sample."
)
Complete = Annotated[
    bool, typer.Option("--complete", help="Pass over samples that lack a given modality; else what they have is used.")
]
Moved = Annotated[Literal["both", "shared", "private"], typer.Option("--part", help="What changes.")]
Draws = Annotated[int, typer.Option("--num", min=1, max=1000, help="Draws of each sample.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="New folder to write to; by default one inside RUN.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments` (default: those of the process) and exit."""
    sys.path.append("")  # the current folder, where a user's own encoder/decoder may lie
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever a terminal cannot show
        sys.stdout.reconfigure(errors="replace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with warnings.catch_warnings(), together(arguments[0] if arguments else ""):
            warnings.showwarning = _show_warning
            status = app(arguments, prog_name="mandorla", standalone_mode=False) or 0
    except (MandorlaError, UsageError, OSError, MemoryError, RuntimeError) as error:
        if not speaks():
            pass
        elif type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        elif message := _explain(error):
            if debug:
                traceback.print_exc()
            print("mandorla:", " ".join(message.split()), file=sys.stderr)  # one line, whatever a file is called
        else:
            raise
        sys.exit(2)
    if status == 130 and speaks():
        print("mandorla: interrupted; the same command takes the work up again", file=sys.stderr)
    sys.exit(status)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if not speaks(f"{message}"):
        return
    if issubclass(category, MandorlaWarning):
        print(f"mandorla: warning: {message}", file=sys.stderr)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _explain(error: Exception) -> str:
    """Return what was wrong in what the user gave; empty where the mistake is mandorla's own."""
    if isinstance(error, UsageError):
        return f"{error.format_message()} See `{error.ctx.command_path if error.ctx else 'mandorla'} --help`"
    if isinstance(error, OSError):  # a full disk, a folder that may not be written
        return f"{error.filename or 'a file cannot be read or written'}: {error.strerror or error}"
    if isinstance(error, RuntimeError) and ("by peer" in str(error) or type(error).__name__.startswith("Dist")):
        return "another process of this command has ended without a word; the same command takes the work up again"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
        keys = "data.size, training.batch_size or the channels of networks, in an evaluation evaluate.num_generated"
        return f"not enough memory: lower {keys} ({error})"
    return str(error) if isinstance(error, MandorlaError) else ""


def _version(wanted: bool) -> None:
    if wanted:
        print(mandorla.__version__)
        raise typer.Exit


@app.callback(
    epilog="--debug anywhere shows the traceback of an error. Exit status: 0 done, 2 a mistake in what was given (one"
    " line says which), 130 interrupted."
)
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Learn what paired modalities share and what each keeps to itself; sample, translate and swap both."""


@app.command()
def demo(
    overrides: Annotated[list[str] | None, typer.Argument(metavar=OVERRIDES, help="Changes to the recipe.")] = None,
    run: Annotated[Path, typer.Option(metavar="RUN", help="Run folder to write to.")] = Path("runs/demo"),
    seed: Seed = 0,
    part: Annotated[Part, typer.Option(help="polydigits, phantom, or both side by side.")] = "both",
) -> None:
    """Train both stages on bundled data, generate, evaluate and write a report: five minutes on two cores."""
    from mandorla.demo import run_demo

    _use_idle_cores()
    run_demo(run, seed, overrides or [], part)


@train.command("vae")
def train_vae(
    settings: Settings = None,
    run: RunTo = None,
    dry_run: DryRun = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Train with several latent sizes, compare them, and recommend one.")
    ] = False,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY.SUB=A,B,...",
            help="Values that --sweep tries, all combinations; by default half, same and double of the channels.",
        ),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Train with each term of the loss off, one at a time, and compare.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds that --sweep and --ablate repeat every trial with.")] = 1,
) -> None:
    """Train stage 1 and write the latents of the training and validation set; the same command again resumes."""
    if sweep or ablate or grid or seeds > 1:
        settings = [*(settings or []), *([f"run={json.dumps(str(run))}"] if run else [])]
        return _run_trials(settings, dry_run, sweep, ablate, grid or [], seeds)
    _train("vae", settings, run, dry_run)


def _run_trials(settings: list[str], dry_run: bool, sweep: bool, ablate: bool, grid: list[str], seeds: int) -> None:
    if sweep == ablate:
        raise MandorlaError("--sweep or --ablate: give one of them, with it --seeds, with --sweep also --grid")
    if joined():
        raise MandorlaError("--sweep and --ablate train on one process: start them without torchrun")
    if ablate and grid:
        raise MandorlaError("--grid is for --sweep, not for --ablate: leave one of them out")
    from mandorla.trials import ablation_trials, run_trials, size_trials

    def read(changes: Sequence[str]):
        return _read_recipe([*settings, *changes], None, "vae")

    trials = ablation_trials(read) if ablate else size_trials(read, grid)
    if dry_run:
        return print("\n".join(f"{trial.name}: {' '.join(trial.changes) or 'as it is'}" for trial in trials))
    _use_idle_cores()
    run_trials("ablate" if ablate else "sweep", trials, read, seeds)


@train.command("diffusion")
def train_diffusion(settings: Settings = None, run: RunTo = None, dry_run: DryRun = False) -> None:
    """Train stage 2 on the latents that stage 1 wrote into the same run; the same command again resumes."""
    _train("diffusion", settings, run, dry_run)


@train.command("refiner")
def train_refiner(settings: Settings = None, run: RunTo = None, dry_run: DryRun = False) -> None:
    """Train what adds the detail to images that stage 1 leaves out; every image that is made has it from then on."""
    _train("refiner", settings, run, dry_run)


@data.command("check")
def check_data(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of data, a table (.csv, .tsv) or dataset.json; or a recipe, by file, run folder or name.",
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar=OVERRIDES, help="Changes to the recipe.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="HTML", help="Page to write; by default data-check.html.")] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="YAML", help="Also write the proposed recipe here.")] = None,
) -> None:
    """Say what is in the data, what is wrong with them, and propose a recipe. Exit status: 1 if something must be
    mended before a training, 0 if not, 2 if SOURCE is neither data nor a recipe."""
    from mandorla.check import check_data

    if not check_data(source, overrides or [], out, recipe):
        raise typer.Exit(1)


@data.command("pack")
def pack_data(
    source: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe whose data to pack: file, run or name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write to.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar=OVERRIDES, help="Changes to the recipe.")] = None,
    shard_mib: Annotated[int, typer.Option(min=1, help="Size of a shard in MiB, about.")] = 1024,
) -> None:
    """Write the data of a recipe as a few large files in the WebDataset format, divided into train, val and test: for
    many small files, many nodes, slow disks. Training on them is training on their source."""
    from mandorla.data import pack_data

    recipe = _read_recipe([source, *(overrides or [])], None)
    pack_data(recipe.data, recipe.seed, out, shard_mib)
    _say(out)
    print(f"to train on it: data={{kind: shards, folder: {json.dumps(str(out))}, root: .}}")


@app.command()
def encode(
    run: Run,
    source: Annotated[Path | None, typer.Argument(metavar="IN", help=IN)] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="New folder to write to.")] = None,
    given: Annotated[
        str | None, typer.Option(metavar="A,B", help="Modalities to read from IN; by default all that are in it.")
    ] = None,
    residual: Annotated[
        bool, typer.Option("--residual", help="Also what is private beyond the shared part: needs stage 2.")
    ] = False,
    complete: Complete = False,
) -> None:
    """Write the latents of your own samples: c of all modalities together and of each alone, and u, as arrays, and as
    tables where they are vectors.

    Without IN: those of the run's training and validation set, for stage 2, as far as those of its weights are not
    there. The same command started several times at once, also by torchrun and on machines that share the folder,
    divides the work; after one was killed it goes on with what is missing.
    """
    if source is None:
        if given or residual or complete:
            raise MandorlaError("--given, --residual and --complete are for samples of your own: name IN and OUT too")
        from mandorla.vae.encoding import write_latents

        _use_idle_cores()
        write_latents(run)
        return print(
            f"latents are complete in {run / 'latents'}; next: mandorla train diffusion {shlex.quote(str(run))}"
        )
    if out is None:
        raise MandorlaError("samples of your own need a place for their latents: mandorla encode RUN IN OUT")
    from mandorla import files

    names = _names(given) if given else []
    _say(files.encode(_load(run), source, out, names, residual=residual, complete=complete))


@app.command()
def sample(
    run: Run,
    num: Annotated[int, typer.Option(min=1, max=10**9, help="Number of samples.")] = 16,
    seed: Seed = 0,
    steps: Steps = None,
    format: Annotated[
        Format | None,
        typer.Option(help="Write only these: pictures, volumes (of pictures too), or one .npz of all arrays."),
    ] = None,
    out: Out = None,
    label: Labels = None,
    best_of: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            help="Draws for each sample; that whose modalities agree best is kept. Many favour easy samples.",
        ),
    ] = 1,
) -> None:
    """Generate new matching tuples: one picture per modality and sample, a grid, and all arrays (`samples.npz`)."""
    from mandorla import files

    labels = _labels(label)
    _say(files.sample(_load(run), out, num=num, seed=seed, steps=steps, format=format, labels=labels, best_of=best_of))


@app.command()
def translate(
    run: Run,
    source: Annotated[Path, typer.Argument(metavar="IN", help=IN)],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="New folder to write to; or one that the same command began.")
    ],
    given: Annotated[str, typer.Option(metavar="A,B", help="Modalities to read from IN.")],
    wanted: Annotated[str, typer.Option(metavar="C", help="Modalities to generate.")],
    num_samples: Annotated[
        int,
        typer.Option(
            min=0, max=10_000, help="Draws per input; 0: one guess, its private part at the mean of its prior."
        ),
    ] = 8,
    write: Annotated[
        str, typer.Option(metavar="A,B", help="What to write of the draws: mean, std, draws (each of them).")
    ] = "mean",
    seed: Seed = 0,
    steps: Steps = None,
    label: Labels = None,
    complete: Complete = False,
) -> None:
    """Generate wanted modalities from those of the given ones that a sample has: a file of the same kind for each,
    volumes on the grid of the input, with a note of how it was made. The same command again goes on with what is
    missing."""
    from mandorla import files

    kinds = _names(write)
    if unknown := [kind for kind in kinds if kind not in ("mean", "std", "draws")]:
        raise MandorlaError(f"--write {unknown[0]}: it takes mean, std and draws, divided by commas")
    settings = {"num_samples": num_samples, "seed": seed, "steps": steps, "write": kinds, "labels": _labels(label)}
    settings["complete"] = complete
    _say(files.translate(_load(run), source, out, _names(given), _names(wanted), **settings))


@app.command()
def swap(
    run: Run,
    shared_from: Annotated[str, typer.Option(metavar="A", help="Sample, as SOURCE of `mandorla vary`.")],
    private_from: Annotated[str, typer.Option(metavar="B", help="Sample, as SOURCE of `mandorla vary`.")],
    out: Out = None,
) -> None:
    """Join the shared part of one sample with the private parts of another."""
    from mandorla import edits

    _say(edits.swap(_load(run), shared_from, private_from, out))


@app.command()
def vary(
    run: Run,
    source: Source,
    strength: Annotated[float, typer.Option(min=0, max=1, help="From 0, as it is, to 1, drawn anew.")] = 0.5,
    part: Moved = "private",
    num: Draws = 4,
    seed: Seed = 0,
    label: Labels = None,
    out: Out = None,
) -> None:
    """Draw a sample again in part: other samples that are like it."""
    from mandorla import edits

    settings = {"strength": strength, "part": part, "num": num, "seed": seed, "labels": _labels(label)}
    _say(edits.vary(_load(run), source, out, **settings))


@app.command()
def interpolate(
    run: Run,
    first: Annotated[str, typer.Argument(metavar="A", help="Sample, as SOURCE of `mandorla vary`.")],
    last: Annotated[str, typer.Argument(metavar="B", help="Sample, as SOURCE of `mandorla vary`.")],
    part: Moved = "both",
    num: Annotated[int, typer.Option(min=2, max=1000, help="Steps, ends included.")] = 8,
    out: Out = None,
) -> None:
    """Go from one sample to another; along the shared or the private parts alone, the others stay those of A."""
    from mandorla import edits

    _say(edits.interpolate(_load(run), first, last, out, part=part, num=num))


@app.command()
def inpaint(
    run: Run,
    source: Source,
    region: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Picture, volume or array on the grid of the samples, above zero inside."),
    ],
    part: Moved = "both",
    num: Draws = 4,
    seed: Seed = 0,
    label: Labels = None,
    out: Out = None,
) -> None:
    """Draw a region of images anew, given what lies around it; stage 2 learns it with `diffusion.region_share`."""
    from mandorla import edits

    settings = {"part": part, "num": num, "seed": seed, "labels": _labels(label)}
    _say(edits.inpaint(_load(run), source, region, out, **settings))


@app.command()
def evaluate(
    run: Run,
    overrides: Measured = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help=f"What to measure, of {SUITES}; or all. Short for `evaluate.suites=[A, B]`.",
        ),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Samples per translation; short for `evaluate.num_samples=N`.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Recipe whose test split to measure instead of the run's own."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Run of the same data, whose translations to compare with in pairs."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write to; by default RUN, of --data RUN/other.")
    ] = None,
) -> None:
    """Measure the run on its test split: `metrics.json`, pictures and `report.html`."""
    from mandorla.evaluate import evaluate

    changes = list(overrides or [])
    if suite is not None:
        changes.append(f"evaluate.suites={json.dumps(_names(SUITES if suite == 'all' else suite))}")
    if num_samples is not None:
        changes.append(f"evaluate.num_samples={num_samples}")
    _use_idle_cores()
    evaluate(run, changes, data, baseline, out)


@app.command()
def audit(
    run: Run,
    overrides: Measured = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of suspicious samples that passes; .01 is usual.")
    ] = 0.05,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write to; by default RUN/audit.")] = None,
) -> None:
    """Look for copies of training samples among generated ones. Exit status: 1 if more than --threshold look like
    copies, and more than may be chance beside so few test samples, 0 if not."""
    from mandorla.evaluate import audit_run

    _use_idle_cores()
    if not audit_run(run, overrides or [], threshold, out):
        raise typer.Exit(1)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="Run folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.")],
    out: Annotated[Path, typer.Option(metavar="PNG", help="Picture of the curves.")] = Path("compare.png"),
) -> None:
    """Say in what the settings of two runs differ and which has the better figures; draw the curves of both."""
    from mandorla.compare import compare

    compare(first, second, out)


@app.command()
def serve(
    run: Run,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any that is free.")] = 8000,
) -> None:
    """Show the run on a web page, on this machine alone: draw, fill in, swap, walk, and look at every dimension."""
    from mandorla.serve import serve

    serve(run, port)


@app.command()
def config(
    settings: Settings = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema, for editors.")] = False,
) -> None:
    """List every key with type, default and meaning; with a recipe, its kinds and values."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from mandorla.config import describe
    from mandorla.recipe import Recipe

    if schema:
        return print(json.dumps(Recipe.model_json_schema(), indent=2))
    console, condition = Console(highlight=False), ""
    for row in describe(_read_recipe(settings, None) if settings else Recipe):
        if row.when != condition:
            console.print(Text(f"\nwith {row.when}:" if row.when else "", "italic"))
        condition = row.when
        value = f": {row.default}" if row.default else ""
        console.print(Text.assemble((row.key, "bold"), value, (f"  ({row.type})", "dim")), soft_wrap=True)
        if row.meaning:
            console.print(Padding(Text(row.meaning), (0, 0, 0, 4), expand=False))


def _read_recipe(settings: list[str] | None, run: Path | None, stage: Stage | None = None):
    """Return the recipe that `[RECIPE] [KEY.SUB=VALUE]...` names; `stage` is what it is read for."""
    from mandorla.recipe import read_recipe

    sources = [text for text in settings or [] if "=" not in text or os.path.exists(text)]
    overrides = [text for text in settings or [] if text not in sources]
    if len(sources) > 1:
        raise MandorlaError(f"one recipe at a time, got {' '.join(sources)}; changes to it are written key.sub=value")
    if run is not None:
        overrides.append(f"run={json.dumps(str(run))}")
    return read_recipe(sources[0] if sources else "", overrides, stage)


def _train(stage: Stage, settings: list[str] | None, run: Path | None, dry_run: bool) -> None:
    """Train `stage`, on as many processes as the recipe says; or print the recipe."""
    recipe = _read_recipe(settings, run, stage)
    if dry_run:
        return _print_yaml(recipe)
    if starts(recipe.trainer):
        again = ["train", stage, *(settings or []), *(["--run", str(run)] if run else [])]
        sys.exit(start(recipe.trainer, again))
    training = import_module(f"mandorla.{stage}.training")
    _use_idle_cores()
    getattr(training, f"train_{stage}")(recipe)
    title, following = _TRAINED[stage]
    print(f"{title} is trained in {recipe.run}; next: mandorla {following} {shlex.quote(recipe.run)}")


_TRAINED: dict[Stage, tuple[str, str]] = {  # what is trained, and what is typed next
    "vae": ("stage 1 (vae)", "train diffusion"),
    "diffusion": ("stage 2 (diffusion)", "evaluate"),
    "refiner": ("the refiner", "evaluate"),
}


def _load(run: Path):
    """Return the model of a run."""
    _use_idle_cores()
    return mandorla.load(run)


def _use_idle_cores() -> None:
    from mandorla.device import use_idle_cores

    use_idle_cores()


def _print_yaml(recipe) -> None:
    from mandorla.config import dump

    print(dump(recipe), end="")


def _labels(given: list[str] | None) -> dict[str, str]:
    from mandorla.diffusion.labels import split_labels

    if unclear := [text for text in given or [] if "=" not in text]:
        raise typer.BadParameter(f"--label {unclear[0]}: write it as NAME=VALUE.")
    return split_labels(given or [])


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _say(written: Path) -> None:
    print(f"written: {written}")
