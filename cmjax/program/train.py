"""Training: from a config and a workdir to a trained model, in as many sittings as it takes."""

import contextlib
import functools
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax import experiment
from cmjax.base import lock, sharding
from cmjax.base.atomic_files import write_json
from cmjax.program import compiled_step, doctor, score_files, stored_runs
from cmjax.run import checkpoint, writer
from cmjax.run.snapshots import Snapshots, check_writable
from cmjax.training import microbatch
from cmjax.training.step import TrainState
from cmjax.types import Array, Batch, Model, Network, Params

logger = logging.getLogger("cmjax")

# EX_TEMPFAIL: the state is saved; start the same command again. Schedulers can requeue on it.
INTERRUPTED = 75

KEYS = (
  *("seed", "total_steps", "batch_size", "sigma_data", "data", "net", "loss", "optim", "ema"),
  *("init_from", "teacher", "samplers", "evals", "log_every_steps", "checkpoint", "mesh"),
  "nonfinite",
)  # and what may be left out: snapshots, microbatch, steps_per_dispatch, doctor

# One seed, one key for each.
PURPOSES = ("initialise", "train", "evaluate")


class Interrupted(SystemExit):
  """SIGTERM or SIGINT came: the state is saved, and the process exits with code 75."""

  def __init__(self, step: int):
    super().__init__(INTERRUPTED)
    self.step = step


def train(
  config: ConfigDict, workdir: str | Path, *, allow_config_change: bool = False
) -> dict[str, float]:
  """Trains, or goes on training, until config.total_steps.

  The workdir then holds config.json, parameters.txt, checkpoints/, metrics.jsonl, tensorboard/,
  samples/, cards/, scores.json and report.html, and with config.snapshots also snapshots/. A run
  goes on from its newest good checkpoint; one that was killed at any moment ends with the same
  state, bit for bit, as one that was not.

  Args:
    config: as in `configs/`.
    workdir: of this run; made if it is not there.
    allow_config_change: go on although the checkpoint was made with other values: they are logged,
      and kept in config_changes.jsonl. What the state has no place for is refused all the same.

  Returns:
    The last value of every evaluator.

  Raises:
    ValueError: the config, the data, the workdir or its checkpoints do not fit, or another run
      trains in the workdir.
    FloatingPointError: a loss or gradient was not finite and config.nonfinite is "stop".
    Interrupted: on SIGTERM or SIGINT, after saving.
  """
  workdir = Path(workdir).absolute()
  _check(config)
  with lock.hold(workdir, primary=sharding.process()[0] == 0, agree=sharding.all_agree):
    return _train(config, workdir, allow_config_change)


def _train(config: ConfigDict, workdir: Path, allow_config_change: bool) -> dict[str, float]:
  # --- devices and functions: all that can be wrong with the config is found here ---
  mesh = experiment.call(sharding.make_mesh, "mesh", **config.mesh)
  sharding.check_batch_size(config.batch_size, mesh)
  microbatch.check(config.batch_size, config.get("microbatch"), mesh.size)
  net, teacher = experiment.network(config), stored_runs.load_teacher(config, mesh)
  lpips_weights = sharding.gather(experiment.lpips_weights(config), mesh)
  frozen = {"teacher": teacher and teacher[1], "lpips": lpips_weights}
  data, init, lr = (
    experiment.source(config),
    experiment.state_init(config, net),
    experiment.schedule(config),
  )
  step_fn = compiled_step.make_step_fn(config, net, teacher and teacher[0], frozen)
  probe_every = doctor.options(config)["probe_every_steps"]
  probe = doctor.Probe(config) if probe_every else None
  abstract = jax.eval_shape(init, jax.random.key(0))
  plan, keep = experiment.snapshots(config), config.checkpoint.keep
  check_writable(
    workdir, (keep + 1) * checkpoint.num_bytes(abstract), plan, config.total_steps, abstract.ema
  )
  evaluators = experiment.evaluators(config, net, mesh, stored_runs.load_guides(config, mesh))

  # --- state: the newest good checkpoint, else config.init_from, else random weights ---
  primary = sharding.process()[0] == 0
  checkpoints = checkpoint.Checkpoints(
    workdir, keep=keep, primary=primary, agree=sharding.all_agree
  )
  fits, same = (
    functools.partial(check, config, num_examples=len(data), allow_change=allow_config_change)
    for check in (stored_runs.layout, stored_runs.check_same_run)
  )
  layout = functools.partial(fits, abstract, mesh)
  restored = checkpoints.restore(layout)
  snapshots = Snapshots(workdir, plan, primary=primary, check=same)
  fresh = functools.partial(_fresh, config, net, teacher, init, mesh)
  run = _Run(config, mesh, data, restored, fresh)
  start = run.step
  if start > config.total_steps:
    raise ValueError(
      f"{workdir} is at step {start} already, but total_steps={config.total_steps}. Raise it, or "
      "take another --workdir."
    )
  logger.info("Starting at step %d of %d in %s.", start, config.total_steps, workdir)
  reporter = writer.Reporter(
    workdir,
    total_steps=config.total_steps,
    batch_size=config.batch_size,
    start_step=start,
    enabled=primary,
  )
  if primary:
    if restored:
      stored_runs.record_changes(workdir, config, restored, len(data))
    write_json(workdir / "config.json", config.to_dict())
    overview = parameter_overview.get_parameter_overview(run.state.params, include_stats=False)
    (workdir / "parameters.txt").write_text(overview + "\n")

  # --- loop: bookkeeping first, so that step 0, a resumed run and the last step are one case ---
  write_card = functools.partial(score_files.write_card, config, workdir)
  keep_card = write_card if primary else lambda *card: None
  explain = functools.partial(_explain, config, net, teacher and teacher[0], frozen, run)
  before = restored.meta if restored else {}
  window = doctor.Window(config, explain, before.get("skipped", 0))
  compiled, scores, num_steps = None, {}, config.get("steps_per_dispatch", 1)
  done = score_files.done(config, workdir, restored) if restored and not same(restored.meta) else {}
  with (
    interruption() as interrupted,
    reporter,
    contextlib.closing(checkpoints),
    contextlib.closing(snapshots),
    contextlib.closing(run),
  ):
    while True:
      step = run.step
      last, stop = step == config.total_steps, interrupted(step)
      try:
        if last or stop or step % config.log_every_steps == 0:
          if scalars := window.flush():
            scalars["lr"] = float(jnp.asarray(lr(jnp.asarray(step - 1))))
            scalars["rolled_back"] = float(run.rolled_back)
            reporter.write(step, scalars | reporter.throughput())
        if probe and not stop and step % probe_every == 0:
          with reporter.paused():
            errors, trouble = probe(sharding.gather(run.state.params["net"], mesh))
            reporter.write(step, errors)
          if trouble:
            logger.warning("Step %d: %s", step, trouble)

        if last or stop or (step > start and step % config.checkpoint.every_steps == 0):
          window.read()  # a step to stop at must not become a checkpoint
          doctor.check_finite(run.state, config.nonfinite)
          with reporter.paused():
            snapshots.wait()  # what goes on from this checkpoint does not make earlier ones again
            meta = {"skipped": window.skipped, "num_examples": len(data)}
            checkpoints.save(step, run.state, config.to_dict(), **meta, **run.meta)
            if not config.checkpoint.get("asynchronous", True):
              checkpoints.wait()
        if snapshots.due(step, last):
          window.read()
          with reporter.paused():
            snapshots.save(step, run.state.ema, config.to_dict())

        for label, evaluator in evaluators.items():
          if label in done:
            scores |= done[label]
          elif last or (evaluator.due(step) and not stop):
            with reporter.paused():
              checkpoints.wait()  # what ends the process meanwhile costs no step
              values = evaluator.evaluate(run.state.ema, eval_key(config))
              scores |= score_files.keep(reporter, step, label, values, keep_card)
        if last:
          break
        if stop:
          logger.warning("%s: saving step %d, then exiting.", stop.name, step)
          checkpoints.wait()
          raise Interrupted(step)

        batches = run.next_batches(num_steps)
        given = batches if num_steps > 1 else batches[0]
        if compiled is None:
          with reporter.paused():
            compiled = compiled_step.compile_step(
              step_fn, mesh, (run.state, given, run.key, frozen)
            )
        with jax.transfer_guard("disallow"):  # whatever still moves between host and device says so
          run.state, metrics = compiled(run.state, given, run.key, frozen)
        run.step += num_steps
        done = {}
        window.add(run.step, metrics, batches)  # reads those before it: the device is busy again
      except doctor.RollBack as reason:
        with reporter.paused():
          checkpoints.wait()
          run.go_back(reason, checkpoints.restore(layout))
          snapshots.forget_after(run.step)
        window.clear()
        done = dict.fromkeys(evaluators, {})  # when it came past here for the first time
        continue
      reporter.progress(run.step, window.latest)
      checkpoints.poll()
      snapshots.poll()

  if primary:
    score_files.finish(config, workdir, scores)
  return scores


def _check(config: ConfigDict) -> None:
  """Raises for a config that is not whole, and for numbers of the loop itself that cannot be."""
  if missing := [key for key in KEYS if key not in config]:
    raise ValueError(f"The config needs {', '.join(KEYS)}; not there: {', '.join(missing)}.")
  doctor.check(config)
  counts = {key: config[key] for key in ("total_steps", "batch_size", "log_every_steps")}
  counts |= {f"checkpoint.{key}": config.checkpoint[key] for key in ("every_steps", "keep")}
  counts |= {f"evals.{k}.every_steps": e.get("every_steps", 1) for k, e in config.evals.items()}
  counts["steps_per_dispatch"] = num_steps = config.get("steps_per_dispatch", 1)
  for key, value in counts.items():
    if value < 1:
      raise ValueError(f"{key}={value} must be at least 1.")
  counts["doctor.probe_every_steps"] = doctor.options(config)["probe_every_steps"] or num_steps
  for key, value in counts.items():
    if (key == "total_steps" or key.endswith("every_steps")) and value % num_steps:
      raise ValueError(
        f"{key}={value} must be a multiple of steps_per_dispatch={num_steps}: nothing happens "
        "within a dispatch. Change one of them."
      )


def _explain(
  config: ConfigDict,
  net: Network,
  teacher: Network | None,
  frozen: Params,
  run: "_Run",
  step: int,
  batch: Batch,
) -> str:
  """Where the loss of a step, or its gradient, stops being finite.

  With the weights of now: those of a step or two later, where the policy is to go on.
  """
  loss_fn, scale = (
    compiled_step.make_loss(config, net, teacher, frozen),
    experiment.loss_scale(config),
  )
  target = experiment.target_name(config)
  params = run.state.params | ({} if target is None else {"target": run.state.ema[target]})

  def scaled(*args):
    value, metrics = loss_fn(*args)
    return value * scale, metrics

  index = jnp.asarray(step - 1, jnp.int32)
  return doctor.locate(scaled, params, batch, jax.random.fold_in(run.key, index), index)


def _key(config: ConfigDict, purpose: str) -> Array:
  """The key of one purpose; the seed itself is that of the initial weights."""
  return jax.random.fold_in(jax.random.key(config.seed), PURPOSES.index(purpose))


def eval_key(config: ConfigDict) -> Array:
  """The key of all evaluations: the same noise at every step."""
  return _key(config, "evaluate")


def _fresh(
  config: ConfigDict, net: Network, teacher: Model | None, init: Callable[..., Any], mesh: Mesh
) -> TrainState:
  """The state of step 0: random weights, or those that config.init_from names."""
  key = _key(config, "initialise")
  start = stored_runs.first_weights(config, net, key, mesh)
  fake = None
  if config.loss.get("vsd") and teacher:
    fake = stored_runs.grow(
      net, teacher[1], key, f"loss.vsd: the teacher in {config.teacher.workdir}"
    )
  return sharding.create(init, mesh, key, start, fake)[0]


class _Run:
  """Where a run is: its state, and the batches and the noise that come next.

  Each roll back leaves out the batches up to that of the step that it is for, and goes on with the
  noise of other steps: with the same of either it would come to the same end.
  """

  def __init__(
    self,
    config: ConfigDict,
    mesh: Mesh,
    data: Any,
    restored: checkpoint.Restored | None,
    fresh: Callable[[], TrainState],
  ):
    self._config, self._mesh, self._data, self._fresh = config, mesh, data, fresh
    meta = restored.meta if restored else {}
    self.rolled_back, self._shift = meta.get("rolled_back", 0), meta.get("batches_left_out", 0)
    self._times, self._where = 0, -1  # of roll backs in a row to one step
    self._begin(restored)

  def _begin(self, restored: checkpoint.Restored | None) -> None:
    config = self._config
    self.state: TrainState = restored.state if restored else self._fresh()
    self.step = int(self.state.step)
    self._batches = experiment.batches(config, self._mesh, self.step + self._shift, self._data)
    key = _key(config, "train")
    key = jax.random.fold_in(key, self.rolled_back) if self.rolled_back else key
    self.key: Array = sharding.create(lambda: key, self._mesh)[0]

  @property
  def meta(self) -> dict[str, int]:
    """What a checkpoint has to know beside the state."""
    return {"rolled_back": self.rolled_back, "batches_left_out": self._shift}

  def next_batches(self, count: int) -> tuple[dict[str, Any], ...]:
    """Those of the next steps."""
    return tuple(next(self._batches) for _ in range(count))

  def go_back(self, reason: doctor.RollBack, restored: checkpoint.Restored | None) -> None:
    """To a checkpoint, or without one to the start.

    Raises:
      FloatingPointError: after three times to the same step.
    """
    step = restored.step if restored else 0
    self._times = self._times + 1 if step == self._where else 1
    self._where = step
    if self._times > doctor.MOST_ROLL_BACKS:
      raise FloatingPointError(
        f"{reason} Rolled back to step {step} {doctor.MOST_ROLL_BACKS} times already, with other "
        "batches and noise each time: the trouble is in the weights or the config. Lower the "
        "learning rate, or look at tangent_norm and jvp_error in metrics.jsonl."
      )
    self.close()
    self.rolled_back += 1
    self._shift += reason.step - step
    self._begin(restored)
    logger.warning(
      "%s Rolled back to step %d, as asked (%d so far).", reason, step, self.rolled_back
    )

  def close(self) -> None:
    """Lets go of the threads that read ahead."""
    self._batches.close()


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[int], signal.Signals | None]]:
  """Yields a function of the step: which of SIGTERM and SIGINT has come?

  A second SIGINT ends it at once. Of several processes one gets SIGTERM, and all stop at the same
  step; SIGINT ends them.
  """
  if sharding.process()[1] > 1:
    yield lambda step: signal.SIGTERM if sharding.told_to_stop(step) else None
    return
  received = []

  # It prints nothing: the signal may have come in the middle of a print, which must not be entered
  # twice.
  def handle(number, frame):
    if received and number == signal.SIGINT:
      raise KeyboardInterrupt
    received.append(signal.Signals(number))

  numbers = (signal.SIGTERM, signal.SIGINT)
  old = {number: signal.signal(number, handle) for number in numbers}
  try:
    yield lambda step: received[0] if received else None
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
