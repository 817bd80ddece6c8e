"""One of the processes that render a domain.

Arguments: folder, name, the three numbers of the population, shard, number of shards. Writes the number of pictures
taken since the last line to its standard output, and ends when nobody reads it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmfa.data.pedestrians.domains import Population
from mmfa.data.pedestrians.render import plan, render_shots

REPORT_EVERY = 20


def main(arguments: Sequence[str]) -> None:
    """Render every ``num_shards``-th picture."""
    folder, name, *numbers = arguments
    num_train, num_held_out, num_test, shard, num_shards = map(int, numbers)
    population = Population(num_train=num_train, num_held_out=num_held_out, num_test=num_test)
    done = 0
    for done, _ in enumerate(render_shots(Path(folder), name, plan(name, population)[shard::num_shards]), start=1):
        if done % REPORT_EVERY == 0:
            os.write(sys.stdout.fileno(), f"{REPORT_EVERY}\n".encode())  # one write: lines of workers never mix
    os.write(sys.stdout.fileno(), f"{done % REPORT_EVERY}\n".encode())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BrokenPipeError:  # whoever started this is gone
        sys.exit(1)
