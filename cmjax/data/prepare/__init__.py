"""Preparing a data set once: read originals, crop, check, encode, write shards."""
