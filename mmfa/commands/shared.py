"""What several commands share: options about places, KEY=VALUE, progress, and opening a dataset's store."""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmfa.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from mmfa.data.store import Store

_SPARSE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


class Parser(argparse.ArgumentParser):
    """Complains in one sentence, with the nearest option for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0]
            known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            message = f"{word!r} is not an option{did_you_mean(word.split('=')[0], known)}"
        raise ConfigError(f"{message if message.endswith(('?', '.')) else message + '.'} See {self.prog} --help.")


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-root``, ``--cache-dir`` and ``--strict-counts``."""
    parser.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="folder that holds the benchmarks as their authors distribute them; never written to",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="rendered datasets and image stores (default: $MMFA_CACHE_DIR, or mmfa in the user's cache folder)",
    )
    parser.add_argument(
        "--strict-counts", action="store_true", help="refuse benchmarks without their published counts (default: warn)"
    )


def data_root(options: argparse.Namespace) -> Path | None:
    """Return the checked ``--data-root``.

    Raises:
        ConfigError: not a folder.
    """
    root: Path | None = options.data_root and options.data_root.expanduser()
    if root is not None and not root.is_dir():
        raise ConfigError(f"--data-root must be a folder that holds the datasets, but {root} is none; check the path.")
    return root


def setting(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; the value as TOML, or as a bare word.

    Raises:
        ConfigError: no equals sign or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes KEY=VALUE, e.g. optim.num_epochs=6, but got {text!r}.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def open_dataset(name: str, options: argparse.Namespace, *, height: int, width: int, is_source: bool) -> Store:
    """Load a dataset, build its store where that has not been done, and open it.

    Args:
        name: a catalogue name or ``folder:PATH``.
        options: with what :func:`add_places` adds.
        height: of stored images, pixels.
        width: of stored images, pixels.
        is_source: whether labels are needed, and attributes where the dataset has them.

    Raises:
        DataError: missing or damaged data.
    """
    from mmfa.data import catalog
    from mmfa.data.store import build, open_store

    cache_dir = options.cache_dir or catalog.default_cache_dir()
    progress = Progress()
    dataset = catalog.load(
        name,
        data_root=data_root(options),
        cache_dir=cache_dir,
        strict_counts=options.strict_counts,
        attributes_required=is_source,
        progress=progress,
    )
    return open_store(build(dataset, cache_dir=cache_dir, height=height, width=width, progress=progress))


class Progress:
    """Shows how far something is on standard error: one line that changes on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._shown_at = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show it; the first and the last call of something are always told apart from each other."""
        now, ended = time.monotonic(), done >= total
        text = f"{what}: {done:,} of {total:,} ({done / max(total, 1):.0%})"
        if sys.stderr.isatty():
            if ended or now - self._shown_at > 0.1:
                self._shown_at = now
                sys.stderr.write(f"\r{text:<70}" + ("\n" if ended else ""))
                sys.stderr.flush()
        elif ended or now - self._shown_at > _SPARSE_SECONDS:
            self._shown_at = now
            sys.stderr.write(f"{text}\n")
