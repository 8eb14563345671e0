"""With what a training ran: command, commit, packages, machine. Kept beside its weights."""

import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path

import torch

from mandorla.parallel import world
from mandorla.storage import write_text

FILE = "environment.json"


def begun_with(folder: Path) -> int | None:
    """Return on how many threads the training in `folder` began; None if it has not, or nobody knows."""
    try:
        return int(json.loads((folder / FILE).read_text(encoding="utf-8"))[0]["machine"]["threads"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def note_environment(folder: Path, seed: int, anew: bool = False) -> None:
    """Append what this process runs with to `environment.json` in `folder`: one entry per command that trained there.

    A file that is damaged is begun anew, and so it is where a training begins `anew`: nothing was kept of those before.
    """
    try:
        entries = [] if anew else json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = []
    entry = {
        "command": " ".join(sys.argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": seed,
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": world(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "packages": dict(sorted((name, d.version) for d in distributions() if (name := d.metadata["Name"]))),
    }
    write_text(folder / FILE, json.dumps([*entries, entry], indent=1))


def commit() -> str | None:
    """Return the commit of this package's source, `-dirty` behind it where files differ; None outside of git."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(here.parent), *arguments], capture_output=True, text=True)

    here = Path(__file__)
    try:
        if git("ls-files", "--error-unmatch", here.name).returncode:
            return None  # installed into the folder of another project
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").stdout.strip() or None
    except OSError:  # no git on this machine
        return None


def processor() -> str:
    """Return the name of this machine's processor and how many of its cores there are."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8")) if info.is_file() else None
    return f"{named[1] if named else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
