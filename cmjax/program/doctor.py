"""The instability doctor: what goes wrong in a run, seen early, located, and acted on as asked.

Four things end runs of continuous-time consistency models, and most of them silently: a tangent
that grows from one time on, a derivative in too low a precision, one module that overflows, and
what all these come to, a loss that is not finite. `config.doctor` says what to look for:

  spike_factor         a gradient or tangent norm this many times its recent median is a spike
  on_spike             "warn", "stop", or "roll_back" to the last checkpoint
  probe_every_steps    how often the jvp is compared with a difference in float64; None: never

A loss or gradient that is not finite is `config.nonfinite`'s: "stop", "skip", or "roll_back".
"""

import logging
import statistics as numbers
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.base import sharding
from cmjax.experiment import Run, Samples
from cmjax.losses import means
from cmjax.program import first_nonfinite, jvp_check
from cmjax.training.step import TrainState
from cmjax.types import Array, Batch, LossFn, Metrics, Network, Params

logger = logging.getLogger("cmjax")

# A median of fewer steps is none; older steps say nothing of the next.
LEAST, WINDOW = 20, 200
WATCHED = ("grad_norm", "tangent_norm")
# So many are told one by one, and then the 10th, 100th, 1000th: a log is to be read.
TOLD = 3
# After so many without a step in between that went well, the run is beyond these means.
MOST_ROLL_BACKS, MOST_SKIPPED = 3, 100


class RollBack(Exception):
  """Asks the train loop to go back to its last good checkpoint."""

  def __init__(self, step: int, why: str):
    super().__init__(why)
    self.step = step  # whose update is the reason


class Spikes:
  """Steps whose gradient or tangent norm stands out.

  Args:
    factor: times the median of the last 200 good steps; None: none does.
  """

  def __init__(self, factor: float | None):
    self.count = 0
    self._factor = factor
    self._past: dict[str, deque[float]] = {}

  def see(self, step: int, metrics: Mapping[str, means.Mean]) -> str:
    """Takes the metrics of a step; says what stands out, and where in time, or nothing."""
    if self._factor is None:
      return ""
    ratios, values = {}, {}
    for name, mean in metrics.items():
      if name.partition("/")[0] not in WATCHED or not float(mean.count):
        continue
      values[name] = value = float(mean.total) / float(mean.count)
      past = self._past.setdefault(name, deque(maxlen=WINDOW))
      if len(past) >= LEAST and (median := numbers.median(past)) > 0:
        ratios[name] = (value / median, value, median)
    whole = {name: r for name, r in ratios.items() if name in WATCHED and r[0] > self._factor}
    if not whole:
      for name, value in values.items():  # keep spikes out of their median
        self._past[name].append(value)
      return ""
    self.count += 1
    parts = [
      f"{name} {value:.3g} is {ratio:.0f} times its recent median ({median:.3g})"
      for name, (ratio, value, median) in whole.items()
    ]
    bins = {name: r for name, r in ratios.items() if "/" in name}
    if bins:
      worst = max(bins, key=lambda name: bins[name][0])
      ratio, value, _ = bins[worst]
      parts.append(f"most in {worst.partition('/')[2]} ({value:.3g}, {ratio:.0f} times)")
    return f"Step {step}: {'; '.join(parts)}."


class Probe:
  """The error of the network's jvp at training precision, against float64, by time bin.

  The truth is a central difference in float64, computed on the CPU; the jvp runs where the run
  does, in the precision of its tangent.
  """

  def __init__(self, network: Network, samples: Samples, tangent: Mapping[str, Any]):
    if network.at is None:
      raise ValueError(
        "doctor.probe_every_steps compares the network with itself in float64, and this network "
        "has no `at` to make that: use an adapter of cmjax.networks, or set it to None."
      )
    self._network = network
    _, self._policy = jvp_check.policies(network, tangent)
    self._samples = samples
    self._inputs = jvp_check.inputs(samples, network.inputs)
    self._run = jax.jit(jvp_check.F_and_slope(network.at(**self._policy).apply))
    self._wide = network.at(dtype="float64").apply
    self._truth = jax.jit(jvp_check.central_difference(self._wide))

  def __call__(self, params: Params) -> tuple[dict[str, float], str]:
    """Relative errors, as jvp_error and jvp_error/t0.00-0.26 ..., and what is wrong, or nothing.

    Args:
      params: of the network, whole on every device or on the host.
    """
    given = jvp_check.in_dtype(self._inputs, np.float32)
    slope = jax.device_get(self._run(params, *given)[1])
    with jax.enable_x64(True), jax.default_device(sharding.host_device()):
      wide, given = jvp_check.in_dtype((params, self._inputs), np.float64)
      truth = jax.device_get(self._truth(wide, *given))
      errors = jvp_check.relative_errors(slope, truth)
      metrics = {"jvp_error": float(np.max(errors))}
      metrics |= {
        f"jvp_error/{label}": float(e) for label, e in zip(means.BINS, errors, strict=True)
      }
      allowed = jvp_check.PRECISION[self._policy["dtype"]][1]
      if metrics["jvp_error"] <= allowed:
        return metrics, ""
      wrong = jvp_check.first_wrong(self._wide, wide, given, tolerance=1e-3)
    worst = means.BINS[int(np.argmax(errors))]
    text = (
      f"dF/dt by jvp in {self._policy['dtype']} is off by {metrics['jvp_error']:.2g} in {worst} "
      f"(at most {allowed:g} is expected)"
    )
    if wrong:
      return metrics, f"{text}: the derivative does not match the function, from {wrong} on."
    culprit, share = jvp_check.most_sensitive(self._network, self._samples, params)
    return metrics, (
      f"{text}: rounding, to which the weights of {culprit} are most sensitive (bfloat16 there "
      f"alone makes {share:.2g}). Set loss.tangent.dtype='float32', or keep them in float32."
    )


class Window:
  """The metrics of the steps since the last record; those of the newest are not waited for."""

  def __init__(self, run: Run, explain: Callable[[int, Batch], str], skipped: int = 0):
    self.latest: dict[str, float] = {}  # of the last record, for the live line
    self.skipped = skipped  # in the whole run
    self._in_a_row = 0
    self._policy, self._on_spike = run.nonfinite, run.on_spike
    self._explain = explain
    self._spikes = Spikes(run.spike_factor)
    self._num_steps = run.steps_per_dispatch
    self._pending: tuple[int, Metrics, tuple[Batch, ...]] | None = None
    self._metrics: list[dict[str, Any]] = []
    self._steps = 0  # since the last record, skipped ones among them

  def add(self, step: int, metrics: Metrics, batches: tuple[Batch, ...]) -> None:
    """Takes the metrics of the steps up to this one, and reads those before them."""
    self.read()
    self._pending = (step, metrics, batches)

  def clear(self) -> None:
    """Forgets what no record has yet."""
    self._pending, self._metrics, self._steps = None, [], 0

  def flush(self) -> dict[str, float]:
    """The means since the last flush, and what was counted in the run (spikes: in this sitting).

    Waits for the newest step; empty if there was none.
    """
    self.read()
    if not self._steps:
      return {}
    self.latest = means.merge(self._metrics)
    self.latest |= {"skipped": float(self.skipped), "spikes": float(self._spikes.count)}
    self._metrics, self._steps = [], 0
    return dict(self.latest)

  def read(self) -> None:
    """Waits for the metrics of the newest steps; raises if there is one to stop or go back at."""
    if self._pending is None:
      return
    last, metrics, batches = self._pending
    metrics = jax.device_get(metrics)
    self._pending = None
    for i, batch in enumerate(batches):
      one = jax.tree.map(lambda a, i=i: a[i], metrics) if self._num_steps > 1 else metrics
      self._look(last - len(batches) + i + 1, one, batch)

  def _look(self, step: int, metrics: Metrics, batch: Batch) -> None:
    self._steps += 1
    if metrics["nonfinite"].total:
      self._nonfinite(step, metrics, batch)
      return
    self._in_a_row = 0
    self._metrics.append(metrics)
    if what := self._spikes.see(step, metrics):
      if self._on_spike == "roll_back":
        raise RollBack(step, what)
      if self._on_spike == "stop":
        raise FloatingPointError(f"{what} doctor.on_spike='stop'.")
      if is_told(self._spikes.count):
        logger.warning("Spike. %s%s", what, _more(self._spikes.count, "spikes"))

  def _nonfinite(self, step: int, metrics: Metrics, batch: Batch) -> None:
    what = (
      f"The loss or a gradient of step {step} is not finite (loss {metrics['loss'].total:.4g}, "
      f"gradient norm {metrics['grad_norm'].total:.4g})."
    )
    self._in_a_row += 1
    if self._in_a_row == 1:
      what = f"{what} {self._explain(step, batch)}"
    if self._policy == "roll_back":
      raise RollBack(step, what)
    if self._policy == "stop":
      raise FloatingPointError(
        f"{what} nonfinite='stop': parameters and checkpoints are as they were before that step. "
        "Look at tangent_norm in metrics.jsonl; --config.nonfinite=skip goes on without it."
      )
    if self._in_a_row > MOST_SKIPPED:
      raise FloatingPointError(
        f"{what} nonfinite='skip', but so were the {MOST_SKIPPED} steps before it: the "
        "weights themselves must be at fault. Go on from an earlier checkpoint."
      )
    self.skipped += 1
    if is_told(self.skipped):
      more = _more(self.skipped, "skipped")
      told = "%s Skipped it, as nonfinite='skip' says (%d so far).%s"
      logger.warning(told, what, self.skipped, more)


def is_told(count: int) -> bool:
  """Whether the warning of this number is written: of the first few, then at powers of ten."""
  return count <= TOLD or count == 10 ** (len(str(count)) - 1)


def _more(count: int, name: str) -> str:
  """Beside the last warning that follows at once, and later ones: where all are counted."""
  if count < TOLD:
    return ""
  following = 10 ** len(str(count))
  return f" The next that is told is number {following:,}; metrics.jsonl counts them: {name}."


def check_finite(state: TrainState, policy: str) -> None:
  """Raises if what is about to be saved is not finite: it would replace checkpoints that are."""
  if _all_finite(state):
    return
  step = int(state.step)
  what = f"The state of step {step} is not finite, though the losses and gradients up to it were."
  if policy == "roll_back":
    raise RollBack(step, what)
  raise FloatingPointError(
    f"{what} It was not saved. The same command goes on from the checkpoint before; if it happens "
    "at the same step again, lower the learning rate, else suspect the memory of this machine."
  )


@jax.jit
def _all_finite(tree: Any) -> Array:
  """Whether every number of a tree is finite."""
  floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  return jnp.all(jnp.asarray([jnp.isfinite(x).all() for x in floats]))


def locate(loss_fn: LossFn, params: Params, batch: Batch, key: Array, step: Array) -> str:
  """Where a loss or its gradient stops being finite, in words.

  Args:
    loss_fn: of the run, with all that is frozen in it.
    params: of the step, or of the one after it.
    batch: of the step.
    key: the step's own, as the loss got it.
    step: its number.
  """

  def fn(params, batch, key):
    return jax.value_and_grad(lambda p: loss_fn(p, batch, key, step), has_aux=True)(params)

  try:
    found = first_nonfinite.first_nonfinite(fn, params=params, batch=batch, key=key)
  except Exception as error:  # to look for the cause must not hide the fault itself
    return f"Where it is was not found out: {type(error).__name__}: {error}."
  if found is None:
    return "Computed again, one equation at a time, all of it is finite: rounding decides."
  text = str(found)
  return f"{text[0].upper()}{text[1:]}."
