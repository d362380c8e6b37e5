"""What a run came to: a card beside every score, scores.json, the run's page."""

import collections
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cmjax import build, report, reporting, runs
from cmjax.metrics import cards
from cmjax.writing import write_json


def write_card(
  config: ConfigDict, workdir: Path, step: int, name: str, card: Mapping[str, Any]
) -> Path:
  """Completes the card of a score with what made it, and writes it to workdir/cards.

  Args:
    config: of the run that the samples are of.
    workdir: where the folder of cards is.
    step: of the weights.
    name: of the score.
    card: what an evaluator said.
  """
  known = {"step": step, "config_sha256": runs.digest(config)}
  return cards.write(workdir / "cards", f"{name}_step{step}", {**card, **known, **_where()})


def write_image_card(workdir: Path, name: str, card: Mapping[str, Any]) -> Path:
  """Writes the card of images that no run of ours has made."""
  return cards.write(workdir / "cards", name, {**card, **_where()})


def _where() -> dict[str, Any]:
  """By what, on what and when a score was computed."""
  devices = collections.Counter(device.device_kind for device in jax.devices())
  return {
    "versions": report.versions(),
    "device": ", ".join(f"{count} x {kind}" for kind, count in devices.items()),
    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  }


def finish(config: ConfigDict, workdir: Path, scores: Mapping[str, float]) -> None:
  """Writes scores.json and the run's page."""
  write_json(workdir / "scores.json", dict(scores))
  title = f"{workdir.name}: {config.loss.name} on {config.data.name}"
  reporting.report(workdir, title=title, config=config.to_dict(), scores=rows(config, scores))


def rows(config: ConfigDict, scores: Mapping[str, float]) -> list[dict[str, Any]]:
  """The scores as a table: a row for each sampler and average, its price and the floor beside."""
  table = []
  for name, value in scores.items():
    label, _, member = name.partition("/")
    sampler, _, rest = member.partition("/")
    ema, _, what = rest.partition("/")
    if not ema or sampler == "floor":
      continue
    what = f"/{what}" if what else ""
    row = {"score": f"{label}{what}", "sampler": sampler, "average": ema}
    row |= {"NFE": build.sampler_nfe(config, sampler), "value": value}
    row |= {"floor": scores.get(f"{label}/floor{what}")}
    speeds = [
      scores[f"{other}/{sampler}"]
      for other, section in config.evals.items()
      if section.name == "throughput" and f"{other}/{sampler}" in scores
    ]
    table.append(row | {"images/s": speeds[0] if speeds else None})
  return table
