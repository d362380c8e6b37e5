"""The pages of configs/: found, read, shown."""

import json
import runpy

from ml_collections import ConfigDict


def load(spec: str) -> ConfigDict:
  """The config of a page, of its variant after a colon, or of a config.json."""
  path, _, variant = spec.partition(":")
  if path.endswith(".json"):
    with open(path, encoding="utf-8") as file:
      return ConfigDict(json.load(file))
  open(path, encoding="utf-8").close()  # whose error has the path as it was given
  return runpy.run_path(path)["get_config"](variant)


def show(config: ConfigDict) -> str:
  """Every value of the config."""
  return str(config)


def differences(a: ConfigDict, b: ConfigDict) -> str:
  """The values of two configs that differ."""
  ours, theirs = (set(str(config).splitlines()) for config in (a, b))
  return "\n".join([*(f"- {x}" for x in ours - theirs), *(f"+ {x}" for x in theirs - ours)])
