"""Pictures by their numbers: 000017.png is sample 17, whatever else is drawn, and by how many.

A device draws the samples of one block of numbers at a time, 0 to 63, 64 to 127 and on, whole and
in order, also where only some are wanted. So a number always stands at the same place of the same
program, and its pixels are the same bits beside any others and on any number of devices of a kind.

The folder holds `samples.json`, which says what the pictures are of. The same command goes on there
after an interruption: pictures that are whole stay as they are.
"""

import concurrent.futures
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jax.sharding import Mesh
from PIL import Image

from cmjax.base import atomic_files, digests, json_files, sharding, shared_folder, stores
from cmjax.base.atomic_files import replacing, write_json
from cmjax.base.flat_dicts import flat
from cmjax.metrics import rounding
from cmjax.metrics.progress import Progress

logger = logging.getLogger("cmjax")

RECORD = "samples.json"
AT_ONCE = 64  # samples on a device: memory does not grow with the number asked for
MOST = 10_000_000  # numbers in one call
LARGEST = 10**9
WRITERS = 8  # threads: a picture in a bucket waits for its answer
_PNG_END = b"IEND\xaeB`\x82"

# Numbers of samples -> those of them that this process has, and their samples.
Draw = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


# A value this far outside [-1, 1] would be more than half a level of 255 beyond black or white.
_EDGE = 1 + 0.5 / 127.5


class Clipped(NamedTuple):
  """How many values of samples were clipped at black or white, of how many."""

  outside: int = 0
  values: int = 0

  def add(self, samples: np.ndarray) -> "Clipped":
    """With those of more samples."""
    return Clipped(self.outside + int(np.sum(np.abs(samples) > _EDGE)), self.values + samples.size)

  def words(self) -> str:
    """For people."""
    share = self.outside / max(1, self.values)
    return (
      f"{self.outside:,} of {self.values:,} values ({share:.2%}) lay beyond black or white, and "
      "were clipped"
    )


def seeds(text: str) -> np.ndarray:
  """The numbers that a text names, ascending and each once.

  >>> seeds("3,0-2,1").tolist()
  [0, 1, 2, 3]

  Raises:
    ValueError: it names none, or too many.
  """
  allowed = f"--seeds={text!r} must be numbers and ranges, as in 0-49999 or 0-9,17"
  ranges = []
  for part in text.split(","):
    match = re.fullmatch(r"\s*(\d{1,12})\s*(?:-\s*(\d{1,12})\s*)?", part)
    if not match:
      raise ValueError(f"{allowed}.")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first or last > LARGEST:
      raise ValueError(f"{allowed}; each rising, up to {LARGEST:,}.")
    ranges.append((first, last + 1))
  count = sum(stop - start for start, stop in ranges)
  if count > MOST:
    raise ValueError(f"{allowed}; at most {MOST:,} in one call, got {count:,}.")
  return np.unique(np.concatenate([np.arange(start, stop) for start, stop in ranges]))


def name(number: int) -> str:
  """The file of a sample."""
  return f"{number:06d}.png"


def in_blocks(
  draw: Draw, numbers: np.ndarray, mesh: Mesh, at_once: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """This process's share of the samples of these numbers, a block for each device at a time."""
  wanted = np.unique(numbers // at_once)
  for start in range(0, len(wanted), mesh.size):
    blocks = wanted[start : start + mesh.size]
    # A device without a block of its own draws one that is dropped below, as nobody wants it.
    spare = wanted[-1] + 1 + np.arange(mesh.size - len(blocks))
    blocks = np.concatenate([blocks, spare])
    ids, drawn = draw((blocks[:, None] * at_once + np.arange(at_once)).reshape(-1))
    yield ids, drawn


def write(
  draw: Draw,
  to_images: Callable[[np.ndarray], np.ndarray],
  folder: epath.Path,
  numbers: np.ndarray,
  *,
  mesh: Mesh,
  made_of: Mapping[str, Any],
  what: str,
  at_once: int = AT_ONCE,
) -> str:
  """Writes the pictures of these numbers that are not there yet; every process must call it.

  Args:
    draw: the samples of numbers.
    to_images: samples -> images [n, h, w, c] in [-1, 1], c = 1 or 3.
    folder: of the pictures; made if it is not there.
    numbers: of the samples, ascending.
    mesh: whose devices draw.
    made_of: what the pictures are of: all that they depend on, as plain data.
    what: is drawn, for lines.
    at_once: how many a device draws.

  Returns:
    A line: how many there are now, and how many values were clipped.

  Raises:
    ValueError: the folder has pictures of something else.
  """
  _begin(folder, made_of)
  primary, missing = sharding.process()[0] == 0, np.zeros(0, np.int64)
  if primary:
    missing = numbers[~np.isin(numbers, _whole(folder, numbers))]
  missing = sharding.everyone(missing)[0]
  clipped, progress = Clipped(), Progress(what, len(missing))
  with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
    for ids, samples in in_blocks(draw, missing, mesh, at_once) if len(missing) else ():
      images, chosen = to_images(samples), np.isin(ids, missing)
      ids, images = ids[chosen], images[chosen]
      clipped = clipped.add(images)
      pixels = rounding.to_uint8(images, rounding.RULES[0])
      targets = [folder / name(number) for number in ids.tolist()]
      list(pool.map(_write_png, targets, pixels))  # which raises what one of them raised
      progress.add(len(ids))
  total = Clipped(*np.sum(sharding.everyone(np.array(clipped, np.int64)), axis=0).tolist())
  there = len(numbers) - len(missing)
  drawn = f"{len(missing):,} pictures drawn, {there:,} were there."
  return f"{what}: {drawn} {total.words()}." if total.values else f"{what}: {drawn}"


def _begin(folder: epath.Path, made_of: Mapping[str, Any]) -> None:
  """Makes the folder, or compares what is there with what is to be drawn, for all processes."""
  primary, refusal = sharding.process()[0] == 0, ""
  if primary:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      refusal = _refusal(folder, digests.sealed(made_of))
    except OSError as error:
      refusal = f"Cannot write pictures to {folder}: {error.strerror or error}."
  if not sharding.all_agree(not refusal, "where the pictures go"):
    raise ValueError(refusal or f"Process 0 was refused {folder}: its log says why.")
  shared_folder.check(folder, "folder of pictures")


def _refusal(folder: epath.Path, made_of: Mapping[str, Any]) -> str:
  """Why pictures of this cannot go to a folder; "" where they can, and it then says so itself."""
  atomic_files.clear_partials(folder)
  path, advice = folder / RECORD, "Take another folder (--out), or remove this one."
  if path.is_file():
    try:
      theirs = json_files.read(path)
      if not isinstance(theirs, dict) or digests.is_whole(theirs) is False:
        raise ValueError("it is not what was written")
    except ValueError as error:
      return f"{path} is damaged ({error}). {advice}"
    if theirs == made_of:
      return ""
    ours, others = flat(made_of), flat(theirs)
    keys = [key for key in sorted(ours | others) if ours.get(key) != others.get(key)]
    differ = [f"{k} ({others.get(k)} there, {ours.get(k)} now)" for k in keys if k != digests.SEAL]
    return f"{folder} has pictures of something else: {', '.join(differ[:3])}. {advice}"
  if any(file.endswith(".png") for file in stores.files(folder)):
    return f"{folder} has pictures already, and no {RECORD} that says of what. {advice}"
  write_json(path, made_of)
  return ""


def _whole(folder: epath.Path, numbers: np.ndarray) -> np.ndarray:
  """Those of the numbers whose pictures are there and whole."""
  sizes = stores.files(folder)
  found = [number for number in numbers.tolist() if sizes.get(name(number))]
  if not stores.is_remote(folder):  # where objects are whole or not at all
    found = [n for n in found if _ends(folder / name(n), sizes[name(n)])]
  return np.asarray(found, np.int64)


def _ends(path: epath.Path, size: int) -> bool:
  """Whether a PNG of so many bytes has its end."""
  with path.open("rb") as file:
    file.seek(max(0, size - len(_PNG_END)))
    return file.read() == _PNG_END


def _write_png(path: epath.Path, pixels: np.ndarray) -> None:
  with replacing(path) as file:
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG")
