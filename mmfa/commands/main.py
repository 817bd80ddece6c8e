"""Options, logging and exit codes of ``python -m mmfa``. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from mmfa.commands import check, evaluate, prepare, rank, replica, train
from mmfa.commands.shared import Parser
from mmfa.errors import ConfigError, MmfaError, did_you_mean

DESCRIPTION = """\
Datasets, one training and its evaluation, without Ray. Studies of many trainings are mmfa-study's.

  check     what lies under a data root, against what was published
  prepare   decode datasets into image stores, once for all trainings
  train     one training from a config: for a notebook, a debugger or a first look
  evaluate  an exported model on any dataset, by that dataset's protocol
  rank      a folder of images for a query, with an exported model
  replica   write a synthetic dataset in a benchmark's layout, to try all this without its images
"""
EPILOG = """\
examples:
  python -m mmfa train --out first                       the embedded pair: needs no data
  python -m mmfa check --data-root ~/data
  python -m mmfa evaluate first/export --dataset embedded-null

exit codes: 0 fine; 1 `check` found problems; 2 bad input; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m mmfa``."""
    raw = argparse.RawDescriptionHelpFormatter
    result = Parser(
        prog="python -m mmfa", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw, allow_abbrev=False
    )
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for command in (check, prepare, train, evaluate, rank, replica):
        name = command.__name__.rpartition(".")[2]
        summary = command.DESCRIPTION.split("\n", 1)[0]
        sub = commands.add_parser(
            name, help=summary, description=command.DESCRIPTION, formatter_class=raw, allow_abbrev=False
        )
        command.add_options(sub)
        sub.set_defaults(run=command.run)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options, unknown = parser().parse_known_args(arguments)
        if unknown:
            _refuse(options.command, unknown[0])
        return int(options.run(options))
    except MmfaError as error:
        sys.stderr.write(f"mmfa: {error}\n")
        return 2
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "mmfa", *arguments])
        sys.stderr.write(f"\nmmfa: interrupted. The same command goes on from what is finished:\n  {again}\n")
        return 130


def _refuse(command: str, word: str) -> NoReturn:
    """Complain about an option with those of its own command in mind."""
    actions = parser()._subparsers._group_actions[0].choices[command]._actions  # type: ignore
    known = [option for action in actions for option in action.option_strings if option.startswith("--")]
    raise ConfigError(
        f"{word!r} is not an option{did_you_mean(word.split('=')[0], known)} See python -m mmfa {command} --help."
    )
