"""What the benchmarks share: rounds in which ours and a peer take turns, and the lines that say what was found.

    import lines

    found = lines.pairs(ours, peer, n=7)
    result = [lines.line("what was done", found, at_most=1.05)]
    lines.emit(result, "step", record=options.record)

A line is a dict: name, ours and peer (medians), ratio (the median of the rounds' ratios), bar, sense (`<=` or `>=`),
met, unit, n, spread (the smallest and the largest ratio), whatever else was passed, load, hardware, versions, date.
Needs only what `mmfa` needs, and works in a checkout in which nothing is installed.
"""

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))  # after what is installed

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow", "numpy", "scipy", "scikit-learn")


class Pairs(NamedTuple):
    """Seconds of the rounds, ours and the peer's side by side."""

    ours: list[float]
    peer: list[float]


def seconds(call):
    """Return how long a call takes, with what it left a GPU to do."""
    _wait()
    started = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - started


def pairs(ours, peer, n=7, *, warmups=1):
    """Time two functions in turns, n times each, the one that goes first changing; untimed warm-ups before."""
    for _ in range(warmups):
        ours()
        peer()
    found = Pairs([], [])
    for index in range(n):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            found[which].append(seconds((ours, peer)[which]))
    return found


def line(name, found, *, at_most=None, at_least=None, unit="s", work=None, **more):
    """Return one figure.

    Args:
        name: what was measured, against what.
        found: seconds of the rounds (or of anything that is better when smaller), in pairs.
        at_most: the bar of ours / peer; without a bar this ratio is given too.
        at_least: the bar of how many times faster ours is, peer / ours.
        unit: of ours and peer.
        work: what one call does, such as images; ours and peer are then work per second.
        more: further keys of the line.
    """
    faster = at_least is not None
    ratios = [p / o if faster else o / p for o, p in zip(found.ours, found.peer, strict=True)]
    ours, peer = (statistics.median(times) if work is None else work / statistics.median(times) for times in found)
    return figure(
        name,
        ours=ours,
        peer=peer,
        ratio=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        n=len(ratios),
        at_most=at_most,
        at_least=at_least,
        unit=unit,
        **more,
    )


def figure(name, *, ours, peer, ratio, n, spread=None, at_most=None, at_least=None, unit="s", **more):
    """Return a line whose ratio was found otherwise than by pairs; None is allowed where there is no such number."""
    bar = at_most if at_least is None else at_least
    result = {"name": name, "ours": rounded(ours), "peer": rounded(peer), "ratio": rounded(ratio)}
    if bar is not None:
        met = ratio <= bar if at_least is None else ratio >= bar
        result |= {"bar": bar, "sense": "<=" if at_least is None else ">=", "met": bool(met)}
    result |= {"unit": unit, "n": n, "spread": None if spread is None else [rounded(value) for value in spread]}
    return result | more | where()


def emit(lines, name, record=False):
    """Print lines as JSON, and write them to benchmarks/results/<name>-<date>.json where they are to be kept."""
    sys.stdout.writelines(json.dumps(one) + "\n" for one in lines)
    sys.stdout.flush()
    if record:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / f"{name}-{datetime.date.today().isoformat()}.json").write_text(json.dumps(lines, indent=1) + "\n")


def one_core():
    """Confine this process to one core, and torch to one thread: what a trial on a CPU has."""
    confine(1)
    torch.set_num_threads(1)


def confine(cores):
    """Confine this process to so many cores, or to all where there are no more; return how many it has."""
    hardware()  # remembered: afterwards it would tell of these
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def limit(name, found, most, *, unit="s", **more):
    """Return the line of rounds that have a limit and no peer."""
    median = statistics.median(found)
    spread = (min(found) / most, max(found) / most)
    return figure(
        name, ours=median, peer=most, ratio=median / most, spread=spread, at_most=1.0, unit=unit, n=len(found), **more
    )


def where():
    """Return the load now, hardware, versions and date."""
    return {
        "load": round(os.getloadavg()[0], 1),
        "hardware": hardware(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }


@functools.cache
def hardware():
    """Return this machine in a line: processor, cores, GPUs or that there is none."""
    info = Path("/proc/cpuinfo")
    rows = info.read_text().splitlines() if info.exists() else []
    names = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join([f"{names[0] if names else platform.machine()}, {cores} cores", *(gpus or ["no GPU"])])


def versions():
    """Return the versions of what is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def rounded(value):
    """Return a number with four significant digits."""
    return None if value is None else float(f"{value:.4g}")


def _wait():
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
