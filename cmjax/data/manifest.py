"""The manifest of a prepared set: what its shards hold, and how it was made.

It is written last, so that a folder without one is not prepared to the end. It holds no date and no
name of a machine: the same source, prepared with the same options and versions, gives the same
bytes.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from cmjax.base import atomic_files, json_files, limits, safe_names
from cmjax.base.printable import printable, shown
from cmjax.data.shards import Layout

NAME = "manifest.json"
FORMAT = "cmjax-records-1"
KEYS = ("format", "split", "num_examples", "layout", "class_names", "latents", "shards")
SCHEMES = ("gs://", "s3://", "az://", "hf://")  # buckets, as `etils.epath` names them
DTYPES = ("uint8", "float32")  # of pixels, and of latents
SUFFIX = ".array_record"
# What is said of how a set was made, where it is said.
DETAILS = {"class_counts": list, "duplicates": dict, "left_out": list}


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
  check_place(path)
  folder = epath.Path(path).expanduser() / safe_names.flat(split)
  file = folder / NAME
  if not file.exists():
    raise ValueError(f"No prepared split {split!r} in {path}{_what_else(epath.Path(path), split)}")
  try:
    content = json_files.read(file)
    manifest = _manifest(content)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    reason = printable(str(error))[:500]
    raise ValueError(f"{file} is no manifest of {FORMAT}: {reason}. Prepare the data again.") from (
      error
    )
  if manifest.num_examples != content["num_examples"]:
    raise ValueError(
      f"{file} says {shown(content['num_examples'])} examples, but its shards have "
      f"{manifest.num_examples}: it was changed by hand. Prepare the data again."
    )
  return folder, manifest


def is_remote(path: Any) -> bool:
  """Whether a path is in a bucket."""
  return os.fspath(path).startswith(SCHEMES)


def check_place(path: Any) -> None:
  """Raises ValueError for an address that is neither a folder nor a bucket."""
  address = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path))
  if address and not is_remote(path):
    raise ValueError(
      f"Cannot read {printable(os.fspath(path))}: a prepared set is in a folder, which is named "
      f"by its path alone, or in a bucket ({', '.join(SCHEMES)}). Copy it to a folder first."
    )


def _manifest(content: Any) -> Manifest:
  """The manifest of JSON that anybody may have written; what it names stays in its folder."""
  _expect(content, dict, "it")
  missing = [key for key in KEYS if key not in content]
  if missing or content["format"] != FORMAT:
    raise ValueError(f"format {shown(content.get('format'))}, missing keys {missing}")
  latents = content["latents"]
  if latents is not None and not isinstance(_expect(latents, dict, "latents").get("name"), str):
    raise ValueError("latents has no name of a convention")
  layout = _layout(_expect(content["layout"], dict, "layout"))
  shards = tuple(_shard(shard, layout) for shard in _expect(content["shards"], list, "shards"))
  if len({shard.name for shard in shards}) < len(shards):
    raise ValueError("it lists a shard twice")
  for key, kind in DETAILS.items():
    if key in content:
      _expect(content[key], kind, key)
  class_names = tuple(_expect(content["class_names"], list, "class_names"))
  limits.check("classes", len(class_names), "it has too many classes")
  for name in class_names:
    _expect(name, str, "a class name")
  details = {key: value for key, value in content.items() if key not in KEYS}
  return Manifest(
    safe_names.flat(content["split"]), layout, class_names, latents, shards, details
  )  # fmt: skip


def _layout(said: dict[str, Any]) -> Layout:
  layout = Layout(**{**said, "shape": tuple(_expect(said["shape"], list, "shape"))})
  for size in layout.shape:
    _count(size, "a size of its shape", least=1)
  if not 1 <= len(layout.shape) <= 4 or layout.dtype not in DTYPES:
    raise ValueError(f"records of {shown(layout.dtype)} {shown(layout.shape)}")
  for key in ("has_std", "has_label"):
    _expect(getattr(layout, key), bool, key)
  limits.check("record_bytes", 8 * math.prod(layout.shape), "its records are too large")
  return layout


def _shard(said: Any, layout: Layout) -> Shard:
  shard = Shard(**_expect(said, dict, "a shard"))
  name = safe_names.flat(shard.name)
  if not name.endswith(SUFFIX):
    raise ValueError(f"the shard {shown(name)} does not end with {SUFFIX}")
  _count(shard.num_records, f"num_records of {name}")
  _count(shard.num_bytes, f"num_bytes of {name}")
  if shard.num_records * layout.num_bytes > shard.num_bytes:
    raise ValueError(
      f"{name} cannot hold {shard.num_records} records of {layout.num_bytes} bytes in "
      f"{shard.num_bytes}"
    )
  if not re.fullmatch("[0-9a-f]{64}", str(shard.sha256)):
    raise ValueError(f"the sha256 of {name} is {shown(shard.sha256)}")
  return shard


def _count(value: Any, what: str, least: int = 0) -> int:
  if type(value) is not int or not least <= value < 2**62:
    raise ValueError(f"{what} is {shown(value)}, no whole number from {least} up")
  return value


def _expect(value: Any, kind: type, what: str) -> Any:
  if not isinstance(value, kind):
    raise ValueError(f"{what} is {shown(value)}, not {kind.__name__}")
  return value


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
