"""One sitting of a training: all that it holds, and what is done with it between two steps."""

import contextlib
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from cmjax import experiment
from cmjax.base import meeting, sharding
from cmjax.base.atomic_files import write_json, write_text
from cmjax.experiment import Experiment
from cmjax.program import (
  compiled_step,
  deterministic,
  doctor,
  identity,
  plan,
  run_report,
  score_files,
  stored_runs,
)
from cmjax.program.course import Course, fresh_state, key_for
from cmjax.program.data_wait import DataWait
from cmjax.program.profiling import Profile
from cmjax.program.stored_runs import Loaded
from cmjax.run import checkpoint, pictures, writer
from cmjax.run.goodput import Goodput
from cmjax.run.snapshots import Snapshots, check_writable
from cmjax.training import microbatch
from cmjax.types import Batch, Network, Params

logger = logging.getLogger("cmjax")


class Prepared(NamedTuple):
  """What is made once, before the first step: all that can be wrong with a run is found here."""

  mesh: Mesh
  teacher: Loaded | None
  frozen: dict[str, Params]
  data: Any
  init: Callable[..., Any]
  step_fn: Callable[..., Any]
  abstract: Any
  evaluators: dict[str, Any]
  guides: dict[str, Any]  # by which weights each sampler under autoguidance is led
  probe: doctor.Probe | None

  @property
  def teacher_network(self) -> Network | None:
    """The network that is distilled; None without."""
    return self.teacher.model[0] if self.teacher else None


class _Stopped(Exception):
  """An evaluator was told to stop between two of its batches."""


def prepare(exp: Experiment, workdir: epath.Path, ask: Callable[[], None]) -> Prepared:
  """Opens data, teacher and evaluators, and puts the step together; compiles nothing yet.

  Args:
    exp: the experiment.
    workdir: of the run.
    ask: evaluators call it between their batches; it raises to end them.
  """
  run, mesh = exp.run, experiment.make_mesh(exp.run)
  sharding.check_batch_size(run.batch_size, mesh)
  microbatch.check(run.batch_size, run.microbatch, mesh.size)
  teacher = stored_runs.load_teacher(exp, mesh)
  stored_runs.check_start(exp, workdir)
  network = teacher.model[0] if teacher else None
  lpips = sharding.gather(exp.method.lpips(), mesh)
  frozen = {"teacher": teacher and teacher.model[1], "lpips": lpips}
  compiled_step.make_loss(exp, network, frozen)  # what is wrong with its section is found here
  data, tx = experiment.opened(exp), experiment.transformation(exp)
  if sharding.process()[0] == 0:
    for warning in experiment.too_long(exp, len(data)):
      logger.warning("%s", warning)
  init, step_fn = experiment.state_init(exp, tx), compiled_step.make_step_fn(exp, tx, network)
  abstract = jax.eval_shape(init, jax.random.key(0))
  num_bytes = (run.keep + 1) * checkpoint.num_bytes(abstract)
  check_writable(workdir, num_bytes, exp.snapshots, run.total_steps, abstract.ema)
  guides = stored_runs.load_guides(exp, mesh)
  kept = stored_runs.kept(workdir, lambda: data)
  models = stored_runs.models(guides)
  evaluators = experiment.open_evaluators(exp, mesh, models, kept=kept, ask=ask)
  probing = run.probe_every_steps is not None
  probe = doctor.Probe(exp.network, exp.samples, exp.method.tangent) if probing else None
  known = {key: dict(one.weights or {}) for key, one in guides.items()}
  return Prepared(mesh, teacher, frozen, data, init, step_fn, abstract, evaluators, known, probe)


class Sitting:
  """A training from where its workdir has it to its last step, or to a signal.

  Use it as a context: what is open is closed in the end, whatever the end is.

  Args:
    exp: the experiment.
    workdir: of the run.
    allow_config_change: as in `train`.
    check_workdir: raises if the workdir is no longer where it was, see `lock.hold`.
    stop: as in `train`.
    goodput: counts what the time goes into, from the start of the sitting.
    profile_steps: as in `train`.

  Attributes:
    step: updates so far.
    last: whether this is the last step.
    stop: why to stop, the name of a signal; None: go on.
  """

  def __init__(
    self,
    exp: Experiment,
    workdir: epath.Path,
    allow_config_change: bool,
    check_workdir: Callable[[], None],
    stop: Callable[[], bool] | None = None,
    *,
    goodput: Goodput | None = None,
    profile_steps: tuple[int, int] | None = None,
  ):
    self._exp, self._workdir, self._primary = exp, workdir, sharding.process()[0] == 0
    self._goodput = goodput or Goodput()
    self._record = experiment.stored_record(exp)
    self._check_workdir = check_workdir
    self.stop, self._interrupted = None, _never
    self._prepared = prepared = prepare(exp, workdir, self._ask)
    teacher = prepared.teacher and prepared.teacher.weights
    self._identity = identity.of(exp, prepared.data, teacher, prepared.guides)
    self._open_stores(allow_config_change)
    restored = self._checkpoints.restore(self._layout)
    fresh = functools.partial(fresh_state, exp, prepared.init, prepared.mesh, prepared.teacher)
    self._course = Course(exp, prepared.mesh, prepared.data, restored, fresh)
    self.step = self._start = self._course.step
    run = exp.run
    if self._start > run.total_steps or not run.total_steps:
      raise ValueError(
        f"{workdir} is at step {self._start} already, but total_steps={run.total_steps}. Raise it, "
        "or take another --workdir."
      )
    logger.info("Starting at step %d of %d in %s.", self._start, run.total_steps, workdir)
    self._reporter = writer.Reporter(
      workdir,
      total_steps=run.total_steps,
      batch_size=run.batch_size,
      start_step=self._start,
      enabled=self._primary,
      loggers=exp.loggers,
      goodput=self._goodput,
    )
    self._goodput.saved(self._start)
    self._profile = Profile(profile_steps, workdir, self._start)
    self._data_wait = DataWait()
    self._describe_run(restored)
    skipped = restored.meta.get("skipped", 0) if restored else 0
    self._window = doctor.Window(run, self._explain, skipped)
    self._compiled: compiled_step.CompiledStep | None = None
    self._scores, self.last = {}, False
    self._done = self._evaluated_before(restored)
    self._asked, self._has_real = stop, False
    self._newest = self._before() if self._primary else {}

  def _open_stores(self, allow_config_change: bool) -> None:
    """Checkpoints and snapshots, and what a stored config must agree with."""
    run, prepared = self._exp.run, self._prepared
    self._layout = functools.partial(
      *(stored_runs.layout, self._exp, prepared.abstract, prepared.mesh),
      known=self._identity,
      allow_change=allow_config_change,
    )
    self._check_same = functools.partial(
      *(identity.check_same_run, self._record),
      identity=self._identity,
      allow_change=allow_config_change,
    )
    self._checkpoints = checkpoint.Checkpoints(
      self._workdir,
      keep=run.keep,
      primary=self._primary,
      agree=functools.partial(sharding.all_agree, what="whether all can read a checkpoint"),
    )
    self._snapshots = Snapshots(self._workdir, self._exp.snapshots, check=self._check_same)

  def _describe_run(self, restored: checkpoint.Restored | None) -> None:
    """Writes config.json and parameters.txt, and what changed since the last sitting."""
    if not self._primary:
      return
    if restored:
      identity.record_changes(self._workdir, self._record, restored, self._identity)
    write_json(self._workdir / "config.json", self._record)
    params = self._course.state.params
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    write_text(self._workdir / "parameters.txt", overview + "\n")

  def _evaluated_before(self, restored: checkpoint.Restored | None) -> dict[str, dict[str, float]]:
    """The evaluators that came to their end at this step in an earlier sitting."""
    if restored is None or self._check_same(restored.meta):
      return {}
    scored = self._scored(restored.step, restored.meta.get("rolled_back", 0))
    return score_files.done(self._workdir, scored)

  def _before(self) -> dict[str, float]:
    """The newest scores of the sittings before this one, for the page and the live line."""
    found = run_report.newest_scores(self._workdir)
    own = {name: one for name, one in found.items() if name.split("/")[0] in self._exp.evaluators}
    scores = {name: value for name, (_, value) in own.items()}
    step = max((step for step, _ in own.values()), default=0)
    self._reporter.scored(score_files.headline(self._exp, scores, step))
    return scores

  def __enter__(self) -> "Sitting":
    self._stack = contextlib.ExitStack()
    self._interrupted = self._stack.enter_context(interruption(self._asked))
    self._stack.enter_context(self._reporter)
    for thing in (
      *(self._checkpoints, self._snapshots, self._course),
      *(self._data_wait, self._profile),
    ):
      self._stack.enter_context(contextlib.closing(thing))
    return self

  def __exit__(self, *error: Any) -> bool | None:
    return self._stack.__exit__(*error)

  def look(self) -> None:
    """Where the run is, whether that is the end, and whether a signal has come.

    Raises:
      OSError: the workdir is no longer where it was.
    """
    self._check_workdir()
    self._goodput.begin_steps()
    self.step = self._course.step
    self.last = self.step == self._exp.run.total_steps
    if self.stop is None:  # one that was heard before a roll back is not told again
      self.stop = self._interrupted()

  def _ask(self) -> None:
    """Looks for a signal between two batches of an evaluator, and ends it."""
    if self.stop is None and (stop := self._interrupted()):
      self.stop = stop
      raise _Stopped

  def report(self) -> None:
    """Records the means of the metrics since the last record, where one is due."""
    if not (self.last or self.stop or self.step % self._exp.run.log_every_steps == 0):
      return
    if scalars := self._window.flush():
      scalars["lr"] = float(jnp.asarray(self._exp.schedule(jnp.asarray(self.step - 1))))
      scalars["rolled_back"] = float(self._course.rolled_back)
      self._reporter.write(self.step, scalars | self._pace() | self._goodput.scalars())

  def _pace(self) -> dict[str, float]:
    """Steps and images a second, the share of the chips' peak, and of several hosts the slowest."""
    found = self._reporter.throughput()
    rate = found.get("steps_per_sec", 0.0)
    devices = list(self._prepared.mesh.devices.flat)
    peak = plan.local_chip(devices).flops * len(devices)
    if rate and peak and self._compiled is not None:
      found["mfu"] = self._compiled.flops / self._exp.run.steps_per_dispatch * rate / peak
    # Every host is as slow as the slowest, which all wait for: who waits for data is the reason.
    waits = self._data_wait.mean() / self._exp.run.steps_per_dispatch
    if sharding.process()[1] > 1:
      each = sharding.from_all([1 / rate if rate else 0.0, waits])
      found["slowest_host_step_sec"], found["slowest_host_data_sec"] = map(float, each.max(axis=0))
      found["slowest_host"] = float(each.sum(axis=1).argmax())
    return found

  def probe(self) -> None:
    """Compares the network's jvp with a difference in float64, where that is due."""
    every = self._exp.run.probe_every_steps
    probe = self._prepared.probe
    if probe is None or not every or self.stop or self.step % every:
      return
    with self._reporter.paused("evaluations"):
      params = sharding.gather(self._course.state.params["net"], self._prepared.mesh)
      errors, trouble = probe(params)
      self._reporter.write(self.step, errors)
    if trouble:
      logger.warning("Step %d: %s", self.step, trouble)

  def save(self) -> None:
    """Starts writing a checkpoint and a snapshot, where they are due."""
    run, course = self._exp.run, self._course
    if self.last or self.stop or (self.step > self._start and not self.step % run.save_every_steps):
      self._window.read()  # a step to stop at must not become a checkpoint
      doctor.check_finite(course.state, run.nonfinite)
      with self._reporter.paused("saves"):
        self._snapshots.wait()  # what goes on from this checkpoint does not make earlier ones again
        meta = {"skipped": self._window.skipped, "identity": self._identity}
        self._checkpoints.save(self.step, course.state, self._record, **meta, **course.meta)
        if not run.asynchronous:
          self._checkpoints.wait()
      self._goodput.saved(self.step)
    if self._snapshots.due(self.step, self.last):
      self._window.read()
      with self._reporter.paused("saves"):
        self._snapshots.save(self.step, course.state.ema, self._record)

  def evaluate(self) -> bool:
    """Runs the evaluators that are due, but for those that ended here in an earlier sitting.

    A signal ends one between two batches: the step is saved, and it runs again when the run goes
    on.

    Returns:
      Whether none of them is left to run.
    """
    ran = False
    for label in self._prepared.evaluators:
      due = self.last or experiment.due(self._exp.evaluators[label], self.step)
      if label in self._done:
        self._scores |= self._done[label]
      elif due and self.stop:
        return False
      elif due:
        try:
          self._draw_real()
          self._scores |= self._evaluate(label)
          ran = True
        except _Stopped:
          self.report()
          self.save()
          return False
    if ran and not self.last:
      self._write_page()
    return True

  def _draw_real(self) -> None:
    """Draws training samples once in a run, for its page; all processes decode latents together."""
    there = self._workdir / pictures.FOLDER / pictures.REAL
    if self._has_real or sharding.all_agree(not self._primary or there.exists(), "real pictures"):
      self._has_real = True
      return
    with self._reporter.paused("evaluations"):
      real = experiment.real_samples(self._exp, self._prepared.data, self._prepared.mesh)
      try:
        if real is not None:
          self._reporter.real_images(real)
      except ValueError as error:  # such as of data with NaN: what they do is for the loss to say
        logger.warning("The page of this run shows no training samples: %s", error)
    self._has_real = True

  def _write_page(self, *notes: str) -> None:
    """Writes the run's page as it is now; one that cannot be written ends no training."""
    if not self._primary:
      return
    with self._reporter.paused("evaluations"):
      try:
        run_report.write(self._exp, self._record, self._workdir, self._newest, notes)
      except (OSError, ValueError) as error:
        logger.warning("The page of this run could not be written: %s", error)

  def _evaluate(self, label: str) -> dict[str, float]:
    evaluate, what = self._prepared.evaluators[label], f"evals.{label} at step {self.step}"
    with self._reporter.paused("saves"):
      self._checkpoints.wait()  # so that a crash during evaluation loses no training step
    with self._reporter.paused("evaluations"), meeting.during(what):
      values = evaluate(self._course.state.ema, key_for(self._exp.run.seed, "evaluate"))
      scalars = score_files.keep(self._reporter, self.step, label, values, self._keep_card)
      if self._primary:
        scored = self._scored(self.step, self._course.rolled_back)
        score_files.remember(self._workdir, scored, label, scalars)
        self._newest |= scalars
    self._reporter.scored(score_files.headline(self._exp, self._newest, self.step))
    return scalars

  def _scored(self, step: int, rolled_back: int) -> score_files.Scored:
    return score_files.Scored(self._record, self._identity, step, rolled_back)

  def _keep_card(self, step: int, name: str, card: Any) -> None:
    if self._primary:
      score_files.write_card(self._record, self._workdir, step, name, card, self._identity)

  def leave(self) -> None:
    """Waits until the checkpoint of a signal is written."""
    assert self.stop is not None, "a signal has come"
    logger.warning("%s: saving step %d, then exiting.", self.stop, self.step)
    self.settle()
    total = self._exp.run.total_steps
    said = f"Interrupted at step {self.step:,} of {total:,}."
    self._write_page(f"{said} The same command goes on from there.")
    logger.warning("%s It is saved. The same command goes on from there.", said)

  def settle(self) -> None:
    """Waits for the save under way, and records where the time of the run went."""
    with self._reporter.paused("saves"):
      self._checkpoints.wait()
    self._record_goodput()

  def _record_goodput(self) -> None:
    """A record of the time up to now, where this sitting has made a step."""
    if self._compiled is not None:
      self._reporter.write(self.step, self._goodput.scalars())

  def take_step(self) -> None:
    """Sends the next steps to the devices, and reads the metrics of those before."""
    count, course, frozen = self._exp.run.steps_per_dispatch, self._course, self._prepared.frozen
    batches, waited = self._data_wait.fetch(lambda: course.next_batches(count))
    self._goodput.waited_for_data(waited)
    inputs = batches if count > 1 else batches[0]
    compiled = self._compiled or self._compile((course.state, inputs, course.key, frozen))
    with self._profile.step(course.step), jax.transfer_guard("disallow"):
      # The guard: whatever still moves between host and device says so.
      course.state, metrics = compiled.program(course.state, inputs, course.key, frozen)
    self._data_wait.dispatched(metrics)
    course.step += count
    self._done = {}
    self._window.add(course.step, metrics, batches)  # reads those before: the device is busy again
    self._profile.stop_after(course.step, metrics)

  def _compile(self, arguments: tuple[Any, ...]) -> compiled_step.CompiledStep:
    """The step of this sitting; what was lost before it is on record once it is there."""
    with self._reporter.paused("compiling"):
      self._compiled = compiled_step.compile_step(
        self._prepared.step_fn,
        self._prepared.mesh,
        arguments,
        deterministic.options(
          self._exp.run,
          self._prepared.mesh.devices.flat[0].platform,
          self._workdir,
          started=self._start > 0,
        ),
      )
      deterministic.keep(self._workdir)
    self._record_goodput()
    return self._compiled

  def go_back(self, reason: doctor.RollBack) -> None:
    """Goes on from the last good checkpoint, with other batches and noise."""
    with self._reporter.paused("start"):
      self._checkpoints.wait()
      self._course.go_back(reason, self._checkpoints.restore(self._layout))
      self._snapshots.forget_after(self._course.step)
    self._goodput.rolled_back(self._course.step)
    self._window.clear()
    self._done = dict.fromkeys(self._prepared.evaluators, {})  # they ran when it came past first

  def progress(self) -> None:
    """Redraws the live line, and says if a save has failed by now."""
    self._reporter.progress(self._course.step, self._window.latest)
    self._checkpoints.poll()
    self._snapshots.poll()

  def finish(self) -> dict[str, float]:
    """Writes scores.json and the run's page; the last value of every evaluator."""
    if self._primary:
      run_report.finish(self._exp, self._record, self._workdir, self._scores, self.step)
    return self._scores

  def _explain(self, step: int, batch: Batch) -> str:
    """Where the loss of a step, or its gradient, stops being finite.

    With the weights of now: those of a step or two later, where the policy is to go on.
    """
    exp, course, prepared = self._exp, self._course, self._prepared
    loss_fn = compiled_step.make_loss(exp, prepared.teacher_network, prepared.frozen)
    target = experiment.target_name(exp)
    params = course.state.params
    params |= {} if target is None else {"target": course.state.ema[target]}

    def scaled(*args):
      value, metrics = loss_fn(*args)
      return value * exp.run.loss_scale, metrics

    index = jnp.asarray(step - 1, jnp.int32)
    return doctor.locate(scaled, params, batch, jax.random.fold_in(course.key, index), index)


# Those that ask a process to go, of schedulers and terminals; SLURM is often told to send SIGUSR1.
# SIGKILL cannot be heard, and is answered by the last checkpoint. SIGUSR2 asks for the stacks of
# all threads (run/stacks.py).
ASKING = tuple(
  getattr(signal, name)
  for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGXCPU")
  if hasattr(signal, name)
)
_ALWAYS = (signal.SIGTERM, signal.SIGINT)  # whoever had a handler for them before

Interrupted = Callable[[], str | None]  # -> why to stop; None: go on


def _never() -> str | None:
  return None


@contextlib.contextmanager
def interruption(asked: Callable[[], bool] | None = None) -> Iterator[Interrupted]:
  """Yields a function: which signal of `ASKING` has come, or was the run asked to stop?

  A second SIGINT ends it at once. Of several processes one is asked, and all stop at the same call,
  so that each must make as many; SIGINT ends them. A signal that is ignored (nohup), or has a
  handler of somebody else's, stays so, but for SIGTERM and SIGINT. Outside the main thread no
  signal can be heard: there is `asked`.

  Args:
    asked: is called each time; True asks the run to stop.
  """
  several = sharding.process()[1] > 1
  received: list[signal.Signals] = []

  # It prints nothing: the signal may have come in the middle of a print, which must not be entered
  # twice.
  def handle(number, frame):
    if several:
      signal.raise_signal(signal.SIGTERM)  # which JAX tells all of them
    elif received and number == signal.SIGINT:
      raise KeyboardInterrupt
    else:
      received.append(signal.Signals(number))

  def why() -> str | None:
    wanted = asked is not None and asked()
    if several:
      if wanted:
        os.kill(os.getpid(), signal.SIGTERM)
      return signal.SIGTERM.name if sharding.told_to_stop() else None
    return received[0].name if received else "Asked to stop" if wanted else None

  ours = _to_handle(several)
  old = {number: signal.signal(number, handle) for number in ours}
  try:
    yield why
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def _to_handle(several: bool) -> list[signal.Signals]:
  """The signals to listen for here: none outside the main thread."""
  if threading.current_thread() is not threading.main_thread():
    return []
  free = [n for n in ASKING if n not in _ALWAYS and signal.getsignal(n) is signal.SIG_DFL]
  return free if several else [*_ALWAYS, *free]
