r"""Is a killed run the same run? Trainings of the digits sCT, killed and started again, bit by bit.

  python benchmarks/robustness/resume.py                  # 20 runs, about 20 minutes on 2 cores
  python benchmarks/robustness/resume.py --num_runs=2

One run goes through undisturbed. Each of the others gets SIGKILL one to three times, at seeded
random moments (start-up and compilation among them) or in the middle of a save, and is started
again by the same command. All of its final state (parameters, averages, optimizer, step) must then
be that of the first run, bit for bit. A run with another seed must not: the comparison is able to
fail.

This program can itself be stopped and started again. Exit code 1: a state differed.
"""

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from cmjax.base import sharding
from cmjax.base.atomic_files import write_json
from cmjax.program import stored_runs

STARTED = []  # processes
ROOT = Path(__file__).parents[2]
# The experiment, made short: 24 saves in 120 steps. Scores have no part in the state, and a network
# of another size would only be compiled for longer.
SHORT = {
  "total_steps": 120,
  "batch_size": 32,
  "net.channels": 16,
  "net.channel_mult": "(1,)",
  "net.attn_resolutions": "()",
  "evals": {},
  "init_from.workdir": "",
  "log_every_steps": 10,
  "checkpoint.every_steps": 5,
}


def start(args, workdir, seed=0):
  """The training as a process of its own, its output in workdir/log."""
  flags = [f"--config.{key}={value}" for key, value in (SHORT | {"seed": seed}).items()]
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / "log", "a") as log:
    command = [sys.executable, "-m", "cmjax.main", f"--config={args.config}", *flags]
    command.append(f"--workdir={workdir}")
    # One cache of compiled programs for all of them, as on a cluster that starts runs again.
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent.absolute() / "cache")}
    STARTED.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=env))
  return STARTED[-1]


def finish(process, workdir):
  """Waits for the end of a training that nothing is to disturb any more."""
  if process.wait():
    tail = (workdir / "log").read_text()[-2000:]
    raise RuntimeError(f"The training in {workdir} failed with code {process.returncode}:\n{tail}")


def saving(workdir):
  """The folders of saves that have not ended."""
  return {path.name for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")}


def newest(workdir):
  """The step of the newest complete checkpoint; 0 if there is none."""
  names = [path.name for path in (workdir / "checkpoints").glob("*")]
  return max((int(name) for name in names if name.isdigit()), default=0)


def kill(process, workdir, moment):
  """Kills at `moment`: (seconds after the start, which save from then on, or None for no save).

  Returns:
    A line that says when it was, and whether it was in a save; None if training ended before.
  """
  begin, seen = time.monotonic(), set()
  seconds, nth_save = moment
  while process.poll() is None:
    if nth_save is None:
      due = time.monotonic() - begin >= seconds
    else:
      seen |= saving(workdir)
      due = len(seen) >= nth_save and bool(saving(workdir))
    if due:
      # Stopped first, so that what is seen is what is killed: the save may just have ended.
      process.send_signal(signal.SIGSTOP)
      if nth_save is None or saving(workdir):
        break
      process.send_signal(signal.SIGCONT)
    time.sleep(0.0005)
  else:
    finish(process, workdir)
    return None
  in_save = bool(saving(workdir))
  process.kill()
  process.wait()
  where = f"{time.monotonic() - begin:.1f} s, newest checkpoint {newest(workdir)}"
  return f"{where}, {'in a save' if in_save else 'not in a save'}"


def draw_moments(rng, seconds):
  """One to three moments; half of them are in a save."""
  return [
    (None, rng.randint(1, 6)) if rng.random() < 0.5 else (rng.uniform(0, seconds), None)
    for _ in range(rng.randint(1, 3))
  ]


def final_state(workdir):
  """{path: array} of a run's newest good checkpoint."""
  state = jax.device_get(stored_runs.load_state(workdir, sharding.make_mesh()).state)
  return {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(state)}


def differing(a, b):
  """The names of arrays that are not the same bits."""
  return [k for k in sorted(a.keys() | b.keys()) if bits(a.get(k)) != bits(b.get(k))]


def bits(array):
  return None if array is None else (array.dtype.str, array.shape, np.asarray(array).tobytes())


def run_whole(args, records):
  """The undisturbed run and the one with another seed, unless they are there already."""
  for name, seed in (("whole", 0), ("other_seed", 1)):
    if name in records:
      continue
    workdir, begin = args.workdir / name, time.monotonic()
    finish(start(args, workdir, seed), workdir)
    records[name] = {"seconds": time.monotonic() - begin}
    write(args, records)
    print(f"{name:>10}: {records[name]['seconds']:.0f} s, step {newest(workdir)}")


def run_killed(args, records, name, seed):
  """One run: killed, started again, finished, compared."""
  # The time of a run that found its program compiled, as these do.
  workdir, kills = args.workdir / name, []
  if workdir.exists():  # from a benchmark that was stopped in the middle of this run
    workdir = workdir.with_name(f"{name}_{time.time_ns()}")
  for moment in draw_moments(random.Random(seed), records["other_seed"]["seconds"]):
    if (killed := kill(start(args, workdir), workdir, moment)) is None:
      break
    kills.append(killed)
  finish(start(args, workdir), workdir)
  whole, state = final_state(args.workdir / "whole"), final_state(workdir)
  records[name] = {"kills": kills, "differ": differing(state, whole), "arrays": len(whole)}
  write(args, records)


def write(args, records):
  write_json(args.workdir / "records.json", records)


def read(args):
  """What a benchmark of the same settings has done so far."""
  settings = {"config": args.config, "short": SHORT}
  path = args.workdir / "records.json"
  records = json.loads(path.read_text()) if path.exists() else {"settings": settings}
  if records["settings"] != settings:
    sys.exit(f"{path} is of other settings: {records['settings']}. Take another --workdir.")
  return records


def benchmark(args):
  args.workdir = args.workdir.absolute()
  args.workdir.mkdir(parents=True, exist_ok=True)

  records = read(args)
  run_whole(args, records)
  names = [f"run{i:02d}" for i in range(args.num_runs)]
  for i, name in enumerate(names):
    if name not in records:
      run_killed(args, records, name, seed=i)
    record = records[name]
    result = f"{len(record['differ'])} DIFFER" if record["differ"] else "all equal"
    print(f"{name:>10}: {result} of {record['arrays']}; killed {'; '.join(record['kills'])}")
    sys.stdout.flush()

  control = differing(*(final_state(args.workdir / k) for k in ("whole", "other_seed")))
  kills = [kill for name in names for kill in records[name]["kills"]]
  wrong = [name for name in names if records[name]["differ"]]
  print(f"""
runs                                    {len(names)}
kills                                   {len(kills)}
  of them in a save                     {sum("not in" not in kill for kill in kills)}
runs equal to the undisturbed one       {len(names) - len(wrong)} of {len(names)}
arrays that differ with another seed    {len(control)} of {records[names[0]]["arrays"]}""")
  if wrong or not control:
    sys.exit(1)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/digits_sct.py")
  parser.add_argument("--num_runs", type=int, default=20)
  parser.add_argument("--workdir", type=Path, default=Path("runs/resume"))
  args = parser.parse_args()
  logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of reading what it may not write
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  try:
    benchmark(args)
  finally:
    for process in STARTED:
      process.kill()


if __name__ == "__main__":
  main()
