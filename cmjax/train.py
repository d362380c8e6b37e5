"""Training: from a config and a workdir to a trained model, in as many sittings as it takes."""

import contextlib
import functools
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cmjax import build, checkpoint, reporting, runs, sharding, statistics
from cmjax.ema.snapshots import Snapshots, check_writable
from cmjax.train_step import NONFINITE, TrainState, make_train_step
from cmjax.types import Array, Metrics, Model, Network, Params

logger = logging.getLogger("cmjax")

# EX_TEMPFAIL: the state is saved; start the same command again. Schedulers can requeue on it.
INTERRUPTED = 75

KEYS = (
  *("seed", "total_steps", "batch_size", "sigma_data", "data", "net", "loss", "optim", "ema"),
  *("init_from", "teacher", "samplers", "evals", "log_every_steps", "checkpoint", "mesh"),
  "nonfinite",
)  # and snapshots, if any

# One seed, one key for each.
PURPOSES = ("initialise", "train", "evaluate")


class Interrupted(SystemExit):
  """SIGTERM or SIGINT came: the state is saved, and the process exits with code 75."""

  def __init__(self, step: int):
    super().__init__(INTERRUPTED)
    self.step = step


def train(config: ConfigDict, workdir: str | Path) -> dict[str, float]:
  """Trains, or goes on training, until config.total_steps.

  The workdir then holds config.json, parameters.txt, checkpoints/, metrics.jsonl, tensorboard/,
  samples/, scores.json and report.html, and with config.snapshots also snapshots/. A run goes on
  from its newest good checkpoint; one that was killed at any moment ends with the same state, bit
  for bit, as one that was not.

  Args:
    config: as in `configs/`.
    workdir: of this run; made if it is not there.

  Returns:
    The last value of every evaluator.

  Raises:
    ValueError: the config, the data, the workdir or its checkpoints do not fit.
    FloatingPointError: a loss or gradient was not finite and config.nonfinite is "stop".
    Interrupted: on SIGTERM or SIGINT, after saving.
  """
  workdir = Path(workdir).absolute()

  # --- devices and functions: all that can be wrong with the config is found here ---
  _check(config)
  mesh = build.call(sharding.make_mesh, "mesh", **config.mesh)
  sharding.check_batch_size(config.batch_size, mesh)
  net, teacher = build.network(config), runs.load_teacher(config, mesh)
  lpips_weights = sharding.gather(build.lpips_weights(config), mesh)
  frozen = {"teacher": teacher and teacher[1], "lpips": lpips_weights}
  init, lr = build.state_init(config, net), build.schedule(config)
  step_fn = make_step_fn(config, net, teacher and teacher[0], frozen)
  abstract = jax.eval_shape(init, jax.random.key(0))
  plan, keep = build.snapshots(config), config.checkpoint.keep
  check_writable(
    workdir, (keep + 1) * checkpoint.num_bytes(abstract), plan, config.total_steps, abstract.ema
  )
  evaluators = build.evaluators(config, net, mesh, runs.load_guides(config, mesh))

  # --- state: the newest good checkpoint, else config.init_from, else random weights ---
  primary = sharding.process()[0] == 0
  checkpoints = checkpoint.Checkpoints(
    workdir, keep=keep, primary=primary, agree=sharding.all_agree
  )
  restored = checkpoints.restore(functools.partial(runs.layout, config, abstract, mesh))
  snapshots = Snapshots(
    workdir, plan, primary=primary, check=functools.partial(runs.check_same_run, config)
  )
  state = restored.state if restored else _fresh(config, net, teacher, init, mesh)
  start = int(state.step)
  if start > config.total_steps:
    raise ValueError(
      f"{workdir} is at step {start} already, but total_steps={config.total_steps}. Raise it, or "
      "take another --workdir."
    )
  logger.info("Starting at step %d of %d in %s.", start, config.total_steps, workdir)
  batches = build.batches(config, mesh, start)
  train_key = sharding.create(lambda: _key(config, "train"), mesh)[0]
  reporter = reporting.Reporter(
    workdir,
    total_steps=config.total_steps,
    batch_size=config.batch_size,
    start_step=start,
    enabled=primary,
  )
  if primary:
    _write_json(workdir / "config.json", config.to_dict())
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    (workdir / "parameters.txt").write_text(overview + "\n")

  # --- loop: bookkeeping first, so that step 0, a resumed run and the last step are one case ---
  before = restored.meta if restored else {}
  compiled, scores, window = None, {}, _Window(config.nonfinite, before.get("skipped", 0))
  evaluated = start if before.get("evaluated") else None
  with (
    interruption() as interrupted,
    reporter,
    contextlib.closing(checkpoints),
    contextlib.closing(snapshots),
    contextlib.closing(batches),
  ):
    for step in range(start, config.total_steps + 1):
      last, stop = step == config.total_steps, interrupted(step)
      if last or stop or step % config.log_every_steps == 0:
        if scalars := window.flush():
          scalars["lr"] = float(jnp.asarray(lr(jnp.asarray(step - 1))))
          reporter.write(step, scalars | reporter.throughput())

      for label, (every, evaluate) in evaluators.items():
        if last or (step % every == 0 and not stop and step != evaluated):
          with reporter.paused():
            scores |= _report(reporter, step, label, evaluate(state.ema, eval_key(config)))

      if last or stop or (step > start and step % config.checkpoint.every_steps == 0):
        window.read()  # a step to stop at must not become a checkpoint
        with reporter.paused():
          snapshots.wait()  # what goes on from this checkpoint does not make earlier ones again
          checkpoints.save(
            step, state, config.to_dict(), evaluated=not stop, skipped=window.skipped
          )
      if snapshots.due(step, last):
        window.read()
        with reporter.paused():
          snapshots.save(step, state.ema, config.to_dict())
      if last:
        break
      if stop:
        logger.warning("%s: saving step %d, then exiting.", stop.name, step)
        checkpoints.wait()
        raise Interrupted(step)

      batch = next(batches)
      if compiled is None:
        with reporter.paused():
          compiled = _compile(step_fn, mesh, (state, batch, train_key, frozen))
      with jax.transfer_guard("disallow"):  # whatever still moves between host and device says so
        state, metrics = compiled(state, batch, train_key, frozen)
      window.add(step + 1, metrics)  # reads those of the step before: the device is busy again
      reporter.progress(step + 1, window.latest)
      checkpoints.poll()
      snapshots.poll()

  if primary:
    finish(config, workdir, scores)
  return scores


def _check(config: ConfigDict) -> None:
  """Raises for a config that is not whole, and for numbers of the loop itself that cannot be."""
  if missing := [key for key in KEYS if key not in config]:
    raise ValueError(f"The config needs {', '.join(KEYS)}; not there: {', '.join(missing)}.")
  build.pick(NONFINITE, config.nonfinite, "policy (nonfinite)")
  counts = {key: config[key] for key in ("total_steps", "batch_size", "log_every_steps")}
  counts |= {f"checkpoint.{key}": config.checkpoint[key] for key in ("every_steps", "keep")}
  counts |= {f"evals.{k}.every_steps": e.get("every_steps", 1) for k, e in config.evals.items()}
  for key, value in counts.items():
    if value < 1:
      raise ValueError(f"{key}={value} must be at least 1.")


def make_step_fn(
  config: ConfigDict, net: Network, teacher: Network | None, frozen: Params
) -> Callable[..., Any]:
  """(state, batch, key, frozen) -> (state, metrics).

  `frozen` are the weights that are used and not trained: {teacher: ..., lpips: ...}, None where
  there is none. They are an argument: closed over, they would be constants of the program, kept
  twice and compiled for minutes.
  """
  tx, decays, target = build.optimizer(config), build.ema_decays(config), build.target_name(config)
  scale = build.loss_scale(config)

  def loss_of(frozen):
    model = (teacher, frozen["teacher"]) if teacher else None
    return build.loss(config, net, model, frozen["lpips"])

  def step_fn(state, batch, key, frozen):
    train_step = make_train_step(loss_of(frozen), tx, decays, target=target, loss_scale=scale)
    return train_step(state, batch, key)

  loss_of(frozen)  # once for nothing, so that a wrong section of the config is found at the door
  return step_fn


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
  start = runs.first_weights(config, net, key, mesh)
  fake = None
  if config.loss.get("vsd") and teacher:
    fake = runs.grow(net, teacher[1], key, f"loss.vsd: the teacher in {config.teacher.workdir}")
  return sharding.create(init, mesh, key, start, fake)[0]


class _Window:
  """The metrics of the steps since the last record; those of the newest step are not waited for."""

  def __init__(self, policy: str, skipped: int = 0):
    self.latest: dict[str, float] = {}  # of the last record, for the live line
    self.skipped = skipped  # in the whole run
    self._policy = policy
    self._pending: tuple[int, Metrics] | None = None
    self._metrics: list[dict[str, Any]] = []
    self._steps = 0  # since the last record, skipped ones among them

  def add(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step, and reads those of the step before."""
    self.read()
    self._pending = (step, metrics)

  def flush(self) -> dict[str, float]:
    """The means since the last flush, and how many steps of the run were skipped.

    Waits for the newest step; empty if there was none.
    """
    self.read()
    if not self._steps:
      return {}
    self.latest = statistics.merge(self._metrics) | {"skipped": float(self.skipped)}
    self._metrics, self._steps = [], 0
    return dict(self.latest)

  def read(self) -> None:
    """Waits for the metrics of the newest step; raises if it is one to stop at."""
    if self._pending is None:
      return
    step, metrics = self._pending[0], jax.device_get(self._pending[1])
    self._pending = None
    self._steps += 1
    if not metrics["nonfinite"].total:
      self._metrics.append(metrics)
      return
    what = (
      f"The loss or a gradient of step {step} is not finite (loss {metrics['loss'].total:.4g}, "
      f"gradient norm {metrics['grad_norm'].total:.4g})."
    )
    if self._policy == "stop":
      raise FloatingPointError(
        f"{what} nonfinite='stop': parameters and checkpoints are as they were before that step. "
        "Look at tangent_norm in metrics.jsonl; --config.nonfinite=skip goes on without it."
      )
    self.skipped += 1
    logger.warning("%s Skipped it, as nonfinite='skip' says (%d so far).", what, self.skipped)


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


def trace_step(step_fn: Callable[..., Any], mesh: Mesh, arguments: tuple[Any, ...]) -> Any:
  """The step traced for (state, batch, key, frozen) on the devices of `mesh`; donates the state.

  The arguments are arrays, or `jax.ShapeDtypeStruct`s with their shardings.
  """
  shardings = jax.tree.map(lambda x: x.sharding, arguments[0])
  jitted = jax.jit(step_fn, donate_argnums=0, out_shardings=(shardings, None))
  with jax.set_mesh(mesh):  # kernels of attention have to know what to be split over
    return jitted.trace(*arguments)


def compile_traced(traced: Any, mesh: Mesh, options: dict[str, Any] | None = None) -> Any:
  """What `trace_step` gave, compiled; with options of XLA's, such as optimization_level."""
  with jax.set_mesh(mesh):
    return traced.lower().compile(options)


def _compile(step_fn: Callable[..., Any], mesh: Mesh, arguments: tuple[Any, ...]) -> Any:
  """The step, compiled ahead of time once, with its price in the log."""
  start = time.perf_counter()
  compiled = compile_traced(trace_step(step_fn, mesh, arguments), mesh)
  cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
  logger.info(
    "Compiled the train step in %.0f s: %.1f GFLOP a step, %.0f MB of temporary memory, "
    "%.2f M parameters.",
    time.perf_counter() - start,
    cost.get("flops", 0) / 1e9,
    memory.temp_size_in_bytes / 1e6 if memory else 0,
    sum(x.size for x in jax.tree.leaves(arguments[0].params)) / 1e6,
  )
  return compiled


def _report(
  reporter: reporting.Reporter, step: int, label: str, values: Iterator[tuple[str, Any]]
) -> dict[str, float]:
  """Passes what an evaluator yields to the reporter; returns the scalars."""
  scalars = {}
  for name, value in values:
    if jnp.ndim(value):
      reporter.images(step, name, value)
    else:
      scalars[f"{label}/{name}"] = float(value)
  if scalars:
    reporter.write(step, scalars)
  return scalars


def finish(config: ConfigDict, workdir: Path, scores: Mapping[str, float]) -> None:
  """Writes scores.json and the run's page."""
  _write_json(workdir / "scores.json", dict(scores))
  title = f"{workdir.name}: {config.loss.name} on {config.data.name}"
  reporting.report(workdir, title=title, config=config.to_dict(), scores=score_rows(config, scores))


def score_rows(config: ConfigDict, scores: Mapping[str, float]) -> list[dict[str, Any]]:
  """The scores as a table: a row for each sampler and average, its price and the floor beside."""
  rows = []
  for name, value in scores.items():
    label, _, member = name.partition("/")
    sampler, slash, ema = member.partition("/")
    if not slash:
      continue
    row = {"score": label, "sampler": sampler, "average": ema}
    row |= {"NFE": build.sampler_nfe(config, sampler), "value": value}
    row |= {"floor": scores.get(f"{label}/floor")}
    speeds = [
      scores[f"{other}/{sampler}"]
      for other, section in config.evals.items()
      if section.name == "throughput" and f"{other}/{sampler}" in scores
    ]
    rows.append(row | {"images/s": speeds[0] if speeds else None})
  return rows


def _write_json(path: Path, content: Any) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n")
