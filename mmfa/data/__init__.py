"""Datasets, attributes, image stores and batches."""
