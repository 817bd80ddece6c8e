"""How long it takes until something happens: help, a plan, the first step of a worker's second trial; and memory.

    python benchmarks/startup.py

`--help` and `--dry-run` are timed as processes. The second trial is timed twice. In one process: stores are open and
torch is warm, as in a worker that has trained before, and the time runs from the config to the end of the first step
(the embedded pair's network) or to its begin (ResNet-50 and stores of Market-1501's size, where a step on a CPU takes
seconds; it starts from a file of weights, as the paper's does from ImageNet's, or at random). In a study: from the end
of a trial to the moment at which the next one on the same worker begins its first epoch, from the records of a real
one, Ray, ledger and checkpoints included.

Memory is private memory, not resident size: four processes open one store of Market-1501's size, read all of it and
hold it at the same time.
"""

import argparse
import collections
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lines
import torch
import torchvision.models
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from mmfa.config import profile
from mmfa.data import catalog, replicas, store
from mmfa.training import Training

ANSWER, FIRST_STEP, MEMORY = 1.0, 0.3, 100.0
"""Bars: seconds, seconds, MB."""
COMMANDS = {"--help": ["--help"], "--dry-run": ["--study", "lambdas", "--dry-run"]}
STUDY = """
question = "How long until the next trial begins?"
trials = 10
start_up = 10
[fixed]
"optim.num_epochs" = 1
"optim.warmup_epochs" = 0
"data.image_height" = 32
"data.image_width" = 16
[space."loss.lambda_attr"]
low = 0.01
high = 30.0
log = true
"""


class ReachedError(Exception):
    """Raised where a training is to end."""


def answers(n):
    """Return the lines of help and plan."""
    result = []
    for name, arguments in COMMANDS.items():
        command = [sys.executable, "-m", "tune.run_study", *arguments]
        root = Path(__file__).parent.parent
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=root)
        took = []
        for _ in range(n):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=root)
            took.append(time.perf_counter() - started)
        result.append(lines.limit(f"mmfa-study {name}, against the limit", took, ANSWER))
    return result


def first_step(config, stores, *, ends):
    """Return the seconds from a config to its first step: to its end, or to its begin."""

    def reached(*_):
        raise ReachedError

    hook = register_optimizer_step_post_hook(reached) if ends else register_module_forward_pre_hook(reached)
    started = time.perf_counter()
    try:
        training = Training(config, source=stores[0], target=stores[1], device="cpu")
        next(training.epochs())
    except ReachedError:
        return time.perf_counter() - started
    finally:
        hook.remove()
    raise AssertionError("a training takes a step")


def second_trials(config, stores, n, *, ends):
    """Return the seconds of the trials that follow a worker's first."""
    points = [config.with_overrides({"loss.lambda_attr": 0.1 * (1 + index)}) for index in range(n + 1)]
    return [first_step(point, stores, ends=ends) for point in points][1:]


def embedded_stores(cache):
    """Return the stores of the embedded pair, rendered where they are not there yet."""
    data = profile("embedded").data
    size = {"height": data.store_height, "width": data.store_width}
    datasets = [catalog.load(name, data_root=None, cache_dir=cache) for name in (data.source, data.target)]
    return [store.open_store(store.build(dataset, cache_dir=cache, **size)) for dataset in datasets]


def market_store(folder):
    """Return the path of a store of Market-1501's size, of images that are small on the disk."""
    replicas.write_replica("market1501", folder / "data")
    dataset = catalog.load("market1501", data_root=folder / "data", cache_dir=folder / "cache")
    return store.build(dataset, cache_dir=folder / "cache", height=128, width=64)


def resnets(path, weights, n):
    """Return the lines of a ResNet-50 at Market-1501's size, from a file of weights and at random."""
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), weights)  # what is in it costs nothing
    opened = [store.open_store(path)] * 2
    found = []
    for start, told in ((str(weights), "of given weights"), ("none", "from scratch")):
        names = {"data.source": "market1501", "data.target": "market1501", "model.weights": start}
        took = second_trials(profile("paper").with_overrides(names), opened, n, ends=False)
        what = f"config to the begin of the first step, warm worker, ResNet-50 {told}, Market-1501's size"
        found.append(lines.limit(what, took, FIRST_STEP))
    return found


def private():
    """Return the private memory of this process in MB."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) * 1024 / 1e6


def reader(path, all_read, found):
    """Open a store and read all of it; put private memory before, and while all others hold it too."""
    before = private()
    opened = store.open_store(path)
    total = sum(int(opened.images[at : at + 256].sum()) for at in range(0, len(opened.images), 256))
    all_read.wait()
    found.put((before, private(), total))
    all_read.wait()


def memory(path, processes=4):
    """Return the line of what a store takes of each process that has it open."""
    context = multiprocessing.get_context("spawn")
    all_read, found = context.Barrier(processes), context.Queue()
    readers = [context.Process(target=reader, args=(path, all_read, found)) for _ in range(processes)]
    for one in readers:
        one.start()
    seen = [found.get(timeout=300) for _ in readers]
    for one in readers:
        one.join()
    more = {"process_MB": [round(after) for _, after, _ in seen], "store_MB": round(path.stat().st_size / 1e6)}
    taken = [after - before for before, after, _ in seen]
    return lines.limit("private memory that an open store of Market-1501's size takes of each of four processes", taken,
                   MEMORY, unit="MB", **more)  # fmt: skip


def in_a_study(folder):
    """Return the line of the time between two trials of a worker, from a study's records."""
    path = folder / "startup.toml"
    path.write_text(STUDY)
    command = [sys.executable, "-m", "tune.run_study", "--study", str(path), "--out", str(folder), "--quick"]
    subprocess.run([*command, "--promote", "never"], check=True, stdout=sys.stderr)
    workers = collections.defaultdict(list)
    for result in folder.glob("storage/*/*/result.json"):
        record = json.loads(result.read_text())
        first = record["history"][0]
        workers[record["pid"]].append((first["ended_at"] - first["metrics"]["train/seconds"], record["ended_at"]))
    found = []
    for trials in workers.values():
        trials.sort()
        found += [begun - ended for (_, ended), (begun, _) in itertools.pairwise(trials)]
    return lines.limit("end of a trial to the next one's first epoch, in a study, against the limit", found, FIRST_STEP)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    found = answers(options.rounds)
    torch.set_num_threads(1)
    took = second_trials(profile("embedded"), embedded_stores(catalog.default_cache_dir()), options.rounds, ends=True)
    found.append(lines.limit("config to the end of the first step, warm worker, embedded pair", took, FIRST_STEP))
    with tempfile.TemporaryDirectory() as name:
        path = market_store(Path(name))
        found += resnets(path, Path(name) / "resnet50.pth", options.rounds)
        found.append(memory(path))
        found.append(in_a_study(Path(name)))
    lines.emit(found, "startup", record=options.record)


if __name__ == "__main__":
    main()
