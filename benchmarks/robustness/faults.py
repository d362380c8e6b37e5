r"""Is anything ever lost? A hundred trials of sixteen faults, and the same command again.

  python benchmarks/robustness/faults.py                        # about an hour on one core
  python benchmarks/robustness/faults.py --kinds sigterm disk_full --num_trials=20
  python benchmarks/robustness/faults.py --asynchronous         # training goes on while it is saved

In every trial a real training (points in the plane, or pictures in a folder) meets one fault at a
seeded random moment. Then the same command is started again, until the run is done, and every array
of its last checkpoint is compared with those of a run that nothing disturbed, bit for bit. A run
with another seed must differ: the comparison is able to fail. A trial is survived if every process
ended as it should (the exit code, the message) and no more steps were lost than may be: none for
SIGTERM and what only stands beside the run, else those since the newest checkpoint that the fault
left whole: at most one interval. With --asynchronous, as configs have it unless they say otherwise,
what was trained while the next checkpoint was being written may be lost beside it.

A training is a process of its own, forked from this one, which has imported everything and has
never used JAX: that spares each of them seven seconds of imports. It needs Linux, and root for the
small disk (tmpfs), the read-only mount and the immutable folder.

This program can itself be stopped and started again. Exit code 1: a trial failed.
"""

import argparse
import atexit
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import jax
import numpy as np
import scipy.integrate  # noqa: F401 (else every process imports it for itself)
from PIL import Image
from sklearn.datasets import load_digits

from cmjax import experiment, main
from cmjax.base import sharding  # noqa: F401
from cmjax.base.atomic_files import write_json
from cmjax.program import compiled_step, stored_runs, train
from cmjax.run import writer

ROOT = Path(__file__).parents[2]
INTERVAL, TOTAL = 30, 120
STEP = 0.04  # seconds of a step, at least: a tenth of a save, as with networks of a real size
SECONDS = 300  # after which a process that does not end has failed its trial
COMMON = {
  "total_steps": TOTAL, "evals": {}, "log_every_steps": 20, "checkpoint.every_steps": INTERVAL,
}  # fmt: skip
POINTS = ("configs/toy2d_sct.py:smoke", COMMON | {"optim.lr": 1e-3})
IMAGES = (
  "configs/cifar10_sct.py:smoke",
  COMMON | {
    "init_from.workdir": "", "data.name": "folder", "net.resolution": 8, "net.channel_mult": "(1,)",
    "net.attn_resolutions": "()", "optim.lr": 1e-3,
  },
)  # fmt: skip
STARTED = []  # process ids


class Failed(Exception):
  """What a trial did otherwise than it should."""


def expect(condition, what):
  if not condition:
    raise Failed(what)


class Process:
  """A training, in a process that is forked from this one."""

  def __init__(self, trial, sabotage, flags, log):
    self.log, self.code, self._steps = log, None, trial.folder / f"{log.stem}.step"
    log.touch(), self._steps.write_text("0")
    self.pid = os.fork()
    if not self.pid:
      run_child(trial, [*trial.command, *flags], log, self._steps, sabotage)
    STARTED.append(self.pid)

  def step(self):
    """The steps that it has made."""
    return int(self._steps.read_text() or 0)

  def poll(self):
    """The exit code, negative for a signal; None while it runs."""
    if self.code is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        self.code = os.waitstatus_to_exitcode(status)
        STARTED.remove(self.pid)
    return self.code

  def until(self, condition, what, seconds=SECONDS):
    """Waits; fails if the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
      if self.poll() is not None:
        raise Failed(f"ended with code {self.code} before {what}: {self.said()}")
      if time.monotonic() > deadline:
        raise Failed(f"no {what} in {seconds} s: {self.said()}")
      time.sleep(0.001)

  def until_step(self, step):
    """Waits until it has made so many steps."""
    self.until(lambda: self.step() >= step, f"step {step}")

  def send(self, number):
    """Sends a signal; fails if there is nobody to get it."""
    expect(self.poll() is None, f"ended with code {self.code} before the fault: {self.said()}")
    os.kill(self.pid, number)

  def wait(self, code, seconds=SECONDS):
    """For its end, with this exit code (or one of those that `code` accepts)."""
    deadline = time.monotonic() + seconds
    while self.poll() is None:
      if time.monotonic() > deadline:
        raise Failed(f"did not end in {seconds} s: {self.said()}")
      time.sleep(0.01)
    right = code(self.code) if callable(code) else self.code == code
    expect(right, f"ended with code {self.code}: {self.said()}")

  def kill(self):
    """SIGKILL, and its end."""
    self.send(signal.SIGKILL)
    self.wait(-signal.SIGKILL)

  def said(self, num=1500):
    """The end of its log."""
    return self.log.read_text(errors="replace")[-num:]

  def error(self):
    """What the program said last to its user, between what threads of the libraries wrote."""
    said = re.findall(r"cmjax: .*", self.log.read_text(errors="replace"))
    return said[-1] if said else ""

  def started_at(self):
    """The step that it went on from; None if it did not get that far."""
    found = re.search(r"Starting at step (\d+) of", self.log.read_text(errors="replace"))
    return found and int(found[1])


def run_child(trial, argv, log, steps, sabotage):
  """`python -m cmjax.main` in a forked process, which does not come back."""
  code = 1
  try:
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    os.chdir(ROOT)
    for name, value in (
      ("compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(trial.cache))),
      ("persistent_cache_min_compile_time_secs", 0),
      ("persistent_cache_min_entry_size_bytes", -1),
    ):
      jax.config.update(f"jax_{name}", value)
    jax.config.update("jax_platforms", "cpu")
    count_steps(steps)
    if sabotage:
      sabotage()
    sys.argv = argv
    try:
      main.main()
    except SystemExit as stop:
      code = stop.code or 0
    if code == 0:
      write_digests(trial)
    atexit._run_exitfuncs()  # processes of one run take leave of each other
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def count_steps(path):
  """Has the number of steps made written to a file, outside of the workdir; each takes its time."""
  file, original = os.open(path, os.O_WRONLY), writer.Reporter.progress

  def progress(self, step, scalars):
    os.pwrite(file, b"%08d" % step, 0)
    time.sleep(STEP)
    original(self, step, scalars)

  writer.Reporter.progress = progress


def write_digests(trial):
  """The sha256 of every array of the newest good checkpoint, as it is on the disk."""
  restored = stored_runs.load_state(trial.workdir, sharding.make_mesh())
  flat = jax.tree_util.tree_leaves_with_path(jax.device_get(restored.state))
  found = {"step": restored.step, "arrays": {}}
  for path, array in flat:
    content = f"{array.dtype} {array.shape} ".encode() + np.asarray(array).tobytes()
    found["arrays"][jax.tree_util.keystr(path)] = hashlib.sha256(content).hexdigest()
  if jax.process_index() == 0:
    trial.digests.write_text(json.dumps(found))


class Trial:
  """One run, in a folder of its own, with what is observed of it."""

  def __init__(self, args, name, config, *, seed=0, flags=()):
    self.folder, self.cache = args.workdir / name, args.workdir / "cache"
    shutil.rmtree(self.folder, ignore_errors=True)  # of a benchmark that was stopped in it
    self.folder.mkdir(parents=True)
    self.workdir, self.digests = self.folder / "run", self.folder / "digests.json"
    path, values = config
    values = values | {"seed": seed}
    self.command = ["cmjax.main", f"--config={path}", f"--workdir={self.workdir}", *flags]
    values |= {"checkpoint.asynchronous": args.asynchronous}
    self.command += [f"--config.{key}={value}" for key, value in values.items()]
    self.asynchronous = args.asynchronous
    self.lost, self.notes, self._sittings = 0, [], 0

  def start(self, *flags, sabotage=None):
    """The command; sabotage() is called in the new process first."""
    self._sittings += 1
    return Process(self, sabotage, flags, self.folder / f"{self._sittings}.log")

  def start_two(self):
    """Both processes of a run, each with one device."""
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    flags = (f"--coordinator=localhost:{port}", "--num_processes=2")
    return [self.start(*flags, f"--process_id={i}") for i in range(2)]

  def finish(self, reached, allowed):
    """Starts the same command again, to its end; `allowed` steps may be made a second time."""
    process = self.start()
    process.wait(0)
    self.count_lost(process, reached, allowed)
    return process

  def count_lost(self, process, reached, allowed):
    """How many steps a process that went on has to make again."""
    start = process.started_at()
    self.lost = max(self.lost, reached - start)
    self.notes.append(f"went on from step {start} of {reached}")
    expect(0 <= reached - start <= allowed, f"from {reached} back to {start}, allowed {allowed}")

  def complete(self):
    """The steps of complete checkpoints."""
    names = [path.name for path in (self.workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())

  def saving(self):
    """The steps of saves that have not ended."""
    return [int(p.name.split(".")[0]) for p in (self.workdir / "checkpoints").glob("*-tmp*")]

  def allowed(self, reached):
    """An interval; where one is written beside training, what was trained meanwhile as well."""
    return INTERVAL + self.asynchronous * max((reached - s for s in self.saving()), default=0)

  def allowed_without_the_last(self, process):
    """The same, where a checkpoint could not be written: it may be noticed as training goes on."""
    failed = re.search(r"of step (\d+) could not be written", process.log.read_text())
    return INTERVAL + self.asynchronous * (process.step() - int(failed[1]) if failed else 0)


def kill(trial, process):
  """SIGKILL; returns the step reached, and how many of them may be lost."""
  process.send(signal.SIGSTOP)  # first, so that what is seen is what is killed
  reached = process.step()
  allowed = trial.allowed(reached)
  process.kill()
  return reached, allowed


def a_step(rng, first=1):
  return rng.randint(first, TOTAL - 10)


# --- the faults: each brings a trial to its end, or raises Failed ---


def sigterm(trial, rng, n):
  process = trial.start()
  process.until_step(a_step(rng))
  process.send(signal.SIGTERM)
  process.wait(train.INTERRUPTED)
  trial.finish(process.step(), 0)


def kill_random(trial, rng, n):
  process = trial.start()
  if n % 3 == 0:  # while it starts
    time.sleep(rng.uniform(0, 4))
  else:
    process.until_step(a_step(rng))
    time.sleep(rng.uniform(0, 0.1))
  trial.finish(*kill(trial, process))


def kill_saving(trial, rng, n):
  process = trial.start()
  process.until_step(rng.choice(range(0, TOTAL - INTERVAL, INTERVAL)) + 1)

  def in_a_save():
    if not trial.saving():
      return False
    process.send(signal.SIGSTOP)  # the save may just have ended: looked at again once it cannot
    if trial.saving():
      return True
    process.send(signal.SIGCONT)
    return False

  process.until(in_a_save, "save")
  trial.notes.append(f"in the save of step {trial.saving()[0]}")
  trial.finish(*kill(trial, process))


def damage_newest(how, trial, rng, n):
  process = trial.start()
  process.until_step(a_step(rng, first=INTERVAL + 1))
  process.send(signal.SIGTERM)
  process.wait(train.INTERRUPTED)
  newest = trial.workdir / "checkpoints" / str(trial.complete()[-1])
  files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
  path = rng.choice(files) if n % 2 else max(files, key=lambda path: path.stat().st_size)
  trial.notes.append(f"{path.relative_to(newest)} of step {newest.name}")
  if how == "truncated":
    os.truncate(path, path.stat().st_size // 2)
  elif how == "zeroed":
    path.write_bytes(bytes(path.stat().st_size))
  else:
    path.unlink()
  again = trial.finish(process.step(), INTERVAL)
  expect(f"checkpoint of step {newest.name} in" in again.log.read_text(), "no warning of it")


def deleted(trial, rng, n):
  process = trial.start()
  process.until_step(a_step(rng, first=2 * INTERVAL) // 2)
  process.until(trial.complete, "checkpoint")
  folder = trial.workdir / "checkpoints"
  before = trial.complete()[-1]
  gone = [[folder / str(before)], list(folder.iterdir()), [folder]][n % 3]
  for path in gone:
    shutil.rmtree(path, ignore_errors=True)
  trial.notes.append("without " + ", ".join(path.name for path in gone))
  process.until(lambda: any(step > before for step in trial.complete()), "next checkpoint")
  trial.finish(*kill(trial, process))


def disk_full(trial, rng, n):
  with mounted("-t", "tmpfs", "-o", "size=8m", "none", trial.workdir):
    process = trial.start()
    process.until_step(a_step(rng, first=INTERVAL + 1) * 2 // 3)
    process.until(trial.complete, "checkpoint")
    filler = trial.workdir / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
      while True:
        file.write(bytes(4096))
    process.wait(1)
    expect(process.error().count("could not be written") == 1, process.said())
    reached, allowed = process.step(), trial.allowed_without_the_last(process)
    filler.unlink()
    trial.finish(reached, allowed)
    shutil.copytree(trial.workdir, trial.folder / "copy")


def permission(trial, rng, n):
  process = trial.start()
  process.until_step(a_step(rng, first=INTERVAL + 1) * 2 // 3)
  process.until(trial.complete, "checkpoint")
  folder = trial.workdir / "checkpoints"
  subprocess.run(["chattr", "+i", folder], check=True)
  try:
    process.wait(1)
  finally:
    subprocess.run(["chattr", "-i", folder], check=True)
  expect("could not be written" in process.error(), process.said())
  trial.finish(process.step(), trial.allowed_without_the_last(process))


def read_only(trial, rng, n):
  reached = 0
  if n % 2:  # after a first part; else from the beginning
    process = trial.start()
    process.until_step(a_step(rng))
    process.send(signal.SIGTERM)
    process.wait(train.INTERRUPTED)
    reached = process.step()
  trial.workdir.mkdir(exist_ok=True)
  with mounted("--bind", trial.workdir, trial.workdir):
    subprocess.run(["mount", "-o", "remount,ro,bind", trial.workdir], check=True)
    refused = trial.start()
    refused.wait(1)
    expect("Read-only file system" in refused.error(), refused.said())
    expect("Traceback" not in refused.said(), refused.said())
  trial.finish(reached, 0)


def nan_batch(trial, rng, n):
  step = a_step(rng)
  process = trial.start(sabotage=functools.partial(poison_batch, step))
  process.wait(1)
  expect(f"step {step + 1} is not finite" in process.said(), process.said())
  trial.finish(process.step(), trial.allowed(process.step()))


def poison_batch(step):
  original = experiment.batches

  def batches(config, mesh, start, data):
    for i, batch in enumerate(original(config, mesh, start, data), start):
      yield {name: x * np.nan for name, x in batch.items()} if i == step else batch

  experiment.batches = batches


def nan_params(trial, rng, n):
  # Where a checkpoint is due right after it, nothing but the state itself shows it.
  step = rng.choice(range(INTERVAL, TOTAL, INTERVAL)) if n % 2 else a_step(rng)
  trial.notes.append(f"after step {step}")
  process = trial.start(sabotage=functools.partial(poison_params, step))
  process.wait(1)
  expect("is not finite" in process.said(), process.said())
  trial.finish(process.step(), trial.allowed(process.step()))


def poison_params(step):
  original = compiled_step.compile_step

  def compile_step(*args):
    compiled, count = original(*args), 0

    def poisoned(*args):
      nonlocal count
      state, metrics = compiled.program(*args)
      count += 1
      if count == step:
        with jax.transfer_guard("allow"):
          leaves, tree = jax.tree.flatten(state.params)
          leaves[0] = jax.device_put(leaves[0] * np.nan, leaves[0].sharding)
          state = state.replace(params=jax.tree.unflatten(tree, leaves))
      return state, metrics

    return compiled._replace(program=poisoned)

  compiled_step.compile_step = compile_step


def data_removed(trial, rng, n):
  folder, away = trial.folder / "data", trial.folder / "away"
  process = trial.start()
  process.until_step(a_step(rng))
  name = rng.choice(sorted(path.name for path in folder.iterdir()))
  away.mkdir()
  (folder / name).rename(away / name)
  process.wait(1)
  expect(name in process.said(), process.said())
  reached, allowed = process.step(), trial.allowed(process.step())
  if trial.complete():  # without the file it would go on as another run
    refused = trial.start()
    refused.wait(1)
    expect("63 now" in refused.said(), refused.said())
  (away / name).rename(folder / name)
  trial.finish(reached, allowed)


def second_run(trial, rng, n):
  first = trial.start()
  first.until_step(1)
  second = trial.start()
  if n % 2:
    first.until_step(a_step(rng))
  second.wait(1)
  expect(f"process {first.pid} on" in second.said(), second.said())
  if first.poll() is None and n % 2:
    trial.finish(*kill(trial, first))
  else:
    first.wait(0)


def clock(trial, rng, n):
  process = trial.start(sabotage=functools.partial(jump, random.Random(n)))
  process.until_step(a_step(rng, first=INTERVAL))
  trial.finish(*kill(trial, process))


def jump(rng):
  """Has the wall clock of this process jump to and fro by up to ten days, ten times a second."""
  seconds, nanoseconds = time.time, time.time_ns

  def offset():
    return rng.uniform(-10, 10) * 86_400 if int(time.monotonic() * 10) % 2 else 0.0

  time.time = lambda: seconds() + offset()
  time.time_ns = lambda: nanoseconds() + int(offset() * 1e9)


def kill_one_of_two(trial, rng, n):
  processes = trial.start_two()
  processes[0].until_step(a_step(rng, first=INTERVAL))
  reached = processes[0].step()
  processes[n % 2].send(signal.SIGKILL)
  processes[n % 2].wait(-signal.SIGKILL)
  processes[1 - n % 2].wait(lambda code: code not in (0, train.INTERRUPTED))
  reached = max(reached, processes[0].step())
  allowed = trial.allowed(reached)
  processes = trial.start_two()
  for process in processes:
    process.wait(0)
  trial.count_lost(processes[0], reached, allowed)


@contextlib.contextmanager
def mounted(*arguments):
  """A file system at the last of the arguments of mount(8), and none in the end."""
  path = arguments[-1]
  path.mkdir(exist_ok=True)
  subprocess.run(["mount", *map(str, arguments)], check=True)
  try:
    yield
  finally:
    subprocess.run(["umount", "--lazy", path], check=True)


truncated, missing, zeroed = (
  functools.partial(damage_newest, how) for how in ("truncated", "missing", "zeroed")
)

# name -> (what the table calls it, trials, what does it)
KINDS = {
  "sigterm": ("SIGTERM", 8, sigterm),
  "kill": ("SIGKILL at a random moment", 12, kill_random),
  "kill_saving": ("SIGKILL while saving", 12, kill_saving),
  "truncated": ("newest checkpoint: a file truncated", 7, truncated),
  "missing": ("newest checkpoint: a file missing", 7, missing),
  "zeroed": ("newest checkpoint: a file zeroed", 7, zeroed),
  "deleted": ("checkpoints deleted under the run", 6, deleted),
  "disk_full": ("disk full", 6, disk_full),
  "permission": ("permission lost in mid-run", 5, permission),
  "read_only": ("read-only workdir", 4, read_only),
  "nan_batch": ("NaN in a batch", 5, nan_batch),
  "nan_params": ("NaN in the parameters", 5, nan_params),
  "data_removed": ("data file removed in mid-run", 4, data_removed),
  "second_run": ("a second run in the workdir", 5, second_run),
  "clock": ("clock jumps by days, then SIGKILL", 4, clock),
  "kill_one_of_two": ("SIGKILL of one process of two", 3, kill_one_of_two),
}


# --- the table ---


def make_images(folder):
  """64 real digits as colour pictures of 8x8."""
  folder.mkdir(parents=True)
  for i, values in enumerate(load_digits().images[:64]):
    pixels = np.round(values * (255 / 16)).astype(np.uint8)
    Image.fromarray(np.stack([pixels] * 3, -1)).save(folder / f"{i:02d}.png")


def make_trial(args, name, kind, **options):
  """A trial; one with pictures has them in its own folder."""
  if kind != "data_removed":
    return Trial(args, name, POINTS, **options)
  trial = Trial(args, name, IMAGES, **options)
  # The path is part of the config, and the config is part of the run: the same for all of them.
  trial.command.append("--config.data.folder.path=" + str(trial.folder / "data"))
  make_images(trial.folder / "data")
  return trial


def undisturbed(args, rows, kind, **options):
  """Digests of the run that the trials of this kind must end like."""
  which = kind if kind in ("data_removed", "kill_one_of_two") else "points"
  name = "_".join(["whole", which, *map(str, options.values())])
  if name not in rows:
    trial = make_trial(args, name, kind, **options)
    for process in trial.start_two() if which == "kill_one_of_two" else [trial.start()]:
      process.wait(0)
    rows[name] = json.loads(trial.digests.read_text())
    expect(rows[name]["step"] == TOTAL, f"{name} ended at step {rows[name]['step']}")
    write(args, rows)
  return rows[name]


def differing(a, b):
  """How many arrays of two runs are not the same bits."""
  names = a["arrays"].keys() | b["arrays"].keys()
  return sum(a["arrays"].get(name) != b["arrays"].get(name) for name in names)


def run_trial(args, kind, n, whole):
  """A row: {survived, equal, lost, notes}."""
  begin = time.monotonic()
  trial = make_trial(args, f"{kind}_{n:02d}", kind)
  row = {"survived": True, "equal": False}
  try:
    KINDS[kind][2](trial, random.Random(f"{args.seed} {kind} {n}"), n)
    found = json.loads(trial.digests.read_text())
    row["equal"] = found["step"] == TOTAL and not differing(found, whole)
    shutil.rmtree(trial.folder)  # one that failed stays to be looked at
  except Failed as error:
    row |= {"survived": False, "error": str(error)}
    stop_all()
  return row | {
    "lost": trial.lost, "notes": trial.notes, "seconds": round(time.monotonic() - begin, 1),
  }  # fmt: skip


def table(rows):
  """Markdown: a line for every kind, and their sum."""
  lines = [
    "| fault | trials | survived | bitwise equal | max steps lost |",
    "|---|---|---|---|---|",
  ]
  everything = []
  for kind, (title, *_) in KINDS.items():
    if found := [row for key, row in rows.items() if key.startswith(f"{kind}:")]:
      lines.append(line(title, found))
      everything += found
  return [*lines, line(f"all {len(lines) - 2}", everything)], everything


def line(title, rows):
  survived, equal = (sum(row[key] for row in rows) for key in ("survived", "equal"))
  return f"| {title} | {len(rows)} | {survived} | {equal} | {max(row['lost'] for row in rows)} |"


def write(args, rows):
  write_json(rows_path(args), rows)


def rows_path(args):
  """The trials of each way of saving have a file of their own."""
  return args.workdir / f"rows{'_asynchronous' if args.asynchronous else ''}.json"


def write_results(path, lines):
  """Replaces what stands between the markers, or adds a section at the end."""
  begin, end = "<!-- faults -->", "<!-- /faults -->"
  text = path.read_text()
  block = "\n".join([begin, *lines, end])
  if begin in text and end in text:
    text = text[: text.index(begin)] + block + text[text.index(end) + len(end) :]
  else:
    text = text.rstrip("\n") + f"\n\n## Faults\n\n{block}\n"
  path.write_text(text)


def stop_all():
  for pid in list(STARTED):
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)
      os.waitpid(pid, 0)
    STARTED.remove(pid)


def benchmark(args):
  args.workdir = args.workdir.absolute()
  args.workdir.mkdir(parents=True, exist_ok=True)
  path = rows_path(args)
  rows = json.loads(path.read_text()) if path.exists() else {}
  control = differing(undisturbed(args, rows, "kill"), undisturbed(args, rows, "kill", seed=1))
  for kind in args.kinds:
    whole = undisturbed(args, rows, kind)
    for n in range(min(KINDS[kind][1], args.num_trials)):
      if f"{kind}:{n}" not in rows:
        rows[f"{kind}:{n}"] = row = run_trial(args, kind, n, whole)
        write(args, rows)
        result = "equal" if row["equal"] else row.get("error", "DIFFERS")
        print(f"{kind}:{n} {row['seconds']} s, {'; '.join(row['notes'])}: {result}", flush=True)
  lines, everything = table(rows)
  print("\n".join(lines))
  print(f"\narrays that differ with another seed: {control}")
  if args.results:
    write_results(args.results, lines)
  if not control or not all(row["survived"] and row["equal"] for row in everything):
    sys.exit(1)


def parse():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=Path, default=Path("runs/faults"))
  parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
  parser.add_argument("--num_trials", type=int, default=100, help="of a kind, at most")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--asynchronous", action="store_true", help="save while training goes on")
  parser.add_argument("--results", type=Path, default=None, help="a page to put the table in")
  return parser.parse_args()


if __name__ == "__main__":
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  try:
    benchmark(parse())
  finally:
    stop_all()
