"""Copies of averages, stored while training, to make averages of other lengths of (`posthoc`).

They are written as checkpoints are, but to `snapshots/<step>/`, in half precision, and all of them
are kept.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.base import param_names
from cmjax.run import checkpoint
from cmjax.types import Params

logger = logging.getLogger("cmjax")
FOLDER = "snapshots"
DTYPES = ("float16", "float32")


class Plan(NamedTuple):
  """Which averages are stored, and when."""

  every_steps: int  # and at the last step of a run
  emas: dict[str, float]  # {name: sigma_rel}
  dtype: str  # of DTYPES; a snapshot that has values beyond float16 is stored in float32


class Snapshots:
  """The snapshots of one run; without a plan, none: nothing is read or written.

  Args:
    directory: the run's workdir.
    plan: what to store.
    check: is given the stored {config, versions, ...} of the newest snapshot that is there already,
      to raise if it is another run's.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    plan: Plan | None,
    *,
    check: Callable[[dict[str, Any]], Any],
  ):
    self._plan, self._stored = plan, None
    self._cast: Callable[..., Any] | None = None
    if plan is None:
      return
    self._stored = checkpoint.Checkpoints(directory, keep=None, folder=FOLDER)
    if steps := self._stored.steps():
      check(self._stored.meta(steps[0]))

  def due(self, step: int, last: bool) -> bool:
    """Whether a snapshot of this step is wanted and not there: a resumed run writes none twice."""
    if self._plan is None or self._stored is None or step == 0:
      return False
    return (last or step % self._plan.every_steps == 0) and step not in self._stored.steps()

  def save(self, step: int, averages: Mapping[str, Params], config: Mapping[str, Any]) -> None:
    """Starts saving; returns once the averages are copied, so that they may be donated."""
    assert self._plan is not None and self._stored is not None, "nothing is due without a plan"
    state, dtype = {name: averages[name] for name in self._plan.emas}, self._plan.dtype
    if dtype == "float16":
      state, dtype = self._halved(step, state)
    self._stored.save(step, state, config, emas=self._plan.emas, dtype=dtype)

  def _halved(self, step: int, state: dict[str, Params]) -> tuple[dict[str, Params], str]:
    if self._cast is None:
      shardings = jax.tree.map(lambda x: x.sharding, state)
      self._cast = jax.jit(_halve, out_shardings=(shardings, None))
    halves, overflows = self._cast(state)
    flat = param_names.by_name(jax.device_get(overflows))
    names = [name for name, over in flat.items() if over]
    if not names:
      return halves, "float16"
    logger.warning(
      "The snapshot of step %d is stored in float32: values beyond 65504, the largest of float16, "
      "are in %d tensors, such as %s. Set snapshots.dtype='float32', or look at why they grow.",
      *(step, len(names), ", ".join(names[:3])),
    )
    return state, "float32"

  def forget_after(self, step: int) -> None:
    """Removes those of later steps, which a run that went back makes again, of other averages."""
    if self._stored is not None:
      self._stored.remove_after(step)

  def wait(self) -> None:
    """Waits for the save under way."""
    if self._stored is not None:
      self._stored.wait()

  def poll(self) -> None:
    """Raises what the save under way met, if it has ended by now."""
    if self._stored is not None:
      self._stored.poll()

  def close(self) -> None:
    """Waits for the save under way and lets go of the directory."""
    if self._stored is not None:
      self._stored.close()


def _halve(tree: Params) -> tuple[Params, Params]:
  """The tree in float16, and which of its arrays have finite values that float16 has not."""
  halves = jax.tree.map(lambda x: x.astype(jnp.float16), tree)
  over = jax.tree.map(lambda x, h: jnp.any(jnp.isfinite(x) & ~jnp.isfinite(h)), tree, halves)
  return halves, over


def check_writable(
  directory: str | os.PathLike[str],
  num_bytes: int,
  plan: Plan | None,
  total_steps: int,
  averages: Mapping[str, Params],
) -> None:
  """`checkpoint.check_writable` for the checkpoints' `num_bytes` and what the plan adds to them.

  Args:
    directory: the run's workdir.
    num_bytes: of all its checkpoints.
    plan: of its snapshots.
    total_steps: of the run.
    averages: its averages, or their shapes.
  """
  folders = ("checkpoints",)
  if plan is not None:
    values = sum(x.size for name in plan.emas for x in jax.tree.leaves(averages[name]))
    count = -(-total_steps // plan.every_steps)
    num_bytes += count * values * jnp.dtype(plan.dtype).itemsize
    folders += (FOLDER,)
  checkpoint.check_writable(directory, num_bytes, folders)
