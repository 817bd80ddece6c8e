"""``python -m mmfa prepare``: decode datasets into image stores."""

from __future__ import annotations

import argparse
import sys
import time

from mmfa.commands.shared import add_places, open_dataset
from mmfa.config import TrialConfig, profile

DESCRIPTION = """\
Decode datasets into image stores, once for all trainings.

A store is one Arrow file under --cache-dir that every training maps into memory. All images are opened here, so a
damaged one is found and named now. Trainings would build a missing store themselves; a second call finds it there. A
killed call leaves nothing that could be taken for a store: run it again.

  python -m mmfa prepare --data-root ~/data market1501 dukemtmc-reid
  python -m mmfa prepare embedded-source embedded-target --height 64 --width 32
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="datasets, folder:PATH among them")
    add_places(parser)
    parser.add_argument(
        "--height", type=int, metavar="PIXELS", help="of stored images (default: data.store_height of the profile)"
    )
    parser.add_argument(
        "--width", type=int, metavar="PIXELS", help="of stored images (default: data.store_width of the profile)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code.

    Raises:
        ConfigError: a size that the config would refuse.
        DataError: missing or damaged data.
    """
    from mmfa.data import catalog
    from mmfa.data.pedestrians.domains import DOMAINS

    for name in options.names:
        catalog.check_name(name)
    for name in options.names:
        size = _size(options, profile("embedded" if name in DOMAINS else "paper"))
        started = time.monotonic()
        store = open_dataset(name, options, **size, is_source=False)
        sys.stdout.write(
            f"{name}: {len(store.images):,} images of {size['height']} x {size['width']}, "
            f"{store.path.stat().st_size / 1e6:,.0f} MB, {time.monotonic() - started:.1f} s, "
            f"fingerprint {store.fingerprint}\n  {store.path}\n"
        )
    return 0


def _size(options: argparse.Namespace, base: TrialConfig) -> dict[str, int]:
    given = {f"data.store_{side}": getattr(options, side) for side in ("height", "width")}
    data = base.with_overrides({name: value for name, value in given.items() if value is not None}).data
    return {"height": data.store_height, "width": data.store_width}
