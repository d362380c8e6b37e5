"""Workdirs as runs leave them, of numbers that are made up: nothing is trained."""

import io
import json

import numpy as np

from cmjax.base.atomic_files import write_json
from cmjax.metrics import cards
from cmjax.run import writer

FLOOR = 0.05


def config(method="sct", samplers=("one_step",), num_samples=2_000, **values):
  """The config of a run on digits."""
  known = {"one_step": {"name": "consistency", "mid_times": []},
           "two_step": {"name": "consistency", "mid_times": [1.1]},
           "heun": {"name": "heun", "num_steps": 18}}  # fmt: skip
  fd = {"name": "frechet", "features": "pixels", "num_samples": num_samples}
  return {
    "total_steps": 40,
    "sigma_data": 0.75,
    "data": {"name": "digits"},
    "net": {"name": "ddpmpp", "channels": 16},
    "loss": {"name": method},
    "samplers": {name: known[name] for name in samplers},
    "evals": {"fd": {**fd, "samplers": list(samplers)}},
    **values,
  }


def card(value, sampler, *, num=2_000, digest="d"):
  """The card of a score."""
  return {
    "values": {"frechet": value},
    "floor": {"frechet": FLOOR},
    "floor_num": 355,
    "score": "FD-pixels",
    "detector": {"name": "pixels"},
    "reference": {"kind": "cmjax", "digest": digest},
    "images": {"num": num},
    "rounding": "round",
    "options": {},
    "sampler": {"key": sampler, "nfe": {"one_step": 1, "two_step": 2, "heun": 35}[sampler]},
  }


def make(workdir, scores, *, record=None, steps=40, finished=True, of_card=None, loss=1.0):
  """Writes a run with {sampler: Frechet distance} at its last step; returns the workdir."""
  record = config(samplers=tuple(scores)) if record is None else record
  total = record.get("total_steps", 40)
  kept = {"fd/floor": FLOOR, **{f"fd/{name}/main": value for name, value in scores.items()}}
  with writer.Reporter(workdir, total_steps=total, batch_size=4, stream=io.StringIO()) as reporter:
    reporter.real_images(np.full((4, 8, 8, 1), 0.5))
    for step in range(10, steps + 1, 10):
      reporter.write(step, {"loss": loss + step, "tangent_norm": 2.0, "F_error": 0.5})
      for name in scores:
        reporter.images(step, f"{name}_main", np.full((4, 8, 8, 1), step / 100))
    reporter.write(
      steps, {**kept, "goodput/steps": 0.75, "goodput/compiling": 0.25, "wall_sec": 60.0}
    )
  for name, value in scores.items():
    made = card(value, name, **(of_card or {}))
    cards.write(workdir / cards.FOLDER, f"fd_{name}_main_step{steps}", made)
  (workdir / "config.json").write_text(json.dumps(record))
  if finished:
    write_json(workdir / "scores.json", kept)
  return workdir
