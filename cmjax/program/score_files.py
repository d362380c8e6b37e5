"""What a run came to: its scores and a card beside each, scores.json, the run's page."""

import collections
import datetime
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import experiment
from cmjax.base import sharding
from cmjax.base.atomic_files import write_json
from cmjax.experiment import Experiment
from cmjax.metrics import cards
from cmjax.program import stored_runs
from cmjax.run import checkpoint, page, writer

logger = logging.getLogger("cmjax")


def write_card(
  record: Mapping[str, Any], workdir: Path, step: int, name: str, card: Mapping[str, Any]
) -> Path:
  """Completes the card of a score with what made it, and writes it to workdir/cards.

  Args:
    record: of the run that the samples are of.
    workdir: where the folder of cards is.
    step: of the weights.
    name: of the score.
    card: what an evaluator said.
  """
  known = {"step": step, "config_sha256": stored_runs.digest(record)}
  return cards.write(workdir / "cards", f"{name}_step{step}", {**card, **known, **_where()})


def write_image_card(workdir: Path, name: str, card: Mapping[str, Any]) -> Path:
  """Writes the card of images that no run of ours has made."""
  return cards.write(workdir / "cards", name, {**card, **_where()})


def _where() -> dict[str, Any]:
  """By what, on what and when a score was computed."""
  devices = collections.Counter(device.device_kind for device in jax.devices())
  return {
    "versions": page.versions(),
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
  reporter.write(step, scalars | {_seconds(label): time.perf_counter() - start})
  return scalars


def _seconds(label: str) -> str:
  """The metric that says how long an evaluator took, and with that, that it came to its end."""
  return f"evaluation_sec/{label}"


def done(
  record: Mapping[str, Any], workdir: Path, restored: checkpoint.Restored
) -> dict[str, dict[str, float]]:
  """The evaluators that came to their end at this step in an earlier sitting, with their scalars.

  By the history, which the first process reads. None whose settings are no longer those with which
  the step was saved: then the history's values are those of another score.
  """
  found = {}
  if sharding.process()[0] == 0:
    at = {
      name: values[steps == restored.step][0]
      for name, (steps, values) in writer.read_metrics(workdir).items()
      if restored.step in steps
    }
    now, then = experiment.as_json(record), restored.meta["config"]
    same = all(now[key] == then.get(key) for key in ("samplers", "data"))
    for label, section in now["evals"].items():
      if same and section == then["evals"].get(label) and _seconds(label) in at:
        found[label] = {k: v for k, v in at.items() if k.startswith(f"{label}/")}
  told = sharding.everyone(np.frombuffer(json.dumps(found).encode(), np.uint8))[0]
  found = json.loads(told.tobytes())
  if found:
    names = ", ".join(sorted(found))
    logger.info("Step %d has been evaluated already, by: %s.", restored.step, names)
  return found


def finish(
  exp: Experiment, record: Mapping[str, Any], workdir: Path, scores: Mapping[str, float]
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
