"""Where a number comes from: commit, versions, hardware."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow", "numpy", "scipy", "scikit-learn")


@functools.cache
def commit() -> str:
    """Return the git commit of this checkout, with ``-dirty`` where files were changed; without git :func:`sources`."""
    if not (HERE / ".git").exists():
        return sources()
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return sources()
    return found.stdout.strip()


@functools.cache
def sources() -> str:
    """Return ``sources-`` and 12 digits of a SHA-256 over the three packages, equal in a checkout and installed."""
    digest = hashlib.sha256()
    packages = [HERE / name for name in ("mmfa", "studies", "tune")]
    files = [path for package in packages for path in package.rglob("*") if path.suffix in (".py", ".toml", ".json")]
    for path in sorted(files):
        digest.update(f"{path.relative_to(HERE).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return f"sources-{digest.hexdigest()[:12]}"


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that decide a result."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def hardware() -> str:
    """Return this machine in a line: processor, cores, GPUs."""
    return ", ".join([f"{_processor()}, {num_cores()} cores", *_gpus()])


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def tags() -> dict[str, str]:
    """Return all of it as MLflow tags."""
    result = {"git.commit": commit(), "hardware": hardware()}
    return result | {f"version.{name}": version for name, version in versions().items()}
