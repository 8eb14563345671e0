"""Print a Markdown table of figures over several runs (seeds): mean and standard deviation, chance, control, ceiling.

    python utils/results_table.py runs/seed0 runs/seed1 runs/seed2 --only shared private joint

A row per figure that all runs measured; `--only` keeps those whose name begins with one of the given words.
"""

import argparse
import sys
from pathlib import Path

from mandorla.errors import MandorlaError
from mandorla.evaluate.record import Record, read_records
from mandorla.evaluate.table import figures_table


def main() -> None:
    """Read each run's `metrics.json` and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders that were evaluated")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of figures to print")
    arguments = parser.parse_args()
    try:
        found = [chosen(run, tuple(arguments.only)) for run in arguments.runs]
    except MandorlaError as error:
        sys.exit(str(error))
    print(figures_table({f"mean ± sd of {len(found)}": found}), end="")


def chosen(run: Path, beginnings: tuple[str, ...]) -> list[Record]:
    """Return the figures of a run whose names begin so. Raises MandorlaError if it was not evaluated."""
    records = read_records(run)
    if not records:
        raise MandorlaError(f"{run} has no metrics.json: run `mandorla evaluate {run}` first")
    return [record for record in records if record.name.startswith(beginnings)]


if __name__ == "__main__":
    main()
