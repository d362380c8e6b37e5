"""The manifest of a prepared set: what its shards hold, and how it was made.

It is written last, so that a folder without one is not prepared to the end. It holds no date and no
name of a machine: the same source, prepared with the same options and versions, gives the same
bytes.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from cmjax.base import atomic_files
from cmjax.data.shards import Layout

NAME = "manifest.json"
FORMAT = "cmjax-records-1"
KEYS = ("format", "split", "num_examples", "layout", "class_names", "latents", "shards")


class Shard(NamedTuple):
  """One file of a set."""

  name: str
  num_records: int
  num_bytes: int
  sha256: str


class Manifest(NamedTuple):
  """What a reader needs of it; `details` has the rest, for people.

  Attributes:
    split: its name.
    layout: of its records.
    class_names: as many as there are classes; none without labels.
    latents: what `cmjax.latents.record` says and the sha256 of the autoencoder; None: pixels.
    shards: in order.
    details: how it was made.
  """

  split: str
  layout: Layout
  class_names: tuple[str, ...]
  latents: dict[str, Any] | None
  shards: tuple[Shard, ...]
  details: dict[str, Any]

  @property
  def num_examples(self) -> int:
    """Over all shards."""
    return sum(shard.num_records for shard in self.shards)


def write(folder: Path, manifest: Manifest) -> None:
  """Writes the manifest of a split's folder; whole or not at all."""
  content = {
    "format": FORMAT,
    "split": manifest.split,
    "num_examples": manifest.num_examples,
    "layout": manifest.layout._asdict(),
    "class_names": manifest.class_names,
    "latents": manifest.latents,
    **manifest.details,
    "shards": [shard._asdict() for shard in manifest.shards],
  }
  write_json(folder / NAME, content)


def write_json(path: Path, content: Any) -> None:
  """A file of JSON, whole or not at all."""
  try:
    atomic_files.write_json(path, content, indent=1)
  except OSError as error:
    raise ValueError(
      f"Cannot write {path}: {error.strerror}. Free some space or choose another folder, and start "
      "the same command again."
    ) from error


def read(path: Any, split: str) -> tuple[epath.Path, Manifest]:
  """The folder of a split and its manifest.

  Args:
    path: of a prepared set, on a disk or wherever `etils.epath` reads.
    split: of it.

  Raises:
    ValueError: there is none, or it is not a manifest of this format.
  """
  folder = epath.Path(path).expanduser() / split
  file = folder / NAME
  if not file.exists():
    raise ValueError(f"No prepared split {split!r} in {path}{_what_else(epath.Path(path), split)}")
  try:
    content = json.loads(file.read_text())
    missing = [key for key in KEYS if key not in content]
    if missing or content["format"] != FORMAT:
      raise ValueError(f"format {content.get('format')!r}, missing keys {missing}")
    layout: dict[str, Any] = dict(content["layout"])
    layout["shape"] = tuple(layout["shape"])
    manifest = Manifest(
      content["split"],
      Layout(**layout),
      tuple(content["class_names"]),
      content["latents"],
      tuple(Shard(**shard) for shard in content["shards"]),
      {key: value for key, value in content.items() if key not in KEYS},
    )
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f"{file} is no manifest of {FORMAT}: {error}. Prepare the data again."
    ) from error
  if manifest.num_examples != content["num_examples"]:
    raise ValueError(
      f"{file} says {content['num_examples']} examples, but its shards have "
      f"{manifest.num_examples}: it was changed by hand. Prepare the data again."
    )
  return folder, manifest


def _what_else(path: epath.Path, split: str) -> str:
  """The end of a sentence: what is there in place of the split."""
  path = path.expanduser()
  if not path.exists():
    return (
      f": there is no such folder. Prepare it: python -m cmjax.data.prepare SOURCE --out {path}"
    )
  others = sorted(p.parent.name for p in path.glob(f"*/{NAME}"))
  if not others:
    unfinished = (path / split).exists()
    what = "it was not prepared to the end" if unfinished else "nothing is prepared there"
    return f": {what}. Run python -m cmjax.data.prepare SOURCE --out {path} --split {split}"
  return (
    f": there is {', '.join(others)}. Add it: python -m cmjax.data.prepare SOURCE --out {path} "
    f"--split {split}"
  )
