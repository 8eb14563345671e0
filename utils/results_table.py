"""Print a Markdown table of figures over several runs (seeds): mean and standard deviation, chance, control, ceiling.

    python utils/results_table.py runs/seed0 runs/seed1 runs/seed2 --only shared private joint

A row per figure that all runs measured; `--only` keeps those whose name begins with one of the given words.
"""

import argparse
import json
import statistics
from pathlib import Path


def main() -> None:
    """Read each run's `metrics.json` and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders that were evaluated")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of figures to print")
    arguments = parser.parse_args()
    found = [read_records(run) for run in arguments.runs]
    print(f"| figure | mean ± sd of {len(found)} | chance | control | ceiling | better |\n|---|---|---|---|---|---|")
    for name, record in found[0].items():
        if all(name in records for records in found) and name.startswith(tuple(arguments.only)):
            rows = [records[name] for records in found]
            columns = [spread(rows, "value"), *(average(rows, key) for key in ("chance", "control", "ceiling"))]
            print(f"| {name} | {' | '.join(columns)} | {record['better']} |")


def read_records(run: Path) -> dict[str, dict]:
    """Return the records of a run by name."""
    try:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SystemExit(f"{run} has no metrics.json: run `mandorla evaluate {run}` first") from None
    return {record["name"]: record for record in metrics["records"]}


def spread(rows: list[dict], key: str) -> str:
    """Return mean ± standard deviation of `key` as text."""
    values = [row[key] for row in rows]
    digits = 1 if rows[0]["unit"] == "dB" else 3
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation} {rows[0]['unit']}".strip()


def average(rows: list[dict], key: str) -> str:
    """Return the mean of `key` as text, empty where it does not apply."""
    values = [row[key] for row in rows if row[key] is not None]
    return f"{statistics.mean(values):.{1 if rows[0]['unit'] == 'dB' else 3}f}" if values else ""


if __name__ == "__main__":
    main()
