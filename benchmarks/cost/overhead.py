r"""What training costs beside its steps: the loop's own time, and what a checkpoint holds up.

  python benchmarks/cost/overhead.py                 # both; the checkpoint is of 60 M parameters
  python benchmarks/cost/overhead.py --parts loop --step_ms=20

loop: `train` itself, with all that it does between steps: --batch_size images of 32x32x3, their
copy to the device, metrics, records, live line, polls. The step runs on a device that is not there:
a thread that does what it is given one after the other, --step_ms each, and takes no core from the
rest, as a GPU takes none. Its metrics are those of configs/cifar10_sct.py. Time outside of the step
is what passes between the end of a step and the beginning of the next. The parts are timed on the
loop's own thread; what they take while a step is running costs nothing.

checkpoint: `Checkpoints.save` of the whole train state of configs/cifar10_sct.py, with --channels
and --num_blocks: how long it holds up the loop (wall time, and what of it this thread had a core),
how long the longest poll does while the state is written and sealed, and how long a copy of these
bytes takes; beside them the train step of that network, compiled and run with --step_batch_size
images (the page has 512).
"""

import argparse
import collections
import contextlib
import functools
import logging
import queue
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np

from cmjax import experiment, pages
from cmjax.base import sharding
from cmjax.program import compiled_step, doctor, train
from cmjax.run import checkpoint, snapshots, writer


def configure(args, **net):
  config = pages.load("cifar10_sct:scratch").unlock()
  config.net.update(**net)
  config.evals = {}
  config.data.name = "npz"
  config.data.npz.path = str(args.workdir / "random.npz")
  return config


class Pending:
  """A number that is there once its step has ended."""

  def __init__(self, done, dtype):
    self.done, self.value = done, np.zeros((), dtype)

  def __array__(self, dtype=None, copy=None):
    """Waits, as for an array of JAX."""
    self.done.wait()
    return self.value

  def is_ready(self):
    """As of an array of JAX."""
    return self.done.is_set()

  def block_until_ready(self):
    """As of an array of JAX."""
    self.done.wait()


class Device:
  """Runs steps in the order of their calls, each for so many seconds; what they return is zero."""

  def __init__(self, seconds, metrics):
    self.seconds, self.metrics = seconds, metrics
    self.jobs, self.spans = queue.SimpleQueue(), []
    threading.Thread(target=self.run, daemon=True).start()

  def __call__(self, state, *arguments):
    """The step, in the background."""
    done = threading.Event()
    self.jobs.put(done)
    return state, jax.tree.map(lambda x: Pending(done, x.dtype), self.metrics)

  def run(self):
    """The device's own thread."""
    while True:
      done, begin = self.jobs.get(), time.perf_counter()
      time.sleep(self.seconds)
      self.spans.append((begin, time.perf_counter()))
      done.set()


class Timers:
  """Seconds that the loop spends in some functions, by name."""

  def __init__(self):
    self.seconds, self.undo = collections.defaultdict(list), contextlib.ExitStack()

  def timed(self, name, function):
    """The function, its seconds kept."""

    @functools.wraps(function)
    def call(*args, **kwargs):
      start = time.perf_counter()
      try:
        return function(*args, **kwargs)
      finally:
        self.seconds[name].append(time.perf_counter() - start)

    return call

  def replace(self, owner, attribute, value):
    """Until `undo` is left."""
    self.undo.callback(setattr, owner, attribute, getattr(owner, attribute))
    setattr(owner, attribute, value)

  def patch(self, owner, attribute, name):
    """Times it from now on."""
    self.replace(owner, attribute, self.timed(name, getattr(owner, attribute)))


def run_loop(args, config, workdir):
  """Trains: [begin, end] of every step on the device, and the loop's seconds by part."""
  timers, devices, batches = Timers(), [], experiment.batches

  def compile_nothing(step_fn, mesh, arguments, options):
    devices.append(Device(args.step_ms / 1e3, jax.eval_shape(step_fn, *arguments)[1]))
    dispatch = timers.timed("dispatch of the step", devices[0])
    return compiled_step.CompiledStep(dispatch, flops=0.0)

  def timed_batches(*arguments):
    with contextlib.closing(batches(*arguments)) as source:
      read = timers.timed("next batch, to the device", functools.partial(next, source))
      while True:
        yield read()

  timers.patch(doctor.Window, "add", "metrics of the step before, waiting")
  timers.patch(doctor.Window, "flush", "means, waiting")
  timers.patch(writer.Reporter, "progress", "live line")
  timers.patch(writer.Reporter, "write", "record")
  timers.patch(checkpoint.Checkpoints, "poll", "poll of checkpoints")
  timers.patch(snapshots.Snapshots, "poll", "poll of snapshots")
  timers.replace(compiled_step, "compile_step", compile_nothing)
  timers.replace(experiment, "batches", timed_batches)
  with timers.undo:
    train.train(experiment.parse(config), workdir)
  return np.array(devices[0].spans), timers.seconds


def loop(args):
  config = configure(args, channels=16, channel_mult=(1,), num_blocks=1, attn_resolutions=())
  config.total_steps, config.checkpoint.every_steps = args.steps, 10 * args.steps
  config.batch_size = args.batch_size
  spans, seconds = run_loop(args, config, args.workdir / "loop")
  begin, end = spans[10:].T  # the first ones start threads
  gaps, steps = (begin[1:] - end[:-1]) * 1e3, (end - begin) * 1e3
  print(f"\nloop: {len(steps)} steps of {args.step_ms:g} ms, batch {config.batch_size}")
  print(f"{'ms a step':40}{'mean':>10}{'median':>10}{'largest':>10}")
  show = lambda name, x: print(f"{name:40}{np.mean(x):10.3f}{np.median(x):10.3f}{np.max(x):10.3f}")
  show("a step is running", steps)
  show("none is running", gaps)
  largest = ", ".join(f"{gaps[i]:.0f} (step {i + 11})" for i in np.argsort(-gaps)[:4])
  print(f"{'the largest':40}  {largest}")
  print(f"{'outside of the step':40}{100 * gaps.sum() / (end[-1] - begin[0]) / 1e3:9.2f}%")
  print("the loop's thread, ms a call:")
  for name, values in seconds.items():
    show(f"  {name} ({len(values)})", np.array(values) * 1e3)


def train_steps(given, state):
  """Seconds of three train steps after the first."""
  frozen, key, seconds = {"teacher": None, "lpips": None}, jax.random.key(0), []
  step = compiled_step.make_step_fn(given, experiment.transformation(given))
  mesh = sharding.make_mesh()
  shape = (given.run.batch_size, 32, 32, 3)
  batch = sharding.global_batch({"image": np.zeros(shape, np.float32)}, mesh)
  key = jax.device_put(key, sharding.replicated(mesh))
  compiled = compiled_step.compile_step(step, mesh, (state, batch, key, frozen)).program
  for _ in range(4):
    start = time.perf_counter()
    state, _ = jax.block_until_ready(compiled(state, batch, key, frozen))
    seconds.append(time.perf_counter() - start)
  return seconds[1:]


def blocked(checkpoints, step, state):
  """Seconds of the save, wall and CPU; of its longest poll; and until it was sealed."""
  start, cpu = time.perf_counter(), time.thread_time()
  checkpoints.save(step, state, {})
  saved, polls, cpu = time.perf_counter(), [0.0], time.thread_time() - cpu
  digests = checkpoints.directory / str(step) / checkpoint.DIGESTS
  while not digests.exists():
    time.sleep(0.05)  # a step
    begin = time.perf_counter()
    checkpoints.poll()
    polls.append(time.perf_counter() - begin)
  end = time.perf_counter()
  checkpoints.wait()
  return saved - start, cpu, max(polls), end - start


def save(args):
  config = configure(args, channels=args.channels, num_blocks=args.num_blocks)
  config.batch_size = args.step_batch_size or config.batch_size
  given = experiment.parse(config)
  shapes = jax.eval_shape(experiment.state_init(given), jax.random.key(0))
  rng, replicated = np.random.default_rng(0), sharding.replicated(sharding.make_mesh())
  # Random bits, as to compile the initialisation takes minutes, and zeros would be compressed.
  fill = lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype), replicated)
  state = jax.block_until_ready(jax.tree.map(fill, shapes))
  num_bytes = checkpoint.num_bytes(state)
  size = sum(x.size for x in jax.tree.leaves(state.params))
  checkpoints = checkpoint.Checkpoints(args.workdir / "save", keep=1)
  rows = []
  for step in range(args.saves):
    start = time.perf_counter()
    copies = [np.array(x) for x in jax.tree.leaves(state)]
    copy = time.perf_counter() - start
    del copies
    rows.append([copy, *blocked(checkpoints, step, state)])
  checkpoints.close()
  print(f"\ncheckpoint: {size / 1e6:.1f} M parameters, a state of {num_bytes / 1e6:,.0f} MB in "
        f"{len(jax.tree.leaves(state))} arrays")  # fmt: skip
  print(f"{'seconds':40}" + "".join(f"{f'save {i}':>9}" for i in range(args.saves)))
  names = ("a copy of the state in memory", "save holds up the loop for", "  of it on a core")
  names += ("longest poll while it is written", "written and sealed after")
  for name, values in zip(names, np.transpose(rows), strict=True):
    print(f"{name:40}" + "".join(f"{x:9.3f}" for x in values), flush=True)
  if args.step_batch_size:
    name = f"train step, batch {args.step_batch_size}"
    print(f"{name:40}" + "".join(f"{x:9.3f}" for x in train_steps(given, state)))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--parts", nargs="+", default=["loop", "checkpoint"])
  parser.add_argument("--step_ms", type=float, default=50.0)
  parser.add_argument("--steps", type=int, default=600, help="of the loop")
  parser.add_argument("--num_images", type=int, default=50_000, help="to train on")
  parser.add_argument("--batch_size", type=int, default=512, help="of the loop")
  parser.add_argument("--channels", type=int, default=128, help="of the state that is saved")
  parser.add_argument("--num_blocks", type=int, default=4)
  parser.add_argument("--saves", type=int, default=4)
  parser.add_argument("--step_batch_size", type=int, default=8, help="0: no step is compiled")
  args = parser.parse_args()
  logging.getLogger("absl").setLevel(logging.ERROR)
  with tempfile.TemporaryDirectory() as folder:
    args.workdir = Path(folder)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.num_images, 32, 32, 3), np.uint8)
    np.savez(args.workdir / "random.npz", train_images=images)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for part in args.parts:
      {"loop": loop, "checkpoint": save}[part](args)


if __name__ == "__main__":
  main()
