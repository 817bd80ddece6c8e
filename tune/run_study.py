"""Run a study: ``python tune/run_study.py --study lambdas``; the same as the installed ``mmfa-study``."""

import sys

try:
    from tune.cli import entry
except ModuleNotFoundError as error:
    sys.exit(
        f"mmfa-study: the package {error.name!r} is not installed; run `make study` once, or `pip install -e .` from "
        "the folder of pyproject.toml."
    )

if __name__ == "__main__":
    entry()
