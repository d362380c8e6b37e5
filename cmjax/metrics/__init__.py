"""Metrics: features or points in, numbers out."""
