"""The report of a study: one page that stands on its own, its pictures, and ``study.parquet``."""
