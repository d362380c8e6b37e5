"""Dicts in dicts, as configs and cards are: by the way to each value."""

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{a.b.c: value} of nested dicts; an empty one has no values.

  >>> flat({"optim": {"lr": 0.1, "schedule": {}}, "seed": 0})
  {'optim.lr': 0.1, 'seed': 0}
  """
  found = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      found |= flat(value, f"{prefix}{key}.")
    else:
      found[f"{prefix}{key}"] = value
  return found
