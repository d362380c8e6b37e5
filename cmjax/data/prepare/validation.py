"""What is wrong with a prepared set: every byte of it is read back."""

import collections
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmjax.base import paths
from cmjax.data import manifest, shards

AT_ONCE = 512  # records


class Report(NamedTuple):
  """What was found.

  Attributes:
    problems: what makes the set unfit, a sentence each; empty: it is sound.
    notes: what is good to know.
  """

  problems: list[str]
  notes: list[str]


def validate(path: str | Path) -> Report:
  """Reads all splits of a prepared set and compares them with their manifests.

  Raises:
    ValueError: there is no set.
  """
  root = paths.local(path)
  if not root.is_dir():
    raise ValueError(f"There is no folder at {root}. Give the --out of a set.")
  report, contents = Report([], []), {}
  folders = sorted(p for p in root.iterdir() if p.is_dir())
  for folder in folders:
    if (folder / manifest.NAME).exists():
      contents[folder.name] = _check_split(root, folder.name, report)
    elif any(folder.glob("*.array_record*")):
      report.problems.append(
        f"{folder}: not prepared to the end. Start the command that began it again."
      )
  if not contents and not report.problems:
    raise ValueError(f"{root} holds no prepared split. Give the --out of a set.")
  splits = list(contents)
  for i, a in enumerate(splits):
    for b in splits[i + 1 :]:
      if shared := contents[a] & contents[b]:
        report.notes.append(f"{len(shared)} different images are in both {a!r} and {b!r}.")
  return report


def _check_split(root: Path, split: str, report: Report) -> set[bytes]:
  """Adds what is wrong with a split; returns the hashes of its images."""
  try:
    _, found = manifest.read(root, split)
  except ValueError as error:
    report.problems.append(str(error))
    return set()
  folder, counts, hashes = root / split, collections.Counter(), set()
  for shard in found.shards:
    try:
      _check_bytes(folder / shard.name, shard)
    except ValueError as error:
      report.problems.append(str(error))
    if (folder / shard.name).is_file():
      _check_records(folder / shard.name, shard, found, counts, hashes, report.problems)
  stray = {p.name for p in folder.glob("*.array_record*")} - {shard.name for shard in found.shards}
  if stray:
    report.problems.append(f"{folder}: {len(stray)} files that the manifest does not list, such as "
                           f"{min(stray)}. Remove them.")  # fmt: skip
  said = found.details.get("class_counts", [])
  got = [counts[label] for label in range(len(found.class_names))]
  if said and said != got:
    wrong = [i for i, (a, b) in enumerate(zip(said, got, strict=False)) if a != b]
    report.problems.append(
      f"{folder}: {len(wrong)} classes have another number of examples than the manifest says, "
      f"such as class {wrong[0] if wrong else len(got)}."
    )
  if empty := [name for name, count in zip(found.class_names, got, strict=True) if not count]:
    report.notes.append(f"{folder}: {len(empty)} classes are empty, such as {empty[0]!r}.")
  report.notes.append(summary(folder, found))
  return hashes


def summary(folder: Path, found: manifest.Manifest) -> str:
  """A split in a line."""
  what = f"latents ({found.latents['name']})" if found.latents else "images"
  copies = found.details.get("duplicates", {})
  return (
    f"{folder}: {found.num_examples:,} {what} of {'x'.join(map(str, found.layout.shape))}, "
    f"{len(found.class_names)} classes, {len(found.shards)} shards; {copies.get('groups', 0)} "
    f"groups of equal images, {len(found.details.get('left_out', []))} left out."
  )


def _check_bytes(path: Path, shard: manifest.Shard) -> None:
  if not path.is_file():
    raise ValueError(f"{path} is not there.")
  size = path.stat().st_size
  if size != shard.num_bytes:
    raise ValueError(f"{path} has {size:,} bytes; the manifest says {shard.num_bytes:,}.")
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if digest != shard.sha256:
    raise ValueError(f"{path} has the sha256 {digest}; the manifest says {shard.sha256}.")


def _check_records(
  path: Path,
  shard: manifest.Shard,
  found: manifest.Manifest,
  counts: collections.Counter,
  hashes: set[bytes],
  problems: list[str],
) -> None:
  """Adds what is wrong inside of a shard, and counts its labels."""
  try:
    reader = shards.open_reader(path)
  except ValueError as error:
    problems.append(str(error))
    return
  number = reader.num_records()
  if number != shard.num_records:
    problems.append(f"{path} has {number} records; the manifest says {shard.num_records}.")
  for start in range(0, number, AT_ONCE):
    places = range(start, min(start + AT_ONCE, number))
    records = _read(reader, places, path, problems)
    sizes = {len(record) for record in records.values()} - {found.layout.num_bytes}
    if sizes:
      problems.append(
        f"{path} has records of {min(sizes)} bytes; those of {list(found.layout.shape)} have "
        f"{found.layout.num_bytes}."
      )
      break
    if records:
      arrays = found.layout.unpack(list(records.values()))
      _check_values(path, list(records), arrays, len(found.class_names), problems)
      counts.update(arrays["label"].tolist() if "label" in arrays else [])
      hashes.update(hashlib.blake2b(x.tobytes(), digest_size=16).digest() for x in arrays["image"])
  reader.close()


def _read(reader: Any, places: range, path: Path, problems: list[str]) -> dict[int, bytes]:
  try:
    return dict(zip(places, reader.read(list(places)), strict=True))
  except RuntimeError:
    found = {}
    for place in places:
      try:
        found[place] = reader.read([place])[0]
      except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        problems.append(f"Record {place} of {path} is damaged: {reason}")
    return found


def _check_values(
  path: Path,
  places: list[int],
  arrays: dict[str, np.ndarray],
  num_classes: int,
  problems: list[str],
) -> None:
  label = arrays.get("label")
  if label is not None:
    for k in np.flatnonzero((label < 0) | (label >= num_classes)):
      problems.append(
        f"Record {places[k]} of {path} has the label {label[k]}: there are {num_classes} classes."
      )
  for name in ("image", "image_std"):
    if name in arrays and arrays[name].dtype != np.uint8:
      finite = np.isfinite(arrays[name]).reshape(len(places), -1).all(1)
      low = name == "image_std" and (arrays[name] < 0).reshape(len(places), -1).any(1)
      for k in np.flatnonzero(~finite | low):
        problems.append(
          f"Record {places[k]} of {path} has a {name} that is not finite, or below 0."
        )
