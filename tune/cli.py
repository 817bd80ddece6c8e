"""The command line: options, logging, exit codes. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import logging
import math
import os
import shlex
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmfa.commands.shared import Parser, setting
from mmfa.config import PROFILES
from mmfa.errors import ConfigError, MmfaError
from studies import library
from studies.plan import Plan
from studies.resolve import resolve
from tune import dry_run, environment

if TYPE_CHECKING:
    from tune.places import Places

DESCRIPTION = """\
Run a hyperparameter study of MMFA, or go on with one.

A study asks a question about MMFA, such as whether other loss weights beat the paper's. Its two controls
(source only; target images in BatchNorm without alignment) run first, then the paper's defaults as trial 0,
then the points of the search. Every training is recorded in MLflow, and the best one becomes the registered
model's `candidate`.

Kill it whenever you like: the same command goes on from the last finished epoch of every trial.
"""

EPILOG = """\
examples:
  mmfa-study --study lambdas                          the λ study on the embedded pair of rendered domains
  mmfa-study --study lambdas --dry-run                what it would do; touches nothing
  mmfa-study --study lambdas --trials 30              ten more trials in the same study
  mmfa-study --study my.toml --set optim.num_epochs=6 your own question, with a field fixed
  mmfa-study --study lambdas --profile paper --source market1501 --data-root ~/data ...

exit codes: 0 finished; 1 incomplete (a trial was lost, or the study was taken over); 2 bad input, nothing was
started; 130 interrupted. On 1 and 130 the same command goes on.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``mmfa-study``."""
    result = Parser(
        prog="mmfa-study",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument(
        "command",
        nargs="?",
        default="run",
        help="run (the default), replay or report (see replay --help, report --help)",
    )
    _add_what(result.add_argument_group("what to run"))
    _add_where(result.add_argument_group("where things are", "Everything not given lies under --out."))
    _add_how(result.add_argument_group("how it runs"))
    look = result.add_argument_group("looking only")
    look.add_argument("--list", action="store_true", help="list the shipped studies and their questions")
    look.add_argument("--dry-run", action="store_true", help="print the resolved plan and its cost; touch nothing")
    return result


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--study", metavar="NAME|FILE", help="a shipped study (see --list) or a .toml file")
    group.add_argument(
        "--profile",
        choices=sorted(PROFILES),
        help="recipe (default: paper with --data-root, else embedded)",
    )
    group.add_argument("--source", metavar="NAME", help="labelled dataset (default: the profile's)")
    group.add_argument("--target", metavar="NAME", help="unlabelled dataset (default: the profile's)")
    group.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="trials of a search, the baseline included, or seeds of each arm (default: the study's; may only grow)",
    )
    group.add_argument(
        "--confirm-seeds",
        type=int,
        metavar="R",
        help="fresh seeds of each setting that is confirmed (default: the study's; may only grow)",
    )
    group.add_argument(
        "--quick", action="store_true", help="one seed of each control and no confirmation: nothing is confirmed then"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the study (default: 0)")
    group.add_argument(
        "--weights",
        metavar="FILE|imagenet|none",
        help="the backbone's starting weights (default: the profile's; imagenet: torch's cache, else a download)",
    )
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fix a config field, e.g. optim.num_epochs=6"
    )


def _add_where(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data-root", type=Path, metavar="DIR", help="folder that holds the datasets; never written to")
    group.add_argument(
        "--strict-counts", action="store_true", help="refuse datasets without their published counts (default: warn)"
    )
    group.add_argument(
        "--out",
        type=Path,
        default=Path("mmfa-studies"),
        metavar="DIR",
        help="results (default: ./mmfa-studies)",
    )
    group.add_argument(
        "--storage",
        metavar="DIR|URI",
        help="checkpoints: a folder that all nodes share, or s3://bucket/path (default: OUT/storage)",
    )
    group.add_argument("--ledger", metavar="URL", help="database of the trials (default: sqlite:///OUT/ledger.db)")
    group.add_argument(
        "--tracking-uri",
        metavar="URL",
        help="MLflow: a database or http://host:port (default: sqlite:///OUT/mlflow.db)",
    )
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="rendered datasets and image stores (default: $MMFA_CACHE_DIR, or mmfa in the user's cache folder)",
    )


def _add_how(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--address",
        metavar="ADDR",
        help="Ray cluster, e.g. auto (default: start Ray on this machine)",
    )
    group.add_argument("--cpus-per-trial", type=int, default=1, metavar="N", help="cores of a trial (default: 1)")
    group.add_argument(
        "--trials-per-gpu",
        type=_trials_per_gpu,
        default=1,
        metavar="N|auto",
        help="trials that share a GPU (default: 1; auto measures an epoch with 1, 2, 4, … and takes what is fastest)",
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="trials at once (default: as many as fit on the nodes that are there; give more where nodes are to join)",
    )
    group.add_argument(
        "--promote",
        choices=("never", "candidate", "champion"),
        default="champion",
        help="register the best trial's model as candidate and, where a verdict grants it, a setting that beats the "
        "baseline and the standing champion as champion (default); or only the first, or nothing",
    )
    group.add_argument(
        "--torch-trace",
        action="store_true",
        help="profile the baseline's first epoch: torch's trace and a table of where the time went, in MLflow",
    )
    group.add_argument(
        "--lease-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="how long a study stays reserved for a driver that no longer answers (default: 30)",
    )


def _trials_per_gpu(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or auto, but got {text!r}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        if arguments[:1] == ["replay"]:
            from tune import replay

            return replay.main(arguments[1:])
        if arguments[:1] == ["report"]:
            from tune import rebuild

            return rebuild.main(arguments[1:])
        return _main(parser().parse_args(arguments), arguments)
    except MmfaError as error:
        sys.stderr.write(f"mmfa-study: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"mmfa-study: interrupted; nothing is lost. To continue, type:\n  {_command(arguments)}\n")
        return 130


def entry() -> NoReturn:
    """Run the command line and exit: the installed ``mmfa-study``."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 130:  # an interrupt may have caught native threads anywhere, and the interpreter's end crashes on some
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        os._exit(code)
    sys.exit(code)


def _main(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.command != "run":
        raise ConfigError(
            f"{options.command!r} is not a command; there are 'run', which may be left out, 'replay' and 'report'."
        )
    if options.list:
        return _list()
    if options.study is None:
        raise ConfigError(f"--study is missing; shipped studies: {', '.join(library.names())}.")
    plan, where = _plan(options), _places(options)
    if options.dry_run:
        sys.stdout.write(dry_run.text(plan, where, cpus_per_trial=options.cpus_per_trial))
        return 0
    environment.settle()
    _quiet()
    from tune import launch
    from tune.console import Console
    from tune.session import Request

    request = Request(
        plan=plan,
        places=where,
        trials_asked=options.trials is not None,
        confirm_seeds_asked=options.confirm_seeds is not None,
        cpus_per_trial=options.cpus_per_trial,
        trials_per_gpu=None if options.trials_per_gpu == "auto" else options.trials_per_gpu,
        workers=options.workers,
        address=options.address,
        promote=options.promote,
        strict_counts=options.strict_counts,
        lease_seconds=options.lease_seconds,
        torch_trace=options.torch_trace,
        command=_command(arguments),
        python=_shortest(sys.executable),
    )
    return launch.run(request, Console(plan))


def _command(arguments: list[str]) -> str:
    """Return what to type to run this again from the same folder."""
    program = Path(sys.argv[0])
    called = [_shortest(sys.executable), sys.argv[0]] if program.suffix == ".py" else [_shortest(sys.argv[0])]
    return shlex.join([*called, *arguments])


def _shortest(path: str) -> str:
    """Return a program's bare name where the shell finds that very file, else its path, relative if below here."""
    found, name = shutil.which(Path(path).name), Path(path).name
    if found is not None and Path(found).absolute() == Path(path).absolute():
        return name
    full = Path(path).absolute()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def _plan(options: argparse.Namespace) -> Plan:
    for name in ("cpus_per_trial", "trials_per_gpu", "workers", "lease_seconds"):
        if getattr(options, name) not in ("auto", None) and not 1 <= getattr(options, name) < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} must be 1 or more, but got {getattr(options, name)}.")
    if options.data_root is not None and not options.data_root.expanduser().is_dir():
        raise ConfigError(
            f"--data-root must be a folder that holds the datasets, such as Market-1501-v15.09.15/bounding_box_train, "
            f"but {options.data_root} is none."
        )
    chosen = options.profile or ("paper" if options.data_root else "embedded")
    plan = resolve(
        library.load(options.study),
        profile_name=chosen,
        overrides=_overrides(options),
        source=options.source,
        target=options.target,
        seed=options.seed,
        trials=options.trials,
        confirm_seeds=options.confirm_seeds,
        quick=options.quick,
    )
    if _check_datasets(plan, options.data_root):
        return plan
    return resolve(
        library.load(options.study),
        profile_name=chosen,
        overrides=_overrides(options),
        source=options.source,
        target=options.target,
        seed=options.seed,
        trials=options.trials,
        quick=options.quick,
        labelled=False,
    )


def _check_datasets(plan: Plan, data_root: Path | None) -> bool:
    """Refuse unknown datasets and unlabelled sources before anything is touched; return whether targets have labels."""
    from mmfa.data import catalog

    sources = {config.data.source for config in plan.configs()}
    for name in plan.datasets():
        option = "--source" if name in sources else "--target"
        try:
            catalog.check_name(name)
        except MmfaError as error:
            raise ConfigError(f"{option}: {error}") from None
        if catalog.needs_data_root(name) and data_root is None:
            layout = catalog.expected_layout(name)
            raise ConfigError(f"{option} {name} needs --data-root DIR, the folder that holds {layout}.")
        try:
            labelled = catalog.is_labelled(name)
        except MmfaError as error:
            raise ConfigError(f"{option}: {error}") from None
        if not labelled and name in sources:
            raise ConfigError(f"--source {name} has no identities to learn; give a labelled source.")
        if not labelled:
            return False
    return True


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    overrides = dict(setting(text) for text in options.set)
    if options.weights is not None:
        if "model.weights" in overrides:
            raise ConfigError("--weights and --set model.weights say the same thing; give one of them.")
        overrides["model.weights"] = options.weights
    return overrides


def _places(options: argparse.Namespace) -> Places:
    from mmfa.data import catalog
    from tune.places import places

    return places(
        out=options.out,
        storage=options.storage,
        ledger=options.ledger,
        tracking=options.tracking_uri,
        cache_dir=options.cache_dir or catalog.default_cache_dir(),
        data_root=options.data_root,
    )


def _list() -> int:
    for name in library.names():
        study = library.load(name)
        unit = "seeds " if study.is_comparison else "trials"
        sys.stdout.write(f"{name:12} {study.trials:3} {unit}  {study.question}\n")
    return 0


def _quiet() -> None:
    """Let warnings of ours through and keep third parties' chatter out of the live table."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    for name in ("alembic", "mlflow", "ray", "optuna", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(mlflow|ray|optuna|sqlalchemy|pydantic)\b")
