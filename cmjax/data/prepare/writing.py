"""From pictures to shards, by several processes; a killed one goes on, to the same bytes.

Shard k holds a stretch of the source that depends on the source and the options alone. It is
written under another name and renamed, and then a note beside it says what it was made of: on a
second start every shard whose note still fits is kept. The manifest comes last, and the notes go.
"""

import collections
import hashlib
import itertools
import json
import logging
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cmjax.data import image_files, manifest, shards
from cmjax.data.prepare.loading import (
  Recipe,
  Stretch,
  Work,
  check,
  first_shape,
  joined,
  total_by_kind,
)
from cmjax.data.prepare.originals import Originals
from cmjax.data.prepare.workers import workers

logger = logging.getLogger("cmjax")
SHARD_BYTES = 8 * 2**20  # small enough for any number of processes, and to lose one when killed
MAX_SHARDS = 1024
PIECE = 64  # images that are decoded at a time where latents are made of them
NOTE = ".note.json"
DUPLICATES = "duplicates.json"
Split = tuple[str, np.ndarray | None]  # name, places of its pictures; None: of all


class Encoder(NamedTuple):
  """What makes latents of images.

  Attributes:
    encode: uint8 [n, h, w, c] -> the arrays image and image_std [n, h2, w2, z].
    shape: of one latent, for images of a shape.
    record: of the convention and of the autoencoder, for the manifest.
    batch_size: how many images it takes at a time.
  """

  encode: Callable[[np.ndarray], dict[str, np.ndarray]]
  shape: Callable[[tuple[int, ...]], tuple[int, ...]]
  record: dict[str, Any]
  batch_size: int


def prepare(
  originals: Originals,
  out: Path,
  split: str,
  recipe: Recipe,
  *,
  chosen: np.ndarray | None = None,
  encoder: Encoder | None = None,
  max_bad: int = 0,
  licence: str = "",
  num_workers: int | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> manifest.Manifest:
  """Writes `out`/`split`: shards, a report of duplicates if there are any, and the manifest.

  Args:
    originals: the pictures.
    out: the folder of the set.
    split: a name, such as train or test.
    recipe: what is done with each.
    chosen: which of them, ascending; None: all.
    encoder: for latents; it runs in this process.
    max_bad: how many that cannot be read are left out, before that is an error.
    licence: a note on what may be done with the images, for the manifest.
    num_workers: processes; None: one for each core, 0: this one.
    shard_bytes: of pixels or latents in a shard, at most, up to MAX_SHARDS.

  Raises:
    ValueError: for a picture or an option that does not fit, another set in the folder, or a disk
      that is full.
  """
  recipe = check(recipe)
  chosen = np.arange(len(originals)) if chosen is None else chosen
  shape = first_shape(originals, chosen, recipe, max_bad)
  recipe = recipe._replace(channels=shape[-1])
  layout = _layout(originals, shape, encoder)
  stretches = _split_up(chosen, layout.num_bytes, shard_bytes)
  folder = out / split
  folder.mkdir(parents=True, exist_ok=True)
  _check_neighbours(out, split, originals.class_names, layout, encoder)
  made = _how_made(originals, chosen, recipe, encoder, licence)
  if (folder / manifest.NAME).exists():
    _, there = manifest.read(out, split)
    if there.details["made"] != made:
      raise ValueError(
        f"{folder} holds another set, made of other pictures or with other options. Take another "
        "--out or --split, or remove it first."
      )
    logger.info("%s is prepared already: %d examples.", folder, there.num_examples)
    return there
  paths = [folder / shards.name(split, k, len(stretches)) for k in range(len(stretches))]
  keys = [_key(originals, indices, made, layout) for indices in stretches]
  todo = [k for k, path in enumerate(paths) if not _is_done(path, keys[k])]
  _check_space(out, layout.num_bytes, sum(len(stretches[k]) for k in todo))
  if len(todo) < len(paths):
    logger.info("%d of %d shards are there already.", len(paths) - len(todo), len(paths))
  jobs = [Job(paths[k], stretches[k], keys[k]) for k in todo]
  work = Work(originals, recipe, shape, layout, max_bad)
  with workers(work, num_workers) as submit:
    done = _write_all(submit, jobs, encoder, layout)
    _follow(done, jobs, paths, max_bad)
  return _finish(folder, split, originals, layout, encoder, paths, made)


def splits(num: int, held_out: float | None, name: str = "train") -> list[Split]:
  """(split, its pictures; None: all): one, or train and test with a part evenly over all.

  Raises:
    ValueError: none would be held out.
  """
  if held_out is None:
    return [(name, None)]
  steps = np.floor(np.arange(num + 1) * held_out)
  is_test = np.diff(steps) > 0
  if not 0 < held_out < 1 or not is_test.any():
    raise ValueError(f"held_out={held_out} of {num} images: give a fraction, such as 0.1.")
  return [("train", np.flatnonzero(~is_test)), ("test", np.flatnonzero(is_test))]


class Job(NamedTuple):
  """A shard to write."""

  path: Path
  indices: np.ndarray
  key: str


def _write_images(work: Work, job: Job) -> Stretch:
  """One shard of pixels, whole: what a process does."""
  arrays, stretch = work.load(job.indices)
  _commit(work.layout, job, arrays, stretch)
  return stretch


def _commit(
  layout: shards.Layout, job: Job, arrays: dict[str, np.ndarray], stretch: Stretch
) -> None:
  """The shard, and then its note."""
  written = shards.write(job.path, layout.pack(arrays))
  counts = np.bincount(arrays["label"]).tolist() if layout.has_label and len(stretch.hashes) else []
  note = {"key": job.key, **written, **stretch._asdict(), "class_counts": counts}
  manifest.write_json(_note(job.path), note)


def _write_all(
  submit: Callable[..., Iterator[Any]],
  jobs: list[Job],
  encoder: Encoder | None,
  layout: shards.Layout,
) -> Iterator[Stretch]:
  """Writes the shards, in order, and yields what is known of each."""
  if encoder is None:
    yield from submit(_write_images, jobs)
    return
  # Of pixels there are never more than some pieces in memory: a shard of latents may be of 1 GB.
  size = encoder.batch_size * math.ceil(PIECE / encoder.batch_size)
  pieces = [[job.indices[i : i + size] for i in range(0, len(job.indices), size)] for job in jobs]
  loaded = submit(_load, [piece for of_job in pieces for piece in of_job])
  for job, of_job in zip(jobs, pieces, strict=True):
    arrays, stretches = [], []
    for pixels, stretch in itertools.islice(loaded, len(of_job)):
      arrays.append(pixels | encoder.encode(pixels["image"]))
      stretches.append(stretch)
    whole = {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]}
    stretch = joined(stretches)
    _commit(layout, job, whole, stretch)
    yield stretch


def _load(work: Work, indices: np.ndarray) -> tuple[dict[str, np.ndarray], Stretch]:
  return work.load(indices)


def _follow(done: Iterator[Stretch], jobs: list[Job], paths: list[Path], max_bad: int) -> None:
  """Lets the shards be written and says how far that is; stops where too much is left out."""
  before = set(paths) - {job.path for job in jobs}
  left_out = [line for path in sorted(before) for line in _read_note(path)["left_out"]]
  _check_left_out(left_out, max_bad)
  start, count, total = time.monotonic(), 0, sum(len(job.indices) for job in jobs)
  for job, stretch in zip(jobs, done, strict=True):
    left_out += stretch.left_out
    _check_left_out(left_out, max_bad)
    count += len(job.indices)
    rate = count / (time.monotonic() - start)
    logger.info(
      "%s: %s of %s, %.0f/s, %.0f s left.",
      *(job.path.name, f"{count:,}", f"{total:,}", rate, (total - count) / rate),
    )


def _check_left_out(left_out: list[str], max_bad: int) -> None:
  if len(left_out) > max_bad:
    shown = "\n  ".join(left_out[:10])
    raise ValueError(
      f"{len(left_out)} pictures cannot be read, more than --max_bad={max_bad}:\n  {shown}"
    )


def _layout(originals: Originals, shape: tuple[int, ...], encoder: Encoder | None) -> shards.Layout:
  has_label = bool(originals.class_names)
  if encoder is None:
    return shards.Layout(shape, has_label=has_label)
  return shards.Layout(encoder.shape(shape), "float32", has_std=True, has_label=has_label)


def _split_up(chosen: np.ndarray, record_bytes: int, shard_bytes: int) -> list[np.ndarray]:
  """Stretches of nearly equal length, of `shard_bytes` or a little less, at most MAX_SHARDS."""
  count = min(math.ceil(len(chosen) * record_bytes / shard_bytes), MAX_SHARDS, len(chosen))
  return np.array_split(chosen, count)


def _how_made(
  originals: Originals, chosen: np.ndarray, recipe: Recipe, encoder: Encoder | None, licence: str
) -> dict[str, Any]:
  """What the bytes of the set depend on, and the licence."""
  digest = hashlib.sha256()
  for i in map(int, chosen):
    label = "" if originals.labels is None else originals.labels[i]
    digest.update(f"{originals.names[i]}\0{label}\n".encode())
  versions = {name: metadata.version(name) for name in ("pillow", "numpy", "array_record")}
  if encoder:
    versions |= {name: metadata.version(name) for name in ("jax", "jaxlib")}
  return {
    "source": originals.kind,
    "num_pictures": len(chosen),
    "names_sha256": digest.hexdigest(),
    "picture_rules": image_files.VERSION,
    "transform": recipe.record,
    "encoder": encoder.record if encoder else None,
    "licence": licence,
    "versions": versions | {"python": platform.python_version()},
  }


def _key(
  originals: Originals, indices: np.ndarray, made: dict[str, Any], layout: shards.Layout
) -> str:
  """What a shard was made of: it is made again where this has changed."""
  digest = hashlib.sha256(json.dumps([made, layout._asdict()], sort_keys=True).encode())
  for i in map(int, indices):
    digest.update(f"{i} {originals.stamp(i)}\n".encode())
  return digest.hexdigest()


def _note(path: Path) -> Path:
  return path.with_name(path.name + NOTE)


def _read_note(path: Path) -> dict[str, Any]:
  return json.loads(_note(path).read_text())


def _is_done(path: Path, key: str) -> bool:
  """Whether a shard is there, whole, and made of what it would be made of now."""
  try:
    note = _read_note(path)
    return note["key"] == key and note["num_bytes"] == path.stat().st_size
  except (OSError, ValueError, KeyError):  # not there, or cut off when the power went
    return False


def _check_space(out: Path, record_bytes: int, count: int) -> None:
  need, free = count * (record_bytes + shards.OVERHEAD), shutil.disk_usage(out).free
  if need > free:
    raise ValueError(
      f"The set needs {need / 1e9:.2f} GB more, but the disk of {out} has {free / 1e9:.2f} GB "
      "free. Free some space, or choose another --out; what is prepared already is kept."
    )


def _check_neighbours(
  out: Path, split: str, class_names: list[str], layout: shards.Layout, encoder: Encoder | None
) -> None:
  """Raises if another split of the set has other classes, or another kind of records."""
  for path in sorted(out.glob(f"*/{manifest.NAME}")):
    if path.parent.name == split:
      continue
    _, other = manifest.read(out, path.parent.name)
    if list(other.class_names) != class_names or other.layout != layout:
      raise ValueError(
        f"Split {path.parent.name!r} in {out} has {len(other.class_names)} classes and records of "
        f"{list(other.layout.shape)}, this one {len(class_names)} and {list(layout.shape)}; or the "
        "names of the classes differ. The splits of a set must agree: take another --out, or give "
        "--labels and --num_classes."
      )
    ours = encoder.record if encoder else None
    if other.latents != ours:
      raise ValueError(
        f"Split {path.parent.name!r} in {out} has latents of another autoencoder or convention. "
        "The splits of a set must agree: take another --out."
      )


def _finish(
  folder: Path,
  split: str,
  originals: Originals,
  layout: shards.Layout,
  encoder: Encoder | None,
  paths: list[Path],
  made: dict[str, Any],
) -> manifest.Manifest:
  """Duplicates and manifest, from the notes; then the notes go, and what is of no use."""
  notes = [_read_note(path) for path in paths]
  left_out = [line for note in notes for line in note["left_out"]]
  counts = np.zeros(len(originals.class_names), int)
  for note in notes:
    counts[: len(note["class_counts"])] += np.array(note["class_counts"], int)
  groups = _duplicates(originals, notes)
  if groups:
    manifest.write_json(folder / DUPLICATES, groups)
  known = {"num_records", "num_bytes", "sha256"}
  listed = [
    manifest.Shard(path.name, **{k: v for k, v in note.items() if k in known})
    for path, note in zip(paths, notes, strict=True)
  ]
  details = {
    "class_counts": counts.tolist(),
    "converted": total_by_kind(note["converted"] for note in notes),
    "left_out": left_out,
    "passed_over": originals.passed_over,
    "duplicates": {
      "groups": len(groups),
      "examples": sum(len(group["names"]) for group in groups),
      "groups_of_several_classes": sum(len(set(group["labels"])) > 1 for group in groups),
    },
    "made": made,
  }
  record = encoder.record if encoder else None
  whole = manifest.Manifest(
    split, layout, tuple(originals.class_names), record, tuple(listed), details
  )
  manifest.write(folder, whole)
  keep = {manifest.NAME, *(path.name for path in paths), *([DUPLICATES] if groups else [])}
  for path in folder.iterdir():
    if path.name not in keep and path.name.startswith((f"{split}-", DUPLICATES, manifest.NAME)):
      path.unlink()
  return whole


def _duplicates(originals: Originals, notes: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Groups of examples with the same pixels: their names, places in the set and labels."""
  groups: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
  place = 0
  for note in notes:
    for content, i in zip(note["hashes"], note["indices"], strict=True):
      groups[content].append((place, i))
      place += 1
  labelled = originals.labels is not None
  return [
    {
      "examples": [place for place, _ in group],
      "names": [originals.names[i] for _, i in group],
      "labels": [originals.label(i) for _, i in group] if labelled else [],
    }
    for group in groups.values()
    if len(group) > 1
  ]
