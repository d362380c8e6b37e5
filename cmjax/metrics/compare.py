"""Can two scores be compared? Their cards tell.

  python -m cmjax.metrics.compare runs/a/cards/fd_one_step_main_step400000.json other.json

Prints the values side by side, and every field that makes them incomparable. Exit codes: 0 they can
be compared, 1 they cannot, 2 one is no card.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from cmjax.base import printable
from cmjax.base.flat_dicts import flat
from cmjax.metrics import cards

# Where two cards may differ and still be compared: this is what is compared, or of no weight.
DRAWN = ("sampler", "ema", "step", "config_sha256", "images.seed", "images.first", "images.labels")
NOTED = ("versions", "settings", "device", "rounding", "decoder", "trained")
# What two runs must share, where both cards say it: what their samples are samples of.
SHARED = ("sigma_data", "num_classes")


def incomparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
  """What keeps the values of two cards from being compared, a field each; [] if nothing does."""
  if not set(a["values"]) & set(b["values"]):
    return [f"values: {', '.join(a['values'])} in A, {', '.join(b['values'])} in B"]
  found = _differ("score", a["score"], b["score"])
  found += _differ("detector", a["detector"], b["detector"])
  found += _differ("reference", _identity(a["reference"]), _identity(b["reference"]))
  found += _differ("images.num", a["images"]["num"], b["images"]["num"])
  # Images that came with 8 bits were rounded by a rule that nobody knows: that is noted below.
  if cards.GIVEN not in (a["rounding"], b["rounding"]):
    found += _differ("rounding", a["rounding"], b["rounding"])
  shared = a["options"].keys() & b["options"].keys()
  for name in sorted(shared):
    found += _differ(f"options.{name}", a["options"][name], b["options"][name])
  found += _trained_on(a.get("trained") or {}, b.get("trained") or {})
  return found + _differ("best_of", a.get("best_of", 1), b.get("best_of", 1))


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
  """What else differs: what was compared, and where."""
  flat_a, flat_b = flat(a), flat(b)
  keys = [key for key in {**flat_a, **flat_b} if key.startswith((*DRAWN, *NOTED))]
  return [line for key in keys for line in _differ(key, flat_a.get(key), flat_b.get(key))]


def table(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
  """The values that both have, with their floors, and the verdict."""
  lines = [f"{'':22}{'A':>14}{'B':>14}{'A - B':>14}"]
  for name in a["values"]:
    if name in b["values"]:
      x, y = a["values"][name], b["values"][name]
      lines.append(f"{cards.shown(name, a['score']):22}{x:14.5g}{y:14.5g}{x - y:14.3g}")
      floors = [(card.get("floor") or {}).get(name) for card in (a, b)]
      if any(floor is not None for floor in floors):
        cells = (f"{'-' if floor is None else format(floor, '.5g'):>14}" for floor in floors)
        lines.append(f"{'  floor':22}{''.join(cells)}")
  reasons = incomparable(a, b)
  verdict = "They can be compared." if not reasons else "They cannot be compared:"
  same = a["images"].get("digest") and a["images"].get("digest") == b["images"].get("digest")
  lines += ["", verdict, *(f"  {reason}" for reason in reasons)]
  lines += ["The images are the same."] if same else []
  if other := differences(a, b):
    lines += ["They differ in what was compared:", *(f"  {line}" for line in other)]
  return "\n".join(lines)


def _trained_on(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
  """What two runs do not share that they must; nothing of images that no run has made."""
  found = [
    line
    for key in SHARED
    if key in a and key in b
    for line in _differ(f"trained.{key}", a[key], b[key])
  ]
  data = [one.get("data") or {} for one in (a, b)]
  # By the content where both know it: a copy at another place is the same.
  key = "digest" if all(one.get("digest") for one in data) else "name"
  if all(one.get(key) for one in data):
    found += _differ(f"trained.data.{key}", *(one[key] for one in data))
  return found


def _identity(reference: Mapping[str, Any]) -> dict[str, Any]:
  """A reference by the images that it is of, where they are known; else by its file."""
  if reference.get("digest"):
    return {"digest": reference["digest"]}
  return {key: reference.get(key) for key in ("kind", "sha256")}


def _differ(name: str, a: Any, b: Any) -> list[str]:
  if isinstance(a, Mapping) and isinstance(b, Mapping):
    keys = dict.fromkeys((*a, *b))
    return [line for key in keys for line in _differ(f"{name}.{key}", a.get(key), b.get(key))]
  return [] if a == b else [f"{name}: {_said(a)} in A, {_said(b)} in B"]


def _said(value: Any) -> str:
  return "not there" if value is None else str(value)


def main(argv: list[str] | None = None) -> int:
  """Compares two files; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m cmjax.metrics.compare",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("A", help="a card: workdir/cards/*.json")
  parser.add_argument("B", help="another")
  args = parser.parse_args(argv)
  try:
    a, b = cards.read(args.A), cards.read(args.B)
  except ValueError as error:
    print(f"cmjax: {printable.message(error)}", file=sys.stderr)  # noqa: T201
    return 2
  print(printable.message(table(a, b)))  # noqa: T201 (the answer)
  return 1 if incomparable(a, b) else 0


if __name__ == "__main__":
  sys.exit(main())
