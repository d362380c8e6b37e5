"""Which length of average is best: the scores of many, made after training, and their curve."""

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from cmjax import experiment
from cmjax.base import digests, json_files, lock, paths, sharding
from cmjax.base.atomic_files import write_json, write_text
from cmjax.experiment import Experiment
from cmjax.program import averages, identity, searched_times, stored_runs
from cmjax.program.course import key_for
from cmjax.run import charts, page

logger = logging.getLogger("cmjax")
# Of an evaluator, where it scores averages of other lengths.
IRRELEVANT = ("every_steps", "at_start", "emas")


def sweep(
  workdir: str | os.PathLike[str],
  sigma_rels: Sequence[float],
  *,
  step: int | None = None,
  exp: Experiment | None = None,
) -> str:
  """Scores averages of these lengths with the run's first Frechet evaluator.

  The scores go to posthoc/sweep_{evaluator}_step{step}.json in the workdir, one at a time, and
  those that are there are not computed again; the page of the same name has the curve.

  Args:
    workdir: of a run with snapshots.
    sigma_rels: the lengths.
    step: that they end at, one with a snapshot; None: the last.
    exp: the run's experiment, where parts of it were handed in from Python; None: by its record.

  Returns:
    A table, and the best length of each sampler.

  Raises:
    ValueError: the run has no Frechet evaluator; scores of other samplers or snapshots are there.
  """
  exp = exp or experiment.parse(stored_runs.read_trained_record(workdir))
  mesh, key = experiment.make_mesh(exp.run), key_for(exp.run.seed, "evaluate")
  exp = searched_times.use(exp, workdir, stored_runs.newest_weights(workdir))
  guides = stored_runs.models(stored_runs.load_guides(exp, mesh))
  label, score = experiment.frechet_scores(exp, mesh, guides)
  with stored_runs.open_snapshots(workdir, mesh, exp.network) as snapshots:
    identity.check_trained(experiment.stored_record(exp), snapshots.run.record, workdir)
    step = averages.end_step(snapshots, step)
    recipe = averages.recipe(snapshots, sigma_rels, step)
    path = paths.place(workdir) / "posthoc" / f"sweep_{label}_step{step}.json"
    samplers = exp.evaluators[label].samplers
    evaluator = exp.record["evals"][label]
    conditions = {
      "evaluator": {k: v for k, v in evaluator.items() if k not in IRRELEVANT},
      "samplers": {name: _section(exp, name) for name in samplers},
      "seed": exp.run.seed,
      "copies": recipe.copies,
    }
    scores = _stored(path, conditions)
    missing = [s for s in sigma_rels if stored_runs.length(s) not in scores]
    for average in averages.reconstruct(snapshots, recipe.of(missing), mesh):
      scores[stored_runs.length(average.sigma_rel)] = score(average.params, key)
      logger.info(
        "sigma_rel %s: %s", average.sigma_rel, scores[stored_runs.length(average.sigma_rel)]
      )
      scores = _add(paths.place(workdir), path, conditions, scores)
  rows = [
    {"sigma_rel": s, "residual": fit.residual} | scores[stored_runs.length(s)]
    for s, fit in recipe.fits.items()
  ]
  rows.sort(key=lambda row: row["sigma_rel"])
  best = _best(workdir, rows, samplers, step)
  if sharding.process()[0] == 0:
    curve = _page(paths.absolute(paths.place(workdir)).name, label, rows, best, step)
    write_text(path.with_suffix(".html"), curve)
  return "\n".join([*_table(rows), *best, f"Curve: {path.with_suffix('.html')}"])


def _section(exp: Experiment, sampler: str) -> dict[str, Any]:
  """What the conditions of a score say of a sampler."""
  return dict(exp.samplers[sampler].record)


def _stored(path: epath.Path, conditions: dict[str, Any]) -> dict[str, dict[str, float]]:
  """The scores that are there already; raises if they were computed under other conditions."""
  if not path.is_file():
    return {}
  try:
    stored = json_files.read(path)
    if digests.is_whole(stored) is False:
      raise ValueError("it is not what a sweep wrote")
    theirs, scores = dict(stored["conditions"]), dict(stored["scores"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} is damaged ({error!r}): move it away to score all lengths anew."
    ) from None
  if digests.is_whole(stored) is None:
    logger.warning("%s has no digest, so changed scores would not be noticed.", path)
  ours = json.loads(json.dumps(conditions))
  differ = [key for key in ours if ours[key] != theirs.get(key)]
  if differ:
    raise ValueError(
      f"The scores in {path} cannot be compared with new ones: {', '.join(differ)} differ. Move "
      "the file away to score all lengths anew."
    )
  return scores


def _add(
  workdir: epath.Path,
  path: epath.Path,
  conditions: dict[str, Any],
  scores: dict[str, dict[str, float]],
) -> dict[str, dict[str, float]]:
  """Writes the scores beside those that another sweep has written meanwhile; returns all."""
  if sharding.process()[0] != 0:
    return scores
  with lock.hold(workdir, "average", wait=True):
    scores = _stored(path, conditions) | scores
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, digests.sealed({"conditions": conditions, "scores": scores}))
  return scores


def _table(rows: list[dict[str, Any]]) -> list[str]:
  columns = list(rows[0])
  cells = [columns, *([f"{row[name]:.4g}" for name in columns] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]


def _best(
  workdir: str | os.PathLike[str], rows: list[dict[str, Any]], samplers: Sequence[str], step: int
) -> list[str]:
  """For each sampler its best length, and how to have the average of that length."""
  lines = []
  for sampler in samplers:
    i = min(range(len(rows)), key=lambda i: rows[i][sampler])
    sigma_rel = rows[i]["sigma_rel"]
    at_end = "; it is at an end of the list, look beyond" * (i in (0, len(rows) - 1))
    lines.append(
      f"Best of {sampler}: sigma_rel {stored_runs.length(sigma_rel)}, "
      f"{rows[i][sampler]:.5g}{at_end}. "
      f"To keep it: python -m cmjax.ema --workdir={workdir} --sigma_rel={sigma_rel} --step={step}"
    )
  return lines


def _page(run: str, label: str, rows: list[dict[str, Any]], notes: list[str], step: int) -> str:
  x = np.array([row["sigma_rel"] for row in rows])
  names = [name for name in rows[0] if name not in ("sigma_rel", "residual")]
  lines = {name: (x, np.array([row[name] for row in rows])) for name in names}
  title = f"{label} by length of average"
  span = (float(x.min()), float(x.max()))
  card = charts.chart(title, lines, False, span, x_label="sigma_rel")
  return page.chart_page(f"{run}: {title}, step {step}", card, rows, notes)
