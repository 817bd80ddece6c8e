"""The studies that are shipped, and how one is found."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from mmfa.errors import ConfigError, did_you_mean
from studies.spec import Study, parse, read


def names() -> list[str]:
    """Return the names of the shipped studies, sorted."""
    files = importlib.resources.files("studies").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load(name_or_path: str) -> Study:
    """Return a shipped study by its name, or any study by the path of its TOML file.

    Raises:
        ConfigError: no such study (the shipped ones are listed), or a file that is not a study.
    """
    if name_or_path in names():
        file = importlib.resources.files("studies") / f"{name_or_path}.toml"
        return parse(file.read_text(encoding="utf-8"), name=name_or_path, origin=file.name)
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.exists():
        return read(path)
    raise ConfigError(
        f"{name_or_path!r} is not a shipped study{did_you_mean(name_or_path, names())} "
        f"Shipped: {', '.join(names())}. Or give the path of a .toml file."
    )
