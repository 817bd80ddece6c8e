"""How the questions are asked: Ray Tune runs the trials, Optuna keeps the ledger, MLflow records."""

from tune.api import results, run

__all__ = ["results", "run"]
