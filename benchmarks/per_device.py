"""How many trainings a machine takes at once: one on each core, against one on all cores.

    python benchmarks/per_device.py

On a CPU a trial gets one core by default, and as many run at once as there are cores. Here so many processes of one
thread each train an epoch of the embedded pair at the same time; the peer is one process with a thread for each core.
Both are warm, rounds are interleaved, and the ratio is that of epochs an hour. How many trials share a GPU is measured
by every study that asks for it (`--trials-per-gpu auto`), and stands in its record.
"""

import argparse
import contextlib
import multiprocessing
import os
import time

import lines

ROUNDS = 7


def work(threads, rounds, pipe):
    """Train an epoch whenever the parent asks for one."""
    import torch

    import mmfa
    from mmfa.config import profile

    torch.set_num_threads(threads)
    config = profile("embedded").with_overrides({"optim.num_epochs": rounds + 2})  # the last one evaluates more
    with contextlib.closing(mmfa.begin(config, device="cpu").epochs()) as epochs:
        while pipe.recv() == "go":
            pipe.send(next(epochs).epoch)


class Group:
    """Processes that train at the same time."""

    def __init__(self, processes, threads, rounds):
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(processes)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [context.Process(target=work, args=(threads, rounds, theirs)) for _, theirs in pairs]
        for process in self.processes:
            process.start()

    def epoch(self):
        """Have each train an epoch; return the seconds until the last one has."""
        started = time.perf_counter()
        for pipe in self.pipes:
            pipe.send("go")
        for pipe in self.pipes:
            pipe.recv()
        return time.perf_counter() - started

    def end(self):
        """End them."""
        for pipe in self.pipes:
            pipe.send("end")
        for process in self.processes:
            process.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    os.environ.pop("OMP_NUM_THREADS", None)
    many, one = Group(cores, 1, options.rounds), Group(1, cores, options.rounds)
    many.epoch()
    one.epoch()
    found = lines.Pairs([], [])
    for number in range(options.rounds):
        for which, group in ((0, many), (1, one)) if number % 2 == 0 else ((1, one), (0, many)):
            found[which].append(group.epoch() / len(group.pipes))
    many.end()
    one.end()
    name = f"{cores} trainings of one thread each, against one of {cores} threads: seconds an epoch"
    lines.emit([lines.line(name, found, at_least=1.0, cores=cores)], "per_device", options.record)


if __name__ == "__main__":
    main()
