"""``python -m mmfa evaluate``: an exported model on any dataset, by that dataset's protocol."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfa.commands.shared import add_places, open_dataset
from mmfa.errors import MmfaError

if TYPE_CHECKING:
    from mmfa.config import TrialConfig
    from mmfa.data.records import Ints
    from mmfa.data.store import Store
    from mmfa.norm import DomainRole
    from mmfa.ranking import RetrievalReport

    Directions = dict[str, tuple[Ints, Ints]]

DESCRIPTION = """\
Test an exported model on any dataset, by that dataset's protocol.

Market-1501, DukeMTMC-reID and folders: single query, the gallery without images of the query's identity by its own
camera. VIPeR and PRID 2011: all ten splits, with mean, standard deviation (sd) and the standard error of Nadeau and
Bengio (se), which allows for splits that overlap; VIPeR in both directions and their mean. A model that was adapted
to VIPeR or PRID 2011 is tested on the split it was adapted on alone: the people of the others were in its training.

  python -m mmfa evaluate first/export --dataset embedded-target
  python -m mmfa evaluate m2d/export --dataset viper --data-root ~/data --json viper.json
"""

METRICS = ("rank1", "rank5", "rank10", "rank20", "mAP", "mAP_trapezoid", "mINP", "mAP_cosine")
"""Keys of the JSON, as fractions."""
_SHOWN_OF_SPLITS = ("rank1", "rank5", "rank10", "mAP")
"""Columns of the table of ten splits, in percent; the other table has all."""
OWN_SOURCE = "the model's own source"
_HALVES = 1.0
"""Tested over training identities in each of the ten splits."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("export", type=Path, metavar="EXPORT", help="folder that a training exported its model to")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="what to test on; folder:PATH too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, as fractions")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda or cuda:N")
    add_places(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code.

    Raises:
        MmfaError: no exported model, missing or damaged data, an unlabelled dataset, or a file that cannot be written.
    """
    import numpy as np

    from mmfa.checkpoint import load, load_model
    from mmfa.data import catalog
    from mmfa.data.protocols import directions
    from mmfa.evaluate import attribute_transfer, embed, retrieve
    from mmfa.hardware import Hardware

    catalog.check_name(options.dataset)
    model, config = load_model(options.export)
    hardware = Hardware.choose(options.device, config.run)
    size = {"height": config.data.store_height, "width": config.data.store_width}
    store = open_dataset(options.dataset, options, **size, is_source=False)
    mode, splits = _mode(config, options.dataset, is_split=store.domain.name in catalog.TWO_CAMERA)
    domains = {split: store.domain.with_split(split) for split in splits}
    tested = {split: directions(domain) for split, domain in domains.items()}
    model.to(memory_format=hardware.memory_format).to(hardware.device)
    role: DomainRole = "source" if mode == OWN_SOURCE else "target"
    rows = np.unique(np.concatenate(_all_rows(tested)))
    height, width = config.data.image_height, config.data.image_width
    features_ND = embed(model, store.images, rows, height=height, width=width, hardware=hardware, domain=role)

    def rank_rows(query: Ints, gallery: Ints) -> RetrievalReport:
        query_QD, gallery_GD = (features_ND[np.searchsorted(rows, some)] for some in (query, gallery))
        return retrieve(query_QD, gallery_GD, store.domain, query, gallery, with_cosine=True)

    reports = {
        split: {name: rank_rows(query, gallery) for name, (query, gallery) in rows.items()}
        for split, rows in tested.items()
    }
    names = load(options.export).state["attribute_names"]
    attributes = attribute_transfer(
        model, features_ND, rows, store.domain, attribute_names=names, age=config.data.age, role=role
    )
    result = _result(options, mode, store, reports) | {"attributes": attributes}
    sys.stdout.write(_table(result))
    if options.json:
        try:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise MmfaError(f"--json must name a file that can be written, but got {error}; name another.") from error
    return 0


def _mode(config: TrialConfig, dataset: str, *, is_split: bool) -> tuple[str, list[int]]:
    """Return what the model has seen of the dataset, in words, and the splits on which it can be tested."""
    from mmfa.data import catalog
    from mmfa.data.splits import NUM_SPLITS

    data, name = config.data, catalog.slug(dataset)
    own = [data.split] if is_split else [0]
    if name == catalog.slug(data.source):
        return OWN_SOURCE, own
    if data.use_target and name == catalog.slug(data.target):
        return "adapted on this dataset's unlabelled training images", own
    return "direct (no adaptation to this dataset)", list(range(NUM_SPLITS)) if is_split else [0]


def _all_rows(tested: dict[int, Directions]) -> list[Ints]:
    return [rows for by_name in tested.values() for pair in by_name.values() for rows in pair]


def _figures(report: RetrievalReport) -> dict[str, float]:
    ranks = {name: report.rank(int(name[4:])) for name in METRICS if name.startswith("rank")}
    assert report.mAP_cosine is not None
    means = {"mAP": report.mAP, "mAP_trapezoid": report.mAP_trapezoid, "mINP": report.mINP}
    return ranks | means | {"mAP_cosine": report.mAP_cosine}


def _result(
    options: argparse.Namespace, mode: str, store: Store, reports: dict[int, dict[str, RetrievalReport]]
) -> dict[str, Any]:
    rows = []
    for split, by_direction in reports.items():
        found = {direction: _figures(report) for direction, report in by_direction.items()}
        if len(found) > 1:
            found["mean"] = {name: statistics.fmean(each[name] for each in found.values()) for name in METRICS}
        rows += [{"split": split, "direction": direction, **figures} for direction, figures in found.items()]
    first = next(iter(reports.values()))
    return {
        "export": str(options.export),
        "dataset": options.dataset,
        "data_fingerprint": store.fingerprint,
        "mode": mode,
        "num_queries": {direction: report.num_queries for direction, report in first.items()},
        "num_skipped": {direction: report.num_skipped for direction, report in first.items()},
        "splits": rows,
        "summary": {direction: _summary([row for row in rows if row["direction"] == direction])
                    for direction in dict.fromkeys(row["direction"] for row in rows)},
    }  # fmt: skip


def _summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean, and with two splits or more sd and se, of each metric."""
    from mmfa.data.protocols import overlapping_error

    summary = {}
    for name in METRICS:
        values = [row[name] for row in rows]
        summary[name] = {"mean": statistics.fmean(values)}
        if len(values) > 1:
            summary[name] |= {
                "sd": statistics.stdev(values),
                "se": overlapping_error(values, test_share=_HALVES),
            }
    return summary


def _table(result: dict[str, Any]) -> str:
    num_splits = len({row["split"] for row in result["splits"]})
    queries, skipped = (sum(result[key].values()) for key in ("num_queries", "num_skipped"))
    lines = [f"{result['dataset']}: {result['mode']}", f"queries {queries:,}, skipped without a positive {skipped:,}"]
    if num_splits > 1:
        lines[-1] += f" in each split; mean of {num_splits} splits ± sd (se by Nadeau and Bengio)"
    width = 20 if num_splits > 1 else 14
    shown = _SHOWN_OF_SPLITS if num_splits > 1 else METRICS
    lines.append(f"{'percent':10}" + "".join(f"{name:>{width}}" for name in shown))
    for direction, summary in result["summary"].items():
        label = direction.replace("_to_", " → ").upper() if "_to_" in direction else direction
        lines.append(f"{label:10}" + "".join(f"{_percent(summary[name]):>{width}}" for name in shown))
    if found := result["attributes"]:
        lines.append(
            f"attributes that both annotate: accuracy {100 * found['attribute_accuracy']:.1f}, "
            f"balanced {100 * found['attribute_balanced_accuracy']:.1f}"
        )
    return "\n".join(lines) + "\n"


def _percent(figure: dict[str, float]) -> str:
    text = f"{100 * figure['mean']:.1f}"
    return text + (f" ± {100 * figure['sd']:.1f} ({100 * figure['se']:.1f})" if "sd" in figure else "")
