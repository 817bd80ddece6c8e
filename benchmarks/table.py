"""One table of what was measured: ours, the peer or the limit, their ratio, the bar, and whether it is met.

    python benchmarks/table.py                            # runs every program, in about an hour; also: make bench
    python benchmarks/table.py ranking losses             # some of them
    python benchmarks/table.py --record                   # and keeps what they find under results/
    python benchmarks/table.py --recorded [--markdown]    # nothing runs: the newest of each line of results/*.json
    python benchmarks/table.py --recorded --bars          # of these what has a bar

Where a full program takes longer than that it runs with the arguments below, and n says how much was measured; what is
shortened so is kept only from a full run of its own: `python benchmarks/scale.py --record`. A bar
is that of the ratio: `≤` of ours by the peer's or the limit, `≥` of how many times faster ours is. Without a bar a
line stands beside the others for comparison. Programs of which no line comes are named below the table.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import rich.box
import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
PROGRAMS = {
    "ranking": [],
    "losses": [],
    "step": [],
    "feeding": [],
    "embedding": [],
    "search_gallery": [],
    "startup": [],
    "per_device": [],
    "overhead": [],
    "prepare": [],
    "scale": ["--trials", "1000"],
    "economy": [],
    "paper_trial": ["--device", "cpu", "--epochs", "1", "--steps", "4"],
}
"""What is run, in this order, and with what."""
ON_GPU = {name: ["--device", "cuda"] for name in ("ranking", "losses", "step", "feeding", "embedding", "paper_trial")}
"""What is run besides where there is a GPU."""
SHORTENED = {"scale"}
"""Of these, what runs here is not what is recorded."""
REQUIRED = {"name", "ours", "unit", "n", "hardware", "versions", "date"}
"""What every line has."""
SIGNS = {"<=": "≤", ">=": "≥"}
COLUMNS = ("what", "ours", "peer or limit", "ratio", "bar", "met", "n")


def read(text):
    """Return the lines in what a program printed: JSON objects, one a line."""
    return [normal(json.loads(line)) for line in text.splitlines() if line.startswith("{")]


def normal(line):
    """Return a line in which a limit stands where a peer does.

    Where there is no peer the bar is the limit itself, and the ratio is that of ours to it.

    Raises:
        ValueError: what is no line of a benchmark.
    """
    if missing := REQUIRED - set(line):
        raise ValueError(f"a line has {', '.join(sorted(REQUIRED))}, but this one lacks {', '.join(missing)}: {line}")
    if line.get("peer") is None and "bar" in line:
        line = line | {"peer": line["bar"], "bar": 1.0}
    return {"peer": None, "ratio": None, "sense": "<=", **line}


def recorded(folder):
    """Return the newest of each line under a folder of results, in the order of the programs."""
    found = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem[-10:]):  # ends with the date
        content = json.loads(path.read_text())
        for line in content if isinstance(content, list) else [content]:
            key = (re.sub(r"-\d{4}-\d\d-\d\d$", "", path.stem), line["name"])
            found.pop(key, None)
            found[key] = normal(line)
    order = list(PROGRAMS)

    def place(key):
        program = next((name for name in order if key[0].replace("-", "_").startswith(name)), "")
        return order.index(program) if program else len(order)

    return [found[key] for key in sorted(found, key=place)]


def run(program, arguments):
    """Run a program; return its lines, none where it failed."""
    sys.stderr.write(f"{program} {' '.join(arguments)}\n")
    command = [sys.executable, str(HERE / f"{program}.py"), *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    if result.returncode:
        sys.stderr.write(f"{program} failed with exit code {result.returncode}\n")
    return read(result.stdout)


def shown(value):
    """Return a number as a person reads it."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cells(line):
    """Return what a row of the table says."""
    ours, peer = (shown(line[key]) + (f" {line['unit']}" if line[key] is not None else "") for key in ("ours", "peer"))
    bar = f"{SIGNS[line['sense']]} {line['bar']:g}" if "bar" in line else "–"
    met = {True: "yes", False: "no", None: "–"}[line.get("met")]
    return line["name"], ours, peer, shown(line["ratio"]), bar, met, shown(line["n"])


def where(line):
    """Return on what a line was measured."""
    versions = line["versions"]
    return f"{line['hardware']}; torch {versions['torch']}, numpy {versions['numpy']}; {line['date']}"


def blocks(found):
    """Return lines by where they were measured."""
    result = {}
    for line in found:
        result.setdefault(line["hardware"].removesuffix(", no GPU"), []).append(line)
    return result


def markdown(found):
    """Return the tables as Markdown."""
    parts = []
    for block in blocks(found).values():
        rows = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, block)]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        places = "\n".join(sorted({where(line) for line in block}))
        parts.append(f"{table}\n\n{places}\n")
    return "\n".join(parts)


def draw(found, console):
    """Print the tables."""
    for block in blocks(found).values():
        table = Table(box=rich.box.SIMPLE, caption="\n".join(sorted({where(line) for line in block})))
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "what" else "right", overflow="fold")
        for line in block:
            style = {True: "", False: "bold red", None: "dim"}[line.get("met")]
            table.add_row(*cells(line), style=style)
        console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--recorded", action="store_true", help="show results/*.json; run nothing")
    parser.add_argument("--bars", action="store_true", help="leave out lines without a bar")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--record", action="store_true", help="have each program write results/<program>-<date>.json")
    options = parser.parse_args()
    chosen = options.programs or list(PROGRAMS)
    if unknown := set(chosen) - set(PROGRAMS):
        parser.error(f"a program is one of {', '.join(PROGRAMS)}, but got {', '.join(sorted(unknown))}")
    silent = []
    if options.recorded:
        found = recorded(HERE / "results")
    else:
        wanted = [(name, PROGRAMS[name]) for name in chosen]
        wanted += [(name, ON_GPU[name]) for name in chosen if name in ON_GPU and torch.cuda.is_available()]
        kept = {name: ["--record"] if options.record and name not in SHORTENED else [] for name in chosen}
        runs = [(" ".join([name, *given]), run(name, [*given, *kept[name]])) for name, given in wanted]
        found = [line for _, one in runs for line in one]
        silent = [name for name, one in runs if not one]
    if options.bars:
        found = [line for line in found if "bar" in line]
    if options.markdown:
        sys.stdout.write(markdown(found))
    else:
        draw(found, Console(width=None if sys.stdout.isatty() else 160))
    if silent:
        sys.exit(f"no line came of: {', '.join(silent)}")


if __name__ == "__main__":
    main()
