"""What a run came to: its scores and a card beside each, scores.json, the run's page."""

import collections
import datetime
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cmjax.base import digests, json_files, sharding
from cmjax.base.atomic_files import write_json
from cmjax.experiment import Experiment
from cmjax.metrics import cards
from cmjax.program import identity
from cmjax.run import page, writer

logger = logging.getLogger("cmjax")
# The scores of the newest step that evaluators ran at, with the digest of the file.
EVALUATIONS = "evaluations.json"


def write_card(
  record: Mapping[str, Any],
  workdir: epath.Path,
  step: int,
  name: str,
  card: Mapping[str, Any],
  known: Mapping[str, Any] | None = None,
) -> epath.Path:
  """Completes the card of a score with what made it, and writes it to workdir/cards.

  Args:
    record: of the run that the samples are of.
    workdir: where the folder of cards is.
    step: of the weights.
    name: of the score.
    card: what an evaluator said.
    known: the identity of the run; None: not known.
  """
  of_run = {"step": step, "config_sha256": identity.digest(record)}
  of_run["trained"] = identity.facts(record, known)
  return cards.write(workdir / "cards", f"{name}_step{step}", {**card, **of_run, **_where()})


def write_image_card(workdir: epath.Path, name: str, card: Mapping[str, Any]) -> epath.Path:
  """Writes the card of images that no run of ours has made."""
  return cards.write(workdir / "cards", name, {**card, **_where()})


def _where() -> dict[str, Any]:
  """By what, on what and when a score was computed."""
  devices = collections.Counter(device.device_kind for device in jax.devices())
  return {
    "versions": page.versions(),
    "settings": identity.settings(),
    "device": ", ".join(f"{count} x {kind}" for kind, count in devices.items()),
    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  }


def keep(
  reporter: writer.Reporter,
  step: int,
  label: str,
  values: Iterator[tuple[str, Any]],
  keep_card: Callable[[int, str, Mapping[str, Any]], Any],
) -> dict[str, float]:
  """Passes what an evaluator yields to the reporter, and cards on; returns the scalars."""
  scalars, start = {}, time.perf_counter()
  for name, value in values:
    if isinstance(value, Mapping):
      keep_card(step, f"{label}_{name}", value)
    elif jnp.ndim(value):
      reporter.images(step, name, value)
    else:
      scalars[f"{label}/{name}"] = float(value)
  seconds = {f"evaluation_sec/{label}": time.perf_counter() - start}
  reporter.write(step, scalars | seconds)
  return scalars


class Scored(NamedTuple):
  """The state that evaluators look at, and by whom: by this a later sitting knows their scores.

  Attributes:
    record: the config of the run.
    identity: of the run.
    step: of the state.
    rolled_back: how often the run had been rolled back.
  """

  record: Mapping[str, Any]
  identity: Mapping[str, Any]
  step: int
  rolled_back: int

  def state(self) -> dict[str, Any]:
    """What tells the state from others."""
    config = identity.digest(self.record)
    return {"step": self.step, "rolled_back": self.rolled_back, "config_sha256": config}

  def settings(self, label: str) -> str:
    """The digest of all that an evaluator is made of: config and files."""
    files, start = self.identity.get("files") or {}, f"evals.{label}."
    guides = self.identity.get("guides")
    return digests.of_json(
      {
        "evaluator": self.record["evals"][label],
        **{key: self.record[key] for key in ("samplers", "data")},
        "files": {key: value for key, value in files.items() if key.startswith(start)},
        **({"guides": guides} if guides else {}),
      }
    )


def remember(workdir: epath.Path, scored: Scored, label: str, scalars: Mapping[str, float]) -> None:
  """Notes that an evaluator came to its end, and its scalars, for a later sitting at this step.

  They are in a file of their own, with its digest, which has those of the newest step alone.

  Args:
    workdir: of the run.
    scored: what was evaluated.
    label: of the evaluator.
    scalars: of it.
  """
  before, state = _remembered(workdir), scored.state()
  evaluators = before["evaluators"] if before.items() >= state.items() else {}
  found = {"settings": scored.settings(label), "scalars": dict(scalars)}
  write_json(
    workdir / EVALUATIONS, digests.sealed({**state, "evaluators": {**evaluators, label: found}})
  )


def _remembered(workdir: epath.Path) -> dict[str, Any]:
  """What `remember` wrote; {} where there is nothing, or it was changed since."""
  path = workdir / EVALUATIONS
  if not path.is_file():
    return {}
  try:
    found = json_files.read(path)
    if isinstance(found, dict) and digests.is_whole(found):
      return found
    why = "its digest is not that of its content"
  except ValueError as error:
    why = str(error)
  logger.warning("%s is damaged (%s): its scores are not believed, but made again.", path, why)
  return {}


def done(workdir: epath.Path, scored: Scored) -> dict[str, dict[str, float]]:
  """The evaluators that came to their end at this step in an earlier sitting, with their scalars.

  By the file of `remember`, which the first process reads; the history is for people. None whose
  settings or files are others now: then it is another score.
  """
  found = {}
  if sharding.process()[0] == 0:
    stored = _remembered(workdir)
    if stored.items() >= scored.state().items():
      found = {
        label: one["scalars"]
        for label, one in stored["evaluators"].items()
        if label in scored.record["evals"] and one["settings"] == scored.settings(label)
      }
  told = sharding.everyone(np.frombuffer(json.dumps(found).encode(), np.uint8))[0]
  found = json.loads(told.tobytes())
  if found:
    names = ", ".join(sorted(found))
    logger.info("Step %d has been evaluated already, by: %s.", scored.step, names)
  return found


def finish(
  exp: Experiment, record: Mapping[str, Any], workdir: epath.Path, scores: Mapping[str, float]
) -> None:
  """Writes scores.json and the run's page."""
  write_json(workdir / "scores.json", dict(scores))
  data = record.get("data", {}).get("name", "")
  title = f"{workdir.name}: {exp.method.name} on {data}"
  writer.report(workdir, title=title, config=dict(record), scores=rows(exp, scores))


def rows(exp: Experiment, scores: Mapping[str, float]) -> list[dict[str, Any]]:
  """The scores as a table: a row for each sampler and average, its price and the floor beside."""
  table = []
  speed = next((key for key, e in exp.evaluators.items() if e.measures_speed), None)
  for name, value in scores.items():
    label, _, member = name.partition("/")
    sampler, _, rest = member.partition("/")
    ema, _, what = rest.partition("/")
    if not ema or sampler not in exp.samplers:
      continue
    what = f"/{what}" if what else ""
    row = {"score": f"{label}{what}", "sampler": sampler, "average": ema}
    row |= {"NFE": exp.samplers[sampler].nfe, "value": value}
    row |= {"floor": scores.get(f"{label}/floor{what}")}
    table.append(row | {"images/s": scores.get(f"{speed}/{sampler}")})
  return table
