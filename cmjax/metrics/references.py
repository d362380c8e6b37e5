"""Reference statistics of other programs in, ours out.

| kind | file | what is in it | detector |
|---|---|---|---|
| cmjax | .npz | mu, sigma, record; mu_s, sigma_s, feats, labels | in the record |
| adm | .npz | mu, sigma, mu_s, sigma_s; arr_0: images | inception |
| clean_fid_kernel | .npz | feats, without mu and sigma | inception |
| moments | .npz | mu, sigma: of EDM, pytorch-fid, clean-fid | inception |
| edm2 | .pkl | num_images, and mu, sigma by detector: fid, fd_dinov2 | inception or dinov2 |

Files of other programs do not say their detector; that of the table is their convention, and which
variant of it stays unknown. Of a pickle nothing is executed.

Ours have the names that the others look for, so that all of them can read it.
"""

import contextlib
import json
import logging
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from cmjax.base import digests, json_files, paths, stores
from cmjax.base.atomic_files import replacing
from cmjax.base.npz import opened
from cmjax.base.printable import shown
from cmjax.convert import files, pickles
from cmjax.convert.allowed import Array
from cmjax.convert.tensors import Budget
from cmjax.metrics import frechet
from cmjax.metrics.features import Features, Reference

logger = logging.getLogger("cmjax")

# EDM2's names of detectors.
EDM2_KEYS = {"inception": "fid", "dinov2": "fd_dinov2"}
FORMAT = 1


def read(path: str | os.PathLike[str], detector: str) -> Reference:
  """The statistics in a file.

  Args:
    path: of any kind in the table above.
    detector: the name of the one that samples are looked at with: which of EDM2's to take.

  Raises:
    ValueError: in one line, with the path: for a file of another kind, a broken one, or one whose
      numbers are no statistics.
  """
  path = paths.local(path)
  if not path.is_file():
    raise ValueError(
      f"There are no reference statistics at {path}. Make them: --mode=reference; or take those "
      "that a paper's authors publish."
    )
  try:
    with path.open("rb") as file:
      start = file.read(4)
    if start[:2] == b"PK":
      found = _from_arrays(_arrays(path))
    elif start[:1] == b"\x80":
      found = _edm2(path, detector)
    else:
      raise ValueError(f"its first bytes are {start!r}; an .npz or EDM2's .pkl is expected")
  except ValueError as error:
    message = " ".join(str(error).split())
    raise ValueError(f"{path} is no file of reference statistics: {message[:500]}") from None
  record = found.record | {"file": path.name, "sha256": files.digest(path)}
  return found._replace(record=record)


def write(path: str | os.PathLike[str], reference: Reference) -> None:
  """Writes statistics: .npz with all that there is, .pkl as EDM2 has it. Whole or not at all.

  Raises:
    ValueError: for another ending; for a .pkl of a detector that EDM2 has no name for.
  """
  _write(epath.Path(paths.local(path)), reference)


def _write(path: epath.Path, reference: Reference) -> None:
  features, record = reference.features, reference.record
  assert features.moments is not None, "statistics that are made have moments"
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".npz":
    arrays: dict[str, Any] = _statistics(features.moments)
    arrays["record"] = np.array(json.dumps(record))
    if features.spatial_moments is not None:
      arrays |= _statistics(features.spatial_moments, "_s")
    arrays |= {} if features.rows is None else {"feats": features.rows}
    arrays |= {} if features.labels is None else {"labels": features.labels}
    with replacing(path) as file:
      np.savez(file, **arrays)
    return
  key = EDM2_KEYS.get(record["detector"]["name"])
  if path.suffix != ".pkl" or key is None:
    raise ValueError(
      f"{path}: statistics are written as .npz, or as .pkl for EDM2, which has those of "
      f"{' and '.join(EDM2_KEYS)} alone."
    )
  content = {"num_images": features.num, key: _statistics(features.moments)}
  with replacing(path) as file:
    pickle.dump(content, file, protocol=4)


def kept(
  path: epath.Path,
  made_of: Mapping[str, Any],
  make: Callable[[], Reference],
  *,
  primary: bool,
  agree: Callable[[bool], bool],
) -> Reference:
  """Statistics that are made once for a run, and read in its later sittings.

  What was made is read back at once, so that all sittings have the same numbers to the last bit. A
  file that is damaged, or was made of something else, is made anew.

  Args:
    path: of the file, an .npz.
    made_of: everything that they depend on, for JSON.
    make: makes them, on all processes together.
    primary: whether this process writes the file.
    agree: whether all processes say True; each must ask.
  """
  digest = digests.of_json(made_of)
  found = _read_kept(path, digest)
  if not agree(found is not None):
    made = make()
    if primary:
      record = {**made.record, "made_of": digest}
      try:
        _write(path, made._replace(record=record))
      except (OSError, ValueError) as error:
        logger.warning("%s is not kept for later: %s.", path, error)
    agree(True)  # it is there now, or cannot be
    found = _read_kept(path, digest)
    if not agree(found is not None):
      return made
  assert found is not None, "all have read it"
  beside = ("made_of", "file", "sha256", "num_rows")
  return found._replace(record={k: v for k, v in found.record.items() if k not in beside})


def _read_kept(path: epath.Path, digest: str) -> Reference | None:
  """The statistics of a file, if they were made of what has this digest."""
  if not path.is_file():
    return None
  try:
    with _on_disk(path) as file:
      found = read(file, "")
    if found.record.get("made_of") == digest:
      return found
    why = "it was made of other data, or by another detector"
  except (ValueError, OSError) as error:
    why = str(error)
  logger.warning("%s is made anew: %s.", path, why)
  return None


@contextlib.contextmanager
def _on_disk(path: epath.Path) -> Iterator[Path]:
  """A file, or of one in a bucket a copy for as long: no arrays there can be mapped."""
  if not stores.is_remote(path):
    yield Path(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder) / path.name
    with replacing(copy) as file:
      file.write(path.read_bytes())
    yield copy


def _statistics(moments: frechet.Moments, suffix: str = "") -> dict[str, np.ndarray]:
  return {f"mu{suffix}": moments.mean, f"sigma{suffix}": moments.covariance}


def _arrays(path: Path) -> dict[str, np.ndarray]:
  try:
    with opened(path) as file:
      return {name: file[name] for name in file}
  except ValueError as error:
    raise ValueError(f"it is damaged, or holds objects ({error})") from error


def _from_arrays(arrays: dict[str, np.ndarray]) -> Reference:
  record: dict[str, Any] = {"kind": "moments", "detector": "inception", "num": None}
  if "record" in arrays:
    record = _record(arrays["record"])
  elif "arr_0" in arrays:
    record["kind"] = "adm"
  elif "mu" not in arrays and "feats" in arrays:
    record["kind"] = "clean_fid_kernel"
  elif "mu" not in arrays or "sigma" not in arrays:
    raise ValueError(
      f"it has {', '.join(sorted(arrays)) or 'nothing'}, and not mu and sigma, or feats"
    )
  rows, images = arrays.get("feats"), arrays.get("arr_0")
  num = record["num"] or 0
  if rows is not None:
    if rows.ndim != 2 or rows.dtype.kind != "f" or not len(rows):
      raise ValueError(f"feats is {rows.dtype} {list(rows.shape)}, and not floats [n, d]")
    record["num_rows"] = len(rows)
  if images is not None and (images.dtype != np.uint8 or images.ndim != 4):
    raise ValueError(
      f"arr_0 is {images.dtype} {list(images.shape)}, and not images: uint8 [n, h, w, c]"
    )
  features = Features(
    num=num,
    digest=record.get("digest", ""),
    moments=_moments(arrays, "", num),
    spatial_moments=_moments(arrays, "_s", num),
    rows=rows,
    labels=arrays.get("labels"),
  )
  return Reference(features, record, images)


def _moments(arrays: dict[str, np.ndarray], suffix: str, num: int) -> frechet.Moments | None:
  if f"mu{suffix}" not in arrays:
    return None
  if f"sigma{suffix}" not in arrays:
    raise ValueError(f"it has mu{suffix} and no sigma{suffix}")
  mu, sigma = (np.asarray(arrays[f"{name}{suffix}"]) for name in ("mu", "sigma"))
  if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
    raise ValueError(f"mu{suffix} and sigma{suffix} are {mu.dtype} and {sigma.dtype}, not floats")
  return frechet.from_covariance(mu, sigma, num or 2)


def _record(array: np.ndarray) -> dict[str, Any]:
  try:
    record = json_files.parse(str(array).encode())
    _ = record["kind"], record["num"] + 0, record["detector"]["name"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"its record cannot be read ({error!r})") from error
  if record["kind"] != "cmjax" or record.get("format") != FORMAT:
    raise ValueError(
      f"its record is of format {record.get('format')!r}; this program reads {FORMAT}"
    )
  return record


def _edm2(path: Path, detector: str) -> Reference:
  with path.open("rb") as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  found = pickles.read(data, Budget(path.stat().st_size))
  if not isinstance(found, dict):
    raise ValueError(f"it holds {shown(found)}, not a dict")
  there = [name for name, key in EDM2_KEYS.items() if isinstance(found.get(key), dict)]
  if detector not in there:
    raise ValueError(
      f"it has statistics of {', '.join(there) or 'no detector known here'}, and none of {detector}"
    )
  arrays = {name: _array(found[EDM2_KEYS[detector]].get(name), name) for name in ("mu", "sigma")}
  num = found.get("num_images")
  num = num if type(num) is int and num > 1 else 0
  record = {"kind": "edm2", "detector": detector, "num": num or None}
  return Reference(Features(num, "", moments=_moments(arrays, "", num)), record)


def _array(value: Any, name: str) -> np.ndarray:
  array = value.value if isinstance(value, Array) else value
  if not isinstance(array, np.ndarray):
    raise ValueError(f"its {name} is {shown(value)}, not an array")
  return array
