"""``python -m mmfa check``: what lies under a data root, against what was published."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from mmfa.commands.shared import add_places, data_root
from mmfa.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mmfa.data.records import Dataset

DESCRIPTION = """\
Say what lies under a data root and whether it is what was published.

Looks at folders and file names, counts, and joins the attributes; it opens no image (`prepare` does) and writes
nothing. Without names, each of the four benchmarks that is found is checked. A subset is no problem unless
--strict-counts is given, but its differences are listed.

  python -m mmfa check --data-root ~/data
  python -m mmfa check --data-root ~/data --strict-counts market1501 dukemtmc-reid
  python -m mmfa check folder:~/my-cameras

exit codes: 0 all that was found is fine; 1 problems, or nothing was found; 2 bad input.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="datasets, folder:PATH among them (default: all four)")
    add_places(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code.

    Raises:
        ConfigError: no data root for a benchmark, or a data root that is none.
        DataError: a name that is no dataset's.
    """
    from mmfa.data import catalog

    root = data_root(options)
    for name in options.names:
        catalog.check_name(name)
    if root is None and (not options.names or any(map(catalog.needs_data_root, options.names))):
        raise ConfigError("Benchmarks are looked for in a data root, but none was given; name it with --data-root DIR.")
    names = options.names
    if not names:
        assert root is not None
        names = [name for name in catalog.BENCHMARKS if catalog.is_present(name, root)]
        absent = [name for name in catalog.BENCHMARKS if name not in names]
        sys.stdout.write(f"not there: {', '.join(absent)}\n" if absent else "")
        if not names:
            sys.stdout.write(f"{catalog.nothing_found(root)}\n")
    counts = logging.getLogger("mmfa.data.counts")
    level = counts.level
    counts.setLevel(logging.ERROR)  # the table says it
    try:
        fine = [_check(name, options) for name in names]
    finally:
        counts.setLevel(level)
    return 0 if fine and all(fine) else 1


def _check(name: str, options: argparse.Namespace) -> bool:
    from mmfa.data import catalog

    try:
        dataset = catalog.load(
            name,
            data_root=data_root(options),
            cache_dir=options.cache_dir or catalog.default_cache_dir(),
            attributes_required=False,
        )
        problems, remarks = _problems(dataset, strict_counts=options.strict_counts), _remarks(name, dataset)
    except DataError as error:
        sys.stdout.write(f"\n{name}\n  PROBLEM: {error}\n")
        return False
    _print(name, dataset, problems, remarks)
    return not problems


def _print(name: str, dataset: Dataset, problems: list[str], remarks: list[str]) -> None:
    lines = ["", f"{name}  {dataset.root}"]
    for what, number in dataset.counts.items():
        published = dataset.published.get(what)
        beside = "" if published is None else "as published" if published == number else f"published: {published:,}"
        lines.append(f"  {what:22} {number:8,}  {beside}".rstrip())
    lines += [f"  {remark}" for remark in remarks]
    lines += [f"  PROBLEM: {problem}" for problem in problems] or ["  fine"]
    sys.stdout.write("\n".join(lines) + "\n")


def _problems(dataset: Dataset, *, strict_counts: bool) -> list[str]:
    from mmfa.data import counts

    odd = counts.differences(dataset.counts, dataset.published) if strict_counts else []
    return odd + _unannotated(dataset)


def _unannotated(dataset: Dataset) -> list[str]:
    """Return a line if training identities, which a source would need, are missing in the attributes."""
    import numpy as np

    from mmfa.data.records import name_pids

    attributes = dataset.domain.attributes
    if attributes is None:
        return []
    missing = np.setdiff1d(dataset.domain.train_pids, attributes.pids)
    return [f"{dataset.attribute_file} lacks {name_pids(missing)} of training"] if missing.size else []


def _remarks(name: str, dataset: Dataset) -> list[str]:
    from mmfa.data import catalog
    from mmfa.data.replicas import NOTICE

    remarks = []
    if (dataset.root / NOTICE).is_file():
        remarks.append(f"a synthetic replica ({NOTICE}): no figure measured on it says anything about the method")
    if dataset.num_junk:
        remarks.append(f"{dataset.num_junk:,} junk detections (pid -1) are left out")
    if not dataset.domain.labelled:
        remarks.append("unlabelled: fit for a target without verdict on accuracy, and for nothing else")
    elif name in catalog.TWO_CAMERA:
        remarks.append("ten splits (data.split=0 to 9); too small to hold identities out from")
    return remarks + ([_attributes(dataset)] if dataset.domain.labelled else [])


def _attributes(dataset: Dataset) -> str:
    import numpy as np

    attributes = dataset.domain.attributes
    if attributes is None:
        return "no attributes: as a source it trains without L_attr and L_AAL"
    people = np.unique(dataset.domain.pids[dataset.domain.pids > 0])
    joined = int(np.isin(people, attributes.pids).sum())
    return (
        f"attributes: {len(attributes.fields)} fields from {dataset.attribute_file}, "
        f"joined to {joined:,} of {len(people):,} identities, {int((attributes.codes == 0).sum()):,} codes missing"
    )
