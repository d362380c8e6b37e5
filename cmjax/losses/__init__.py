"""Losses: one file per family; each factory returns a `LossFn`."""
