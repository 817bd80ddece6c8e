"""``python -m mmfa train``: one training from a config, without Ray."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfa.commands.shared import add_places, open_dataset, setting
from mmfa.config import PROFILES, TrialConfig, profile
from mmfa.errors import ConfigError, MmfaError

if TYPE_CHECKING:
    from mmfa.data.store import Store
    from mmfa.reports import EpochReport
    from mmfa.trace import Trace
    from mmfa.training import Training

DESCRIPTION = """\
Train once from a config: for a notebook, a debugger or a first look.

Prints one line per epoch. --out gets checkpoints/ (after every epoch), export/ (the model for `evaluate`) and
result.json (config, data, all metrics). Stop it with Ctrl-C or a kill: the same command goes on after the last
finished epoch, bit-identically on the CPU. Many trainings that answer a question are a study: see mmfa-study.

  python -m mmfa train --out first
  python -m mmfa train --out m2d --data-root ~/data --source market1501 --target dukemtmc-reid
  python -m mmfa train --out ours --data-root ~/data --source market1501 --target folder:~/frames
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results of this one training")
    parser.add_argument(
        "--profile", choices=sorted(PROFILES), help="recipe (default: paper with --data-root, else embedded)"
    )
    parser.add_argument("--source", metavar="NAME", help="labelled dataset (default: the profile's)")
    parser.add_argument("--target", metavar="NAME", help="dataset whose labels only evaluation reads, or unlabelled")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the training (default: 0); sets run.seed")
    parser.add_argument(
        "--weights",
        metavar="FILE|imagenet|none",
        help="the backbone's start: a .pth file, torchvision's ImageNet weights, or random; sets model.weights",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any config field, e.g. optim.num_epochs=6"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument(
        "--torch-trace",
        type=Path,
        metavar="DIR",
        help="profile the first epoch: DIR gets torch's trace, its operations, and the seconds of each part of a step",
    )
    add_places(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code.

    Raises:
        MmfaError: a config or data that does not hold, a folder of another training, or a divergence.
    """
    from mmfa.training import Training

    config = _config(options)
    _check_names(config)
    source, target = _stores(config, options)
    training = Training(config, source=source, target=target, device=options.device, trace=_trace(options))
    _say_what_is_off(training, target)
    try:
        _resume(training, options.out / "checkpoints")
        for report in training.epochs():
            sys.stdout.write(_line(report) + "\n")
            if training.trace is not None:
                sys.stdout.write(training.trace.told())
            sys.stdout.flush()
            training.save(options.out / "checkpoints")
        metrics = _test_metrics(training) if target.domain.labelled else {}
        training.export(options.out / "export")
        _write(options.out / "result.json", _result(training, metrics))
    except OSError as error:
        raise MmfaError(
            f"--out must be a folder that can be written, but {options.out} is not ({error}); choose another one."
        ) from error
    _say_result(options.out, metrics)
    return 0


def _trace(options: argparse.Namespace) -> Trace | None:
    from mmfa.trace import Trace

    if options.torch_trace is None:
        return None
    try:
        options.torch_trace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--torch-trace must name a folder that can be written, but {options.torch_trace} is none ({error}); "
            "choose another one."
        ) from error
    return Trace(options.torch_trace)


def _config(options: argparse.Namespace) -> TrialConfig:
    chosen = options.profile or ("paper" if options.data_root else "embedded")
    given = {
        "data.source": options.source,
        "data.target": options.target,
        "run.seed": options.seed,
        "model.weights": options.weights,
    }
    settings = dict(setting(text) for text in options.set)
    if doubled := [name for name, value in given.items() if value is not None and name in settings]:
        raise ConfigError(f"Each field is set once, but {doubled[0]} is given twice; drop its option or its --set.")
    return profile(chosen).with_overrides(
        {name: value for name, value in given.items() if value is not None} | settings
    )


def _check_names(config: TrialConfig) -> None:
    from mmfa.data import catalog

    for name in (config.data.source, config.data.target):
        catalog.check_name(name)


def _stores(config: TrialConfig, options: argparse.Namespace) -> tuple[Store, Store]:
    size = {"height": config.data.store_height, "width": config.data.store_width}
    source, target = (
        open_dataset(name, options, **size, is_source=is_source)
        for name, is_source in ((config.data.source, True), (config.data.target, False))
    )
    return source, target


def _say_what_is_off(training: Training, target: Store) -> None:
    config = training.config
    if not training.attribute_names:
        sys.stdout.write(f"{config.data.source} has no attributes: L_attr and L_AAL are off.\n")
    if not target.domain.labelled:
        sys.stdout.write(f"{config.data.target} is unlabelled: there will be no accuracy on it.\n")


def _resume(training: Training, folder: Path) -> None:
    from mmfa.checkpoint import newest_intact

    saved = newest_intact([folder], on_corrupt=lambda path, reason: None)  # it logs the reason itself
    if saved is not None:
        training.resume(saved)
        done, total = len(training.history), training.config.optim.num_epochs
        sys.stdout.write(f"going on after epoch {done} of {total}\n")


def _line(report: EpochReport) -> str:
    losses = " ".join(f"{name} {value:.4g}" for name, value in report.losses.items())
    retrieval = "".join(
        f"  {split} mAP {100 * found.mAP:.1f} rank-1 {100 * found.rank(1):.1f}"
        for split, found in report.retrieval.items()
    )
    speed = f"{report.images_per_second:,.0f} images/s"
    return f"epoch {report.epoch:2}/{report.num_epochs}  {losses}{retrieval}  {report.seconds:.1f} s  {speed}"


def _test_metrics(training: Training) -> dict[str, float]:
    return training.test().metrics()


def _result(training: Training, metrics: dict[str, float]) -> dict[str, Any]:
    import torch

    import mmfa

    return {
        "config": json.loads(training.config.to_json()),
        "config_fingerprint": training.config.fingerprint(),
        "data_fingerprints": {"source": training.source.fingerprint, "target": training.target.fingerprint},
        "num_train_ids": len(training.pids),
        "attributes": list(training.attribute_names),
        "hardware": {
            "device": str(training.hardware.device),
            "bf16": training.hardware.bf16,
            "channels_last": training.hardware.channels_last,
            "backbone": training.backbone_runs,
        },
        "versions": {"mmfa": mmfa.__version__, "torch": torch.__version__},
        "epochs": [report.metrics() for report in training.history],
        "metrics": metrics,
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    """Write JSON so that it appears complete or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)


def _say_result(out: Path, metrics: dict[str, float]) -> None:
    if metrics:
        percent = [f"{key} {100 * metrics[f'target/{key}']:.1f}" for key in ("rank1", "rank5", "rank10", "mAP")]
        sys.stdout.write(f"target, official test split: {'  '.join(percent)} (percent)\n")
    sys.stdout.write(f"model: {out / 'export'}\nresult: {out / 'result.json'}\n")
