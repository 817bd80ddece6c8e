"""The trials of a finished study as one small file, for benchmarks/economy.py to replay.

    mmfa-study --study benchmarks/economy.toml --quick --promote never --out DIR
    python benchmarks/economy_table.py --out DIR

A row is a trial of the search: its λ's, its `target_val/mAP` after every epoch, the last of them, and the seconds
that it trained. Study, hardware and versions stand in the file's metadata. Writes
benchmarks/results/economy-trials.parquet.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import lines
import pyarrow as pa
import pyarrow.parquet

from studies.spec import read

STUDY = Path(__file__).parent / "economy.toml"
TABLE = Path(__file__).parent / "results" / "economy-trials.parquet"
METRIC = "target_val/mAP"


def rows(out):
    """Return the trials of the search in order; those without an end, or that diverged, are left out and counted."""
    result, others = [], 0
    for path in out.glob("storage/*/search-*/result.json"):
        record = json.loads(path.read_text())
        if record["outcome"] != "complete":
            others += 1
            continue
        reports = [report["metrics"] for report in record["history"]]
        result.append(
            {
                "name": record["name"],
                **{name: record["config"][name] for name in read(STUDY).space},
                "curve": [metrics[METRIC] for metrics in reports],
                "final": record["metrics"][METRIC],
                "seconds": sum(metrics["train/seconds"] for metrics in reports),
            }
        )
    return sorted(result, key=lambda row: row["name"]), others


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the study's --out")
    parser.add_argument("--to", type=Path, default=TABLE)
    options = parser.parse_args()
    found, others = rows(options.out)
    if not found:
        sys.exit(f"economy_table: the study must have finished trials, but {options.out} holds none; run it first.")
    about = {
        "study": STUDY.read_text(),
        "hardware": lines.hardware(),
        "versions": json.dumps(lines.versions()),
        "date": datetime.date.today().isoformat(),
        "trials_without_a_result": str(others),
    }
    table = pa.Table.from_pylist(found).replace_schema_metadata(about)
    pyarrow.parquet.write_table(table, options.to, compression="zstd")
    size = options.to.stat().st_size
    sys.stdout.write(f"{options.to}: {len(found)} trials, {others} without a result, {size} bytes\n")


if __name__ == "__main__":
    main()
