"""How the questions are asked: Ray Tune runs the trials, Optuna keeps the ledger, MLflow records."""
