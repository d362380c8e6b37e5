"""The intermediate times that were searched for a run: how they are kept, and who takes them."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from cmjax.base import digests, json_files, lock, paths
from cmjax.base.atomic_files import write_json
from cmjax.experiment import Experiment, Sampler

logger = logging.getLogger("cmjax")

# Intermediate times of few-step samplers, by the sampler's key; written by mode search.
FILE = "sampler_times.json"


def write(workdir: str | os.PathLike[str], found: Mapping[str, Mapping[str, Any]]) -> None:
  """Adds the times that a search found, {sampler: {mid_times, weights, ...}}, to the run's."""
  path = paths.place(workdir) / FILE
  with lock.hold(path.parent, "search", wait=True):  # so that none of another search is lost
    try:
      before = _read(path)
    except ValueError as error:
      logger.warning("%s It is written anew.", error)
      before = {}
    write_json(path, before | {key: digests.sealed(one) for key, one in found.items()})


def use(
  exp: Experiment, workdir: str | os.PathLike[str], weights: Mapping[str, Any] | None
) -> Experiment:
  """The experiment with the intermediate times that were searched for these weights of a run.

  Times that were searched for other weights are not used, and a line says so.

  Args:
    exp: its samplers.
    workdir: of the run.
    weights: their step and digest, of `stored_runs.weights_of`; None: not known.

  Raises:
    ValueError: in one line, where the file is damaged.
  """
  path, samplers = paths.place(workdir) / FILE, dict(exp.samplers)
  for key, found in _read(path).items():
    sampler = samplers.get(key)
    if sampler is None:
      logger.info("%s has times for samplers.%s, which is not there: not used.", path, key)
      continue
    if not sampler.searched or not sampler.with_times:
      continue
    mid = _checked(found, sampler, f"{path}: {key}")
    if not _fits(mid, sampler, f"samplers.{key}: {path}"):
      continue
    if not _are_of(found, weights, f"samplers.{key}: {path}"):
      continue
    samplers[key] = sampler.with_times(mid)
    logger.info("samplers.%s: mid_times=%s, from %s.", key, list(mid), path)
  return exp._replace(samplers=samplers)


def _read(path: epath.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    content = json_files.read(path)
    if not isinstance(content, dict) or not content:
      raise ValueError("it is no table of samplers")
  except ValueError as error:
    raise ValueError(_damaged(str(path), error)) from None
  return content


def _damaged(what: str, why: object) -> str:
  return f"{what} is damaged ({why}): search again, or remove the file."


def _checked(found: Any, sampler: Sampler, what: str) -> tuple[float, ...]:
  """The times of an entry.

  Raises:
    ValueError: there are none, they were changed, or they are no angles that decrease from the
      sampler's first.
  """
  mid = found.get("mid_times") if isinstance(found, Mapping) else None
  if not isinstance(mid, list) or not mid or not all(type(t) in (int, float) for t in mid):
    raise ValueError(_damaged(what, "it has no list of numbers as mid_times"))
  if digests.is_whole(found) is False:
    raise ValueError(_damaged(what, "it is not what the search wrote"))
  angles = [float(sampler.times[0]), *mid, 0.0]
  if not all(a > b for a, b in zip(angles, angles[1:], strict=False)):
    raise ValueError(
      _damaged(what, f"mid_times={mid} do not decrease from {angles[0]:.4f}, the first, to 0")
    )
  return tuple(map(float, mid))


def _fits(mid: tuple[float, ...], sampler: Sampler, what: str) -> bool:
  """Whether a sampler has as many intermediate times; with a word where it has not."""
  count = len(sampler.times) - 1
  if len(mid) != count:
    logger.warning(
      "%s has %d times for a sampler that has %d now: not used. Search again.",
      *(what, len(mid), count),
    )
  return len(mid) == count


def _are_of(found: Mapping[str, Any], weights: Mapping[str, Any] | None, what: str) -> bool:
  """Whether times are of these weights, as far as that is known; with a word where it is not."""
  ours, theirs = weights or {}, found.get("weights")
  if not isinstance(theirs, Mapping):
    theirs = {"step": found.get("step")}
  known = lambda key: ours.get(key) is not None and theirs.get(key) is not None
  shared = [key for key in ("step", "digest") if known(key)]
  differ = [key for key in shared if ours[key] != theirs[key]]
  if differ:
    logger.warning(
      "%s has times that were searched for other weights (step %s; now step %s): they are not "
      "used. Search again.",
      *(what, theirs.get("step"), ours.get("step")),
    )
    return False
  if "digest" not in shared or digests.is_whole(found) is None:
    logger.warning("%s does not say for which weights its times were searched: not known.", what)
  return True
