"""One training from Python: what a notebook needs, without paths of stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmfa.config import TrialConfig, profile

if TYPE_CHECKING:
    from mmfa.data.store import Store
    from mmfa.training import Training


def begin(
    config: TrialConfig | None = None,
    *,
    data_root: str | Path | None = None,
    cache_dir: str | Path | None = None,
    device: str = "auto",
) -> Training:
    """Return a training that has not begun: iterate over its ``epochs()``, then ask its ``test()``.

    Datasets are read, or rendered, and stored once; afterwards this takes a moment.

    Args:
        config: The profile ``embedded`` by default, which needs no data.
        data_root: Folder that holds the datasets, where the config names some; never written to.
        cache_dir: Rendered datasets and image stores; ``$MMFA_CACHE_DIR`` or the user's cache folder by default.
        device: ``auto`` (a GPU where there is one), or a torch device such as ``cpu`` or ``cuda:1``.

    Raises:
        ConfigError: weights that cannot be had, or a device that is not there.
        DataError: missing or damaged data, or too few images or identities.
    """
    from mmfa.training import Training

    config = profile("embedded") if config is None else config
    source, target = (
        _store(name, config, data_root=data_root, cache_dir=cache_dir)
        for name in (config.data.source, config.data.target)
    )
    return Training(config, source=source, target=target, device=device)


def train(
    config: TrialConfig | None = None,
    *,
    data_root: str | Path | None = None,
    cache_dir: str | Path | None = None,
    device: str = "auto",
) -> Training:
    """Train once and return the finished training: ``history`` has its epochs, ``test()`` judges it.

    Takes and raises what :func:`begin` does.

    Raises:
        DivergedError: a loss or a weight that is not finite.
    """
    training = begin(config, data_root=data_root, cache_dir=cache_dir, device=device)
    for _ in training.epochs():
        pass
    return training


def _store(name: str, config: TrialConfig, *, data_root: str | Path | None, cache_dir: str | Path | None) -> Store:
    from mmfa.data import catalog
    from mmfa.data.store import build, open_store

    cache = Path(cache_dir).expanduser() if cache_dir is not None else catalog.default_cache_dir()
    dataset = catalog.load(
        name,
        data_root=None if data_root is None else Path(data_root).expanduser(),
        cache_dir=cache,
        attributes_required=name == config.data.source,
    )
    data = config.data
    return open_store(build(dataset, cache_dir=cache, height=data.store_height, width=data.store_width))
