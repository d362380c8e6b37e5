"""The card of a score: a file of JSON that says how the numbers in it were made.

  values       {name: value}; with best_of > 1 the best of the repetitions
  floor        {name: value} of held-out images in the samples' place, `floor_num` of them
  score        what the Frechet distance in this detector's features is called: FID in Inception's
  detector     its record: name, variant, weights, resize, normalisation, precision
  reference    where it is from, its number of images, its digest or sha256
  images       kind, num, digest; of samples also their seeds and labels
  rounding     to 8 bits: round or truncate; "as given" of images that had them, "none" of points
  options      subsets, neighbours, splits
  decoder      convention and autoencoder, of samples that are latents
  repetitions  values, seeds and digest of each
  sampler, ema, step, config_sha256   of samples: what drew them
  trained      of samples: sigma_data, method, network, classes and data of the run, as they were
               used; sigma_min is where its consistency function is the identity
  warnings, versions, settings (of JAX), device, time
  sha256       of all the rest: a card that was changed by hand is refused

`python -m cmjax.metrics.compare A B` tells whether two cards can be compared, and if not, why.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from cmjax.base import digests, json_files, paths
from cmjax.base.atomic_files import replacing

FOLDER = "cards"  # of a run
FORMAT = 1
GIVEN = "as given"  # the rounding of images that had 8 bits
_MUST_HAVE = ("values", "score", "detector", "reference", "images", "rounding", "options")
_KINDS = {"rounding": str, "score": str}  # of those above that are no dicts
_MAY_HAVE = ("floor", "trained")  # dicts, or null


def write(folder: str | os.PathLike[str], name: str, card: Mapping[str, Any]) -> epath.Path:
  """Writes folder/name.json, whole or not at all; characters that no file name has become "-"."""
  path = path_of(folder, name)
  path.parent.mkdir(parents=True, exist_ok=True)
  sealed = digests.sealed({"format": FORMAT, **card})
  text = json.dumps(sealed, indent=2, allow_nan=False) + "\n"
  with replacing(path) as file:
    file.write(text.encode())
  return path


def path_of(folder: str | os.PathLike[str], name: str) -> epath.Path:
  """The file of a card by its name."""
  return epath.Path(folder) / (re.sub(r"[^\w.-]+", "-", name) + ".json")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
  """What `write` wrote, without its digest; a card that has none is taken as it is.

  Raises:
    ValueError: there is no such file, it is no card, or it was changed since it was written.
  """
  path = paths.place(path)
  try:
    card = json_files.read(path)
    wrong = _wrong(card)
    if card["format"] != FORMAT or wrong:
      raise ValueError(f"format {card['format']}, wrong: {', '.join(wrong) or 'none'}")
    if digests.is_whole(card) is False:
      raise ValueError("it was changed since it was written")
  except FileNotFoundError as error:
    raise ValueError(
      f"There is no card at {path}. They are in the folder cards of a run."
    ) from error
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is no card of format {FORMAT}: {error!r:.500}.") from error
  return {key: value for key, value in card.items() if key != digests.SEAL}


def _wrong(card: Any) -> list[str]:
  """The entries that are not there, or not of the kind that those who read a card rely on."""
  if not isinstance(card, dict):
    raise ValueError("it is no object of JSON")
  found = [key for key in _MUST_HAVE if not isinstance(card[key], _KINDS.get(key, dict))]
  found += [key for key in _MAY_HAVE if not isinstance(card.get(key) or {}, dict)]
  if found:
    return found
  floor = card.get("floor") or {}
  numbers = {f"values.{key}": value for key, value in card["values"].items()}
  numbers |= {f"floor.{key}": value for key, value in floor.items()}
  found += [key for key, value in numbers.items() if not _is_number(value, (int, float))]
  counts = {"images.num": card["images"].get("num")}
  counts |= {"floor_num": card.get("floor_num")} if floor else {}
  found += [key for key, value in counts.items() if not _is_number(value, int)]
  data = (card.get("trained") or {}).get("data") or {}
  return found + (["trained.data"] if not isinstance(data, dict) else [])


def _is_number(value: Any, kind: type | tuple[type, ...]) -> bool:
  return isinstance(value, kind) and not isinstance(value, bool)


def lines(card: Mapping[str, Any]) -> list[str]:
  """The numbers of a card in words, one a line, each with its floor."""
  found = []
  for name, value in card["values"].items():
    if name.endswith(("_std", "_half_width")):
      continue
    text = f"{shown(name, card['score'])} {value:.5g}"
    if f"{name}_std" in card["values"]:
      text += f" +- {card['values'][f'{name}_std']:.2g}"
    if name in (card.get("floor") or {}):
      text += f"; floor {card['floor'][name]:.5g} ({card['floor_num']:,} held-out images)"
    found.append(text)
  return found


def shown(name: str, score: str) -> str:
  """What a value is called in print: the Frechet distance by its detector's name for it."""
  return {"frechet": score, "sfid": f"s{score}"}.get(name, name)
