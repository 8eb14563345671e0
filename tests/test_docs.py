"""The site builds without a warning, and its pages are followed as a newcomer does: every command as typed, on tiny
settings, every piece of Python, every recipe."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_readme import DIFFUSION, VAE

import mandorla.serve
from mandorla.cli import main
from mandorla.data.bids import find_bids
from mandorla.data.loading import MOST_WORKERS, MUCH
from mandorla.diffusion.samplers import SamplingConfig, evaluations
from mandorla.evaluate.audit import LEVEL
from mandorla.recipe import read_recipe
from mandorla.serve.samples import LARGEST_CONTENT, LARGEST_FILE

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md") if path.stem != "data")  # that is data/README.md
NOT_HERE = ("python3 -m venv ", ". .venv/bin/activate", "pip install -c constraints.txt -e ", "mandorla demo")
TINY = {
    ("train", "vae"): [*VAE, "vae.model.shared={channels: 4}", "vae.model.private={channels: 4}"],
    ("train", "diffusion"): DIFFUSION,
}
BLOCK = re.compile(r"(?:^([^\n]*)\n\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"`(\w+\.(?:py|yaml))`[:;]$")


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Return language, text and, where the line before names one, file of each block of code on a page, in order."""
    return BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))


@pytest.fixture
def world(tmp_path, monkeypatch, polydigits_run):
    """Return an empty folder, current, with what the pages take for granted; a page that is served ends at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MANDORLA_DATA", raising=False)
    monkeypatch.setattr(mandorla.serve, "serve", lambda run, port: mandorla.load(run))
    shutil.copytree(polydigits_run, "runs/demo")
    return tmp_path


def write_study(folder: Path) -> None:
    """Write a BIDS dataset of small volumes."""
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    for subject in range(12):
        for suffix in ("T1w", "T2w"):
            path = folder / f"sub-{subject:02d}" / "anat" / f"sub-{subject:02d}_{suffix}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            volume = np.zeros((20, 24, 16), np.int16)
            volume[3:-3, 3:-3, 3:-3] = rng.integers(50, 900, (14, 18, 10))
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)


@pytest.mark.parametrize(
    "pages",
    [("quickstart",), ("your-data", "missing", "translate"), ("latent-sizes",), ("networks",)],
    ids=lambda pages: pages[0],
)
def test_pages_as_typed(world, pages):
    write_study(world / "study")
    for page in pages:
        for before, language, text in blocks(page):
            if file := FILE.search(before):
                Path(file[1]).write_text(text)
            elif language == "python":
                exec(text, {"__name__": page})
            for command in text.splitlines() if language == "sh" else ():
                run(command)
    if "your-data" in pages:
        for path in ("mine.yaml", "data-check.html", "runs/try/report.html", "runs/mine/report.html", "compare.png"):
            assert Path(path).is_file(), path
        assert len(list(Path("out/t2").glob("*.png"))) == len(list(Path("out/t2_std").glob("*.json"))) == 240
        assert len(list(Path("drawn/t1").glob("*.nii.gz"))) == 20


def run(command: str) -> None:
    """Run a command of a page on tiny settings, unless it is of those that others tests have."""
    if command.startswith(NOT_HERE):
        return
    program, *arguments = shlex.split(command)
    assert program == "mandorla", command
    arguments += ["--dry-run"] if "--sweep" in arguments else TINY.get(tuple(arguments[:2]), [])
    if "runs/tiny" in arguments:  # which has a network of its own
        arguments = [argument for argument in arguments if not argument.startswith("diffusion.network=")]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code, command


def test_commands_for_several_processes_as_typed(world, monkeypatch, capsys):
    """torchrun and what it starts accept them; how processes share the work has tests of its own."""
    from torch.distributed.run import parse_args

    from mandorla import cli, files
    from mandorla.vae import encoding

    shutil.copytree("runs/demo", "runs/mine")
    Path("my.yaml").write_text("run: runs/mine\n")
    done = []
    monkeypatch.setattr(cli, "start", lambda trainer, arguments: done.append(arguments[:2]) or 0)
    monkeypatch.setattr(encoding, "write_latents", lambda *given: done.append("encode"))
    monkeypatch.setattr(files, "sample", lambda *given, num, **more: done.append(("sample", num)))
    monkeypatch.setattr(files, "translate", lambda *given, **more: done.append("translate"))
    monkeypatch.setattr("mandorla.evaluate.evaluate", lambda *given: done.append("evaluate"))
    for _, language, text in blocks("scaling"):
        for command in text.splitlines() if language == "sh" else ():
            program, *arguments = shlex.split(command, comments=True)
            if program == "torchrun":
                read = parse_args(arguments)
                assert (read.module, read.training_script, read.nproc_per_node) == (True, "mandorla", "4")
                arguments = [*read.training_script_args, *["--dry-run"][: "train" in command]]
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert not stop.value.code, command
    vae, diffusion = (["train", stage] for stage in ("vae", "diffusion"))
    assert done == [vae, diffusion, "encode", ("sample", 10000), "translate", "evaluate", vae, vae, diffusion]


def test_no_command_is_left_out():
    """Pages without a test of their own have no commands but those that start the server."""
    tested = {"quickstart", "your-data", "missing", "translate", "latent-sizes", "scaling", "networks"}
    for page in set(PAGES) - tested:
        lines = [line for _, language, text in blocks(page) if language == "sh" for line in text.splitlines()]
        assert all(line.startswith("mandorla serve ") for line in lines), page


RECIPES = [(page, text) for page in PAGES for _, language, text in blocks(page) if language == "yaml"]


@pytest.mark.parametrize(("page", "text"), RECIPES, ids=[page for page, _ in RECIPES])
def test_recipes_are_valid(tmp_path, page, text):
    (tmp_path / "recipe.yaml").write_text(text.replace("imports: [mynets.py]\n", ""))
    read_recipe(str(tmp_path / "recipe.yaml"))


def test_a_recipe_for_scans_finds_what_the_commands_before_it_do(tmp_path):
    write_study(tmp_path / "study")
    (text,) = [text for page, text in RECIPES if page == "your-data" and "kind: bids" in text]
    (tmp_path / "scans.yaml").write_text(text)
    assert len(find_bids(read_recipe(str(tmp_path / "scans.yaml")).data)) == 24


def test_the_api_as_a_program_asks_it(world):
    """The server is the real one, in a process of its own."""
    pytest.importorskip("fastapi")
    environment = os.environ | {"PYTHONPATH": str(DOCS.parent / "src")}
    command = [sys.executable, "-m", "mandorla", "serve", "runs/demo", "--port", "0"]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )
    try:
        address = process.stdout.readline().split()[0]
        (text,) = [text for _, language, text in blocks("explore") if language == "python"]
        names: dict = {}
        exec(text.replace("http://127.0.0.1:8000", address), names)
        assert len(names["panel"]["columns"]) == 4
        assert Path("four.png").read_bytes().startswith(b"\x89PNG")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, "Control-C ends it"
    finally:
        process.kill()


@pytest.mark.parametrize("path", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_executed_from_top_to_bottom(path):
    """None of them failed, all have pictures, are small enough for a repository, and tell nothing of the machine."""
    text = path.read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert "mandorla: " not in printed.replace("mandorla: warning", "") and "Traceback" not in printed
    assert not re.search(r"/(tmp|home|root|work)/|\x1b", printed), "places of this machine, or signs for a terminal"
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert len(text) < 2**20


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    source = shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("reference", "executed"))
    for name in ("src", "data"):
        (tmp_path / name).symlink_to(DOCS.parent / name)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", str(source), str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site" / "theory.html").read_text(encoding="utf-8").count("<math") > 20
    elsewhere = re.compile(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]+)")
    for path in (tmp_path / "site").glob("*.html"):
        assert not elsewhere.findall(path.read_text(encoding="utf-8")), "nothing is loaded from elsewhere"


def test_numbers_on_pages_are_those_of_the_code():
    """A page cannot take a number from the code."""
    level = f"{LEVEL:g}".removeprefix("0")
    large, many = MUCH // 2**20, MOST_WORKERS
    said = {
        "docs/report.md": f"at most {level} in one of the two spaces: one such model in twenty fails",
        "docs/explore.md": f"({LARGEST_FILE // 2**20} MiB, {LARGEST_CONTENT // 2**30} GiB unpacked)",
        "data/README.md": f"From {large} MB on, one process per core reads, {many} at most",
        "README.md": f"takes {evaluations(SamplingConfig())} network evaluations unless a recipe says otherwise",
    }
    assert 1 / (2 * LEVEL) == 20, "in two spaces"
    for page, text in said.items():
        assert text in " ".join((DOCS.parent / page).read_text(encoding="utf-8").split())
