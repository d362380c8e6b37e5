"""Whether warm-ups, averages and the run are as long as the run and its data make sensible.

A page that was made for another data set builds and trains without an error. What is wrong with its
lengths shows in hours, if at all. The bounds here leave every page of cmjax on its own data alone.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from cmjax import ema
from cmjax.experiment.fields import Experiment

WARMUP_OF_RUN, AVERAGE_OF_RUN = 0.5, 0.25
RAMPUP = inspect.signature(ema.half_life).parameters["rampup_ratio"].default
WARMUP_EPOCHS, AVERAGE_EPOCHS, RUN_EPOCHS = 1_000, 100, 20_000


def too_long(experiment: Experiment, num_images: int) -> list[str]:
  """What is too long for a run on so many images, a sentence each.

  Args:
    experiment: of `parse`; of parts that were handed in nothing is known.
    num_images: of the training split.
  """
  return list(_found(experiment, num_images))


def _found(experiment: Experiment, num_images: int) -> Iterator[str]:
  run, record = experiment.run, experiment.record
  seen = run.total_steps * run.batch_size
  if not seen:
    return
  epochs = lambda images: f"{images / num_images:,.0f} times {num_images:,} images"
  if seen > RUN_EPOCHS * num_images:
    yield (
      f"total_steps={run.total_steps} of batch_size={run.batch_size} see each of the "
      f"{num_images:,} images {seen / num_images:,.0f} times: the network will know them by heart. "
      "Lower total_steps."
    )
  for key, steps in _warmups(record):
    images = steps * run.batch_size
    if steps > WARMUP_OF_RUN * run.total_steps:
      yield (
        f"{key}={steps} is {steps / run.total_steps:.0%} of total_steps={run.total_steps}. Lower "
        "it: a twentieth of the run is usual."
      )
    elif images > WARMUP_EPOCHS * num_images:
      yield f"{key}={steps} lasts {epochs(images)}. Lower it, as total_steps."
  for key, images, in_images in _half_lives(record, seen, run.batch_size):
    if images > AVERAGE_OF_RUN * seen:
      yield (
        f"{key} has a half-life of {images:,.0f} images, {images / seen:.0%} of the run: the "
        "average will remember its start. Lower it: a fiftieth of the run is usual."
      )
    elif in_images and images > AVERAGE_EPOCHS * num_images:
      yield f"{key} has a half-life of {images:,.0f} images, {epochs(images)}. Lower it."


def _warmups(record: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
  """(key, steps) of the warm-ups of the loss and of the learning rate."""
  loss, optim = record.get("loss") or {}, record.get("optim") or {}
  schedule = optim.get("schedule") or {}
  for key, section in (("loss", loss), ("optim.schedule", schedule)):
    steps = section.get("warmup_steps")
    if isinstance(steps, int):
      yield f"{key}.warmup_steps", steps


def _half_lives(
  record: Mapping[str, Any], seen: int, batch_size: int
) -> Iterator[tuple[str, float, bool]]:
  """(key, images, whether the config says them) of the averages, at the end of the run."""
  for name, section in (record.get("ema") or {}).items():
    if section.get("name") == "half_life":
      ratio, most = section.get("rampup_ratio", RAMPUP), section["half_life_images"]
      yield f"ema.{name}", min(most, ratio * seen) if ratio else most, True
    elif section.get("name") == "constant" and 0 < section.get("beta", 0) < 1:
      yield f"ema.{name}", batch_size * math.log(0.5) / math.log(section["beta"]), False
