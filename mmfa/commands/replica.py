"""``python -m mmfa replica``: a synthetic dataset in a benchmark's layout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmfa.commands.shared import Progress
from mmfa.errors import ConfigError

DESCRIPTION = """\
Write a synthetic dataset in a benchmark's layout, with its published counts.

Small images of coloured blocks under the real file names, with cameras, junk, distractors and attribute files: enough
to try every command at full scale where the real images cannot be had. Nobody is on them, and no figure measured on
them says anything about the method; a file SYNTHETIC.txt says so beside them.

  python -m mmfa replica market1501 --data-root ./replicas
  python -m mmfa check --data-root ./replicas --strict-counts
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("name", metavar="NAME", help="market1501, dukemtmc-reid, viper or prid2011")
    parser.add_argument(
        "--data-root", type=Path, required=True, metavar="DIR", help="where to write; must not hold the dataset already"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of clothes and attributes (default: 0)")
    parser.add_argument("--height", type=int, default=32, metavar="PIXELS", help="of the images (default: 32)")
    parser.add_argument("--width", type=int, default=16, metavar="PIXELS", help="of the images (default: 16)")


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code.

    Raises:
        ConfigError: a size or a seed out of range.
        DataError: an unknown name, or a dataset that is there already.
    """
    from mmfa.data.replicas import write_replica

    for name, value in (("height", options.height), ("width", options.width)):
        if value < 8 or value % 2:
            raise ConfigError(f"--{name} must be an even number of pixels from 8, but got {value}.")
    if options.seed < 0:
        raise ConfigError(f"--seed must be 0 or more, but got {options.seed}.")
    root = write_replica(
        options.name,
        options.data_root.expanduser(),
        seed=options.seed,
        height=options.height,
        width=options.width,
        progress=Progress(),
    )
    sys.stdout.write(f"{root}: a SYNTHETIC replica of {options.name}; nobody is on these images\n")
    return 0
