"""What makes a run what it is: its config, and what no config shows.

The identity of a run is the content of its data, the weights of its teacher, the files that its
loss reads, and how JAX draws random numbers and computes. It is stored beside every state, and
compared when a run goes on, and when somebody samples or scores it.

Digests are cheap. Data in memory count whole up to 256 MiB, and a prepared set by the sha256 of its
shards. Of other data 512 elements count, evenly spaced: a change of one element in a large folder
is not seen. `looked_at` says how many elements counted.
"""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from etils import epath

from cmjax import experiment
from cmjax.base import digests, place
from cmjax.base.atomic_files import append_line
from cmjax.base.flat_dicts import flat
from cmjax.data import published_sets, sources
from cmjax.experiment import Experiment
from cmjax.run import checkpoint

logger = logging.getLogger("cmjax")

# Config keys that may change when a run is resumed: duration, logging, placement; never the
# experiment itself.
FREE = (
  *("total_steps", "log_every_steps", "checkpoint", "evals", "samplers", "mesh", "nonfinite"),
  *("snapshots", "microbatch", "steps_per_dispatch", "doctor"),
  *("net.remat", "net.scan", "net.attention"),  # how it is computed
  *("data.records.vae", "data.records.cache"),  # for images of samples; where a bucket is mirrored
  *(f"data.{name}.{key}" for name in published_sets.SOURCES for key in ("cache", "url")),
  *("data.threads", "data.prefetch"),  # how they are read
)
# Keys that may also change when a run is sampled or scored: no sample depends any more on how the
# weights were trained (PAST), and the noise may be another (DRAWN). The record keeps the run's own.
PAST = ("optim", "batch_size", "init_from", "teacher", "deterministic")
DRAWN = ("seed",)
# Of data: where they are. What they are is told by their digest.
PLACES = ("path", "data_dir", "cache", "url")

# What a config means that does not say it: those of before this setting could not.
UNSAID = {"deterministic": False}

# The values of the config that were changed between two sittings, because the user asked for it.
CHANGES = "config_changes.jsonl"

# What a step computes depends on these settings of JAX.
SETTINGS = (
  *("jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset"),
  *("jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion"),
  *("jax_disable_most_optimizations", "jax_optimization_level"),
)
MOST_ELEMENTS = 512  # of data that are read from files
MOST_BYTES = 2**24  # of them
MOST_BYTES_IN_MEMORY = 2**28
EXAMPLES = "data (number of examples)"


def of(
  exp: Experiment,
  data: sources.Source,
  teacher: Mapping[str, Any] | None = None,
  guides: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
  """The identity of a run beside its config, as it is stored with a state.

  Args:
    exp: the experiment.
    data: its training split.
    teacher: step and digest of the weights that it distils; None: it distils none.
    guides: the same of the models that lead its samplers, by the sampler's key. They may change
      between two sittings, as samplers may: scores that others made are made again.
  """
  return {
    "data": of_data(data),
    "teacher": None if teacher is None else dict(teacher),
    "guides": dict(guides),
    "files": _files(exp.record),
    "jax": settings(),
  }


def settings() -> dict[str, Any]:
  """The settings of JAX that random numbers and products depend on."""
  there = jax.config.values
  return {name: _plain(there[name]) for name in SETTINGS if name in there}


def of_data(data: sources.Source) -> dict[str, Any]:
  """Digest, length, shape and classes of a split, and how much of it was looked at.

  Names of classes are in no digest: they are for pictures.
  """
  facts: dict[str, Any] = {"num_examples": len(data), "shape": list(map(int, data.shape))}
  facts["num_classes"] = int(data.num_classes)
  names = list(map(str, getattr(data, "class_names", None) or ()))
  told = {"class_names": names} if names else {}
  if shards := (data.record or {}).get("shards_sha256"):
    return facts | told | {"digest": digests.of_json([facts, shards]), "looked_at": len(data)}
  whole = hashlib.sha256(json.dumps(facts).encode())
  chosen = _chosen(data)
  for start in range(0, len(chosen), 256):
    for name, array in sorted(data.take(chosen[start : start + 256]).items()):
      array = np.asarray(array)
      whole.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
      whole.update(np.ascontiguousarray(array).tobytes())
  return facts | told | {"digest": whole.hexdigest(), "looked_at": len(chosen)}


def _chosen(data: sources.Source) -> np.ndarray:
  """Which elements of a source its digest is of: all, or some that are evenly spaced."""
  if not len(data):
    return np.arange(0)
  num_bytes = max(1, sum(np.asarray(value).nbytes for value in data[0].values()))
  if isinstance(data, sources.ArraySource):
    limit = MOST_BYTES_IN_MEMORY // num_bytes
  else:
    limit = min(MOST_ELEMENTS, MOST_BYTES // num_bytes)
  return sources.spread(len(data), max(16, limit))


def _files(record: Mapping[str, Any]) -> dict[str, str]:
  """{key: digest} of the files that the loss and the evaluators of a config name."""
  named = flat({key: record[key] for key in ("loss", "evals") if key in record})
  found = {}
  for key, value in named.items():
    if isinstance(value, str) and Path(value).suffix:
      path = Path(value).expanduser()
      if path.is_file():
        found[key] = digests.of_files([path])
  return found


def _plain(value: Any) -> Any:
  value = getattr(value, "value", value)  # of an enum
  return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _named(identity: Mapping[str, Any]) -> dict[str, Any]:
  """What must not differ between two sittings, by names for messages; digests are shortened."""
  data, teacher = identity.get("data") or {}, identity.get("teacher") or {}
  files = identity.get("files") or {}
  short = lambda digest: digest and digest[:16]
  named = {
    EXAMPLES: data.get("num_examples"),
    "data (content)": short(data.get("digest")),
    "teacher (step of its weights)": teacher.get("step"),
    "teacher (content of its weights)": short(teacher.get("digest")),
    **{f"{key} (content of the file)": short(files[key]) for key in files if key[:5] == "loss."},
  }
  known = {name: value for name, value in named.items() if value is not None}
  return known | dict(identity.get("jax") or {})


def config_changes(
  record: Mapping[str, Any], stored: Mapping[str, Any], free: tuple[str, ...] = FREE
) -> dict[str, tuple[Any, Any]]:
  """{key: (stored, now)} of what two configs differ in, but for the keys and sections in `free`."""
  ours, theirs = (UNSAID | flat(experiment.as_json(one)) for one in (record, stored))
  return {
    key: (theirs.get(key, "not set"), ours.get(key, "not set"))
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key) and not _is_of(key, free)
  }


def changes(
  record: Mapping[str, Any], meta: Mapping[str, Any], identity: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """{key: (stored, now)} of what may not differ between two sittings of one run, and does."""
  ours, theirs = _named(identity), _named(meta.get("identity") or {})
  if "num_examples" in meta:  # all that older checkpoints know of their data
    theirs.setdefault(EXAMPLES, meta["num_examples"])
  shared = [key for key in ours if key in theirs]
  differ = {key: (theirs[key], ours[key]) for key in shared if ours[key] != theirs[key]}
  return config_changes(record, meta["config"]) | differ


def check_same_run(
  record: Mapping[str, Any],
  meta: Mapping[str, Any],
  what: str = "snapshots",
  *,
  identity: Mapping[str, Any],
  allow_change: bool = False,
) -> dict[str, tuple[Any, Any]]:
  """Raises if what is in the workdir was made with other values than this run's.

  Args:
    record: of this run.
    meta: what is beside the stored state.
    what: is stored, in the plural.
    identity: of this run.
    allow_change: do not raise.

  Returns:
    {key: (stored, now)} of what is another value now.
  """
  found = changes(record, meta, identity)
  if found and not allow_change:
    raise ValueError(
      f"The config does not fit the {what} in the workdir:\n  "
      + "\n  ".join(_sentence(key, *values, what) for key, values in found.items())
      + "\nTake the old values, another --workdir, or --allow_config_change to go on with the new."
    )
  return found


def record_changes(
  workdir: str | os.PathLike[str],
  record: Mapping[str, Any],
  restored: checkpoint.Restored,
  identity: Mapping[str, Any],
) -> None:
  """Logs what is other than when the checkpoint was made, and adds a line for it to CHANGES.

  Versions are recorded too: a run may go on with others, but not without a word.
  """
  meta = restored.meta
  if not meta.get("identity"):
    logger.info(
      "The checkpoint of step %d does not say the content of its data and teacher, nor the "
      "settings of JAX it was made with: not known, so not compared.",
      restored.step,
    )
  differ = changes(record, meta, identity)
  now, then = checkpoint.versions(), meta.get("versions") or {}
  differ |= {
    f"version of {name}": (then[name], now[name])
    for name in now
    if name in then and then[name] != now[name]
  }
  if not differ:
    return
  for key, values in differ.items():
    logger.warning("Goes on with a changed config: %s.", _sentence(key, *values, "checkpoints"))
  values = {key: {"old": old, "new": new} for key, (old, new) in differ.items()}
  line = {"step": restored.step, "changes": values}
  appends = place.capabilities(workdir).appends
  append_line(epath.Path(workdir) / CHANGES, json.dumps(line), appends=appends)


def _sentence(key: str, stored: Any, now: Any, what: str) -> str:
  return f"{key}: {stored} in the {what.removesuffix('s')}, {now} now"


def digest(record: Mapping[str, Any]) -> str:
  """The sha256 of what makes a run what it is: of its record without the keys in `FREE`."""
  values = flat(experiment.as_json(record))
  kept = {key: value for key, value in values.items() if not _is_of(key, FREE)}
  return digests.of_json(kept)


# --- a run that is sampled or scored --------------------------------------------------------------


def check_trained(
  record: Mapping[str, Any], stored: Mapping[str, Any], workdir: str | os.PathLike[str]
) -> None:
  """Raises if a config to sample or score a run with is not the run's own.

  Samplers, evaluators, the mesh, the seed of the noise and where the data are may be others. How
  the run was trained is told where it differs, and nothing else.

  Args:
    record: of the config that was given.
    stored: the config beside the weights.
    workdir: of the run, for the message.
  """
  said = lambda found: [f"{key} ({a} in the run, {b} given)" for key, (a, b) in found.items()]
  differ = config_changes(record, stored, (*FREE, *DRAWN))
  found = {key: values for key, values in differ.items() if not _is_place(key)}
  past = {key: values for key, values in found.items() if key.split(".")[0] in PAST}
  if past:
    logger.info(
      "%s was trained with other values than those given: %s. Nothing here depends on them.",
      *(workdir, ", ".join(said(past))),
    )
  if len(past) == len(found):
    return
  told = said({key: values for key, values in found.items() if key not in past})
  more = f" and {len(told) - 4} more" if len(told) > 4 else ""
  raise ValueError(
    f"The run in {workdir} was made with another config than the one given: "
    f"{', '.join(told[:4])}{more}. Leave these flags out, or give --workdir alone, without "
    "--config; only samplers, evaluators, mesh and seed may be others here."
  )


def _is_of(key: str, names: tuple[str, ...]) -> bool:
  """Whether a key, or the section that it is in, is one of these."""
  return key in names or key.split(".")[0] in names


def _is_place(key: str) -> bool:
  return key.startswith("data.") and key.rpartition(".")[2] in PLACES


def with_checked_data(
  exp: Experiment, stored: Mapping[str, Any] | None, workdir: str | os.PathLike[str]
) -> Experiment:
  """The experiment with data that are compared with the run's own when they are opened.

  Args:
    exp: the run's experiment; its data may be at another place.
    stored: the identity of the run; None: it has none.
    workdir: of the run, for the message.
  """
  expected, opened = ((stored or {}).get("data") or {}), exp.source
  if not expected.get("digest"):
    logger.info("%s does not say the content of its data: not known, so not compared.", workdir)
    return exp

  @functools.wraps(opened)
  def source(split: str) -> sources.Source:
    data = opened(split)
    if split == "train" and (found := of_data(data))["digest"] != expected["digest"]:
      raise ValueError(
        f"The data of the config are not those that the run in {workdir} was trained on: "
        f"{found['num_examples']:,} examples with digest {found['digest'][:16]} here, "
        f"{expected['num_examples']:,} with {expected['digest'][:16]} in the run. Put the old data "
        "back, or name their place in config.data."
      )
    return data

  checked: Callable[[str], sources.Source] = functools.cache(source)
  own = exp.source is exp.parsed.get("source")
  return exp._replace(
    source=checked, parsed={**exp.parsed, "source": checked} if own else exp.parsed
  )


def facts(record: Mapping[str, Any], stored: Mapping[str, Any] | None) -> dict[str, Any]:
  """What a card says of the run that was scored.

  Args:
    record: of the run.
    stored: its identity; None: not known.
  """
  data, net, loss = (record.get(key) or {} for key in ("data", "net", "loss"))
  known = (stored or {}).get("data") or {}
  return {
    "sigma_data": record.get("sigma_data"),
    "method": loss.get("name"),
    "sigma_min": loss.get("sigma_min"),
    "network": net.get("name"),
    "num_classes": net.get("num_classes", 0),
    "data": {"name": data.get("name"), "digest": known.get("digest")},
  }
