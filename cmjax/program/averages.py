"""Averages of other lengths out of the snapshots of a run, many in one pass over them."""

import contextlib
import functools
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cmjax.base import lock, paths, sharding
from cmjax.ema import posthoc
from cmjax.program import stored_runs
from cmjax.run import checkpoint
from cmjax.types import Params

logger = logging.getLogger("cmjax")
MAX_OUTPUTS = 8  # of one pass over the snapshots: each is a copy of the parameters, in float32
# What EDM2 claims as its range, 0.015 to 0.25, is below 0.025 with the copies of a full run.
LARGE_RESIDUAL = 0.05


class Reconstruction(NamedTuple):
  """An average that was made of others."""

  sigma_rel: float
  params: Params  # float32
  made_of: dict[str, Any]  # sigma_rel, step, snapshots [[step, ema, its sigma_rel, weight]], ...


def end_step(snapshots: stored_runs.Snapshots, step: int | None) -> int:
  """The step that averages are to end at: the last snapshot's, or one of the others."""
  steps = list(snapshots.emas)
  if step is None:
    return steps[-1]
  if step not in steps:
    near = sorted(sorted(steps, key=lambda s: abs(s - step))[:2])
    raise ValueError(
      f"--step={step} has no snapshot: the newest training would be in no copy. Nearest: "
      f"{', '.join(map(str, near))}."
    )
  return step


class Recipe(NamedTuple):
  """How averages of some lengths are made of the copies up to a step."""

  step: int
  copies: list[tuple[int, str, float]]  # (step, ema, sigma_rel)
  fits: dict[float, posthoc.Fit]  # by the length that is wanted

  def of(self, sigma_rels: Sequence[float]) -> "Recipe":
    """For some of the lengths only."""
    return self._replace(fits={s: self.fits[s] for s in sigma_rels})


def recipe(snapshots: stored_runs.Snapshots, sigma_rels: Sequence[float], step: int) -> Recipe:
  """Solves for the weights; warns where the copies cannot come near to a length.

  Raises:
    ValueError: as `posthoc.fit`.
  """
  stored = snapshots.emas.items()
  copies = [(t, name, s) for t, emas in stored if t <= step for name, s in emas.items()]
  times, lengths = [t for t, _, _ in copies], [s for _, _, s in copies]
  fits = {s: posthoc.fit(times, lengths, step, s) for s in sigma_rels}
  for sigma_rel, fit in fits.items():
    if fit.residual > LARGE_RESIDUAL:
      logger.warning(
        "sigma_rel %s: the profile that the %d copies give is %.0f %% off the one wanted (L2). "
        "More snapshots, or a length nearer to the stored ones, come closer.",
        *(stored_runs.length(sigma_rel), len(copies), 100 * fit.residual),
      )
  return Recipe(step, copies, fits)


def reconstruct(
  snapshots: stored_runs.Snapshots, recipe: Recipe, mesh: Mesh
) -> Iterator[Reconstruction]:
  """The averages of a recipe, in its order.

  Snapshots are read one at a time, once for each 8 lengths. The sums are in float32, and laid out
  as parameters are.

  Raises:
    ValueError: a snapshot that is needed is damaged.
  """
  step, copies = recipe.step, recipe.copies
  pairs = iter(recipe.fits.items())
  while group := list(itertools.islice(pairs, MAX_OUTPUTS)):
    weights = np.stack([fit.weights for _, fit in group], axis=1).astype(np.float32)
    sums = _sums(snapshots, copies, weights, mesh)
    for sigma_rel, fit in group:
      made_of = {
        "sigma_rel": sigma_rel,
        "step": step,
        "residual": fit.residual,
        "condition": fit.condition,
        "snapshots": [[*copy, float(w)] for copy, w in zip(copies, fit.weights, strict=True)],
      }
      yield Reconstruction(sigma_rel, sums.pop(0), made_of)


def _sums(
  snapshots: stored_runs.Snapshots,
  copies: list[tuple[int, str, float]],
  weights: np.ndarray,
  mesh: Mesh,
) -> list[Params]:
  """The weighted sums of the copies, weights [n, k]: k trees of parameters."""
  sums, add = None, None
  for step in dict.fromkeys(t for t, _, _ in copies):
    rows = {name: weights[i] for i, (t, name, _) in enumerate(copies) if t == step}
    averages = snapshots.read(step)
    if sums is None:
      zeros = functools.partial(_zeros, next(iter(averages.values())), weights.shape[1])
      sums, shardings = sharding.create(zeros, mesh)
      add = jax.jit(_add, donate_argnums=0, out_shardings=shardings)
    assert add is not None, "made with the sums"
    sums = add(sums, averages, rows)
    logger.info("Added the snapshot of step %d.", step)
  assert sums is not None, "a fit needs copies"
  return sums


def _zeros(like: Params, count: int) -> list[Params]:
  return [jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like) for _ in range(count)]


def _add(sums: list[Params], averages: dict[str, Params], rows: dict[str, Any]) -> list[Params]:
  """Each sum and its share of these copies; rows are {ema: weights [k]}."""
  for name, copy in averages.items():
    sums = [
      jax.tree.map(lambda total, x, w=rows[name][i]: total + w * x.astype(jnp.float32), one, copy)
      for i, one in enumerate(sums)
    ]
  return sums


def write(
  workdir: str | os.PathLike[str],
  sigma_rels: Sequence[float],
  mesh: Mesh,
  *,
  step: int | None = None,
) -> str:
  """Writes averages of these lengths into the run; one that is there already is left as it is.

  Args:
    workdir: of a run with snapshots.
    sigma_rels: the lengths.
    mesh: whose devices hold the averages.
    step: that they end at, one with a snapshot; None: the last.

  Returns:
    For each its name (as `stored_runs.load_average` takes it), and how well the snapshots make it.

  Raises:
    ValueError: as `reconstruct`, or one that is there was made of other snapshots.
  """
  with stored_runs.open_snapshots(workdir, mesh) as snapshots:
    step = end_step(snapshots, step)
    lines, config = {}, dict(snapshots.run.record)
    plan = recipe(snapshots, sigma_rels, step)
    for sigma_rel, fit in plan.fits.items():
      line = f"posthoc_{stored_runs.length(sigma_rel)}: step {step}, residual {fit.residual:.2g}"
      lines[sigma_rel] = f"{line}, condition {fit.condition:.2g}, {len(plan.copies)} copies"
    missing = [s for s in sigma_rels if not _is_there(workdir, s, plan)]
    for average in reconstruct(snapshots, plan.of(missing), mesh):
      with _alone(workdir):
        if _is_there(workdir, average.sigma_rel, plan):  # another process has made it meanwhile
          continue
        folder = stored_runs.posthoc_folder(workdir, average.sigma_rel)
        stored = checkpoint.Checkpoints(folder, keep=None)
        stored.save(step, {"params": average.params}, config, made_of=average.made_of)
        stored.close()
  return "\n".join(
    line + ("" if s in missing else " (was there already)") for s, line in lines.items()
  )


def _alone(workdir: str | os.PathLike[str]) -> contextlib.AbstractContextManager[Any]:
  """Keeps other processes that write averages out meanwhile: they tidy up what is half-written."""
  primary = sharding.process()[0] == 0
  path = paths.place(workdir)
  return lock.hold(path, "average", wait=True, primary=primary, agree=sharding.all_agree)


def _is_there(workdir: str | os.PathLike[str], sigma_rel: float, plan: Recipe) -> bool:
  """Whether the average is in the run already; raises if it was made of other copies."""
  folder = stored_runs.posthoc_folder(workdir, sigma_rel)
  if not (folder / "checkpoints").is_dir():
    return False
  stored = checkpoint.Checkpoints(folder, read_only=True)
  try:
    if plan.step not in stored.steps():
      return False
    used = [tuple(copy[:3]) for copy in stored.meta(plan.step)["made_of"]["snapshots"]]
  finally:
    stored.close()
  if used != plan.copies:
    raise ValueError(
      f"{folder} has an average of step {plan.step} made of {len(used)} other copies than "
      f"the {len(plan.copies)} that are there now. Move the folder away to make it anew."
    )
  return True
