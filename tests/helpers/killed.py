"""A run that is killed at random moments, and started again each time, until it ends.

  python tests/helpers/killed.py WORKDIR KILLS STEPS SEED PROCESSES [no_folder_renames]

One process has imported everything, and each sitting is a fork of it: a start takes no seconds.
Several processes are no forks: what they talk through does not live through one.
"""

import json
import logging
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time

import jax

from cmjax.base import paths, sharding, stores
from helpers import no_folder_renames, tiny


def settings(steps):
  """The config of the run: it saves often, since that is what is to be cut short."""
  config = tiny.config("snapshots", total_steps=steps, evals={})
  config.checkpoint.every_steps, config.snapshots.every_steps = 4, 16
  return config


# Seconds. A machine however fast makes 14 steps a sitting at most: 6 that are waited for, and 8.
PACE, LATEST = 0.25, 2


def sitting(workdir, steps, started, processes, index, port, pace):
  """Trains in a fork; says when it takes steps. Never returns."""
  if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    sharding.start(f"127.0.0.1:{port}", processes, index)
  asked = []

  def stop():  # is asked before each step
    asked.append(len(asked))
    time.sleep(pace)
    if len(asked) == 6:  # the step is compiled, and the first checkpoint is being written
      os.write(started, b"1")
    return False

  try:
    tiny.train(settings(steps), workdir, stop=stop)
  except BaseException:
    sys.excepthook(*sys.exc_info())
    os._exit(1)
  os._exit(0)


def start(workdir, steps, processes, pace):
  """The forks of one sitting, and what says that it takes steps."""
  reader, writer = os.pipe()
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  children = []
  for index in range(processes):
    arguments = (workdir, steps, writer, processes, index, port, pace)
    if processes > 1:
      given = [json.dumps([*arguments, "no_folder_renames" in sys.argv])]
      child = subprocess.Popen([sys.executable, __file__, *given], pass_fds=[writer]).pid
    elif not (child := os.fork()):
      sitting(*arguments)
    children.append(child)
  os.close(writer)
  return children, reader


def wait_for_a_checkpoint(workdir):
  """Until one counts: a run that has to save waits for the save before, so that it cannot end."""
  deadline = time.monotonic() + 300
  while not any(name.endswith("commit_success.txt") for name in stores.files(paths.place(workdir))):
    assert time.monotonic() < deadline, "no checkpoint in 300 s"
    time.sleep(0.1)


def run(workdir, kills, steps, seed, processes):
  """Kills and starts again; returns how often it was killed."""
  draw, done = random.Random(seed), 0
  while True:
    children, reader = start(workdir, steps, processes, PACE * (done < kills))
    if done < kills:
      # One in four while it starts: reading, taking the lock, tidying up what was cut short.
      if draw.random() < 0.75:
        assert select.select([reader], [], [], 300)[0], "no step in 300 s"
      if not done:  # the first of them leaves something to go on from
        wait_for_a_checkpoint(workdir)
      time.sleep(draw.uniform(0, LATEST))
      ended = [os.waitpid(child, os.WNOHANG)[0] for child in children]
      assert not any(ended), f"it ended by itself after {done} kills"
      for child in draw.sample(children, len(children)):
        os.kill(child, signal.SIGKILL)
      done += 1
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(reader)
    if set(codes) == {0}:
      return done
    assert set(codes) == {-signal.SIGKILL}, codes


if __name__ == "__main__":
  logging.getLogger("cmjax").setLevel(logging.INFO)
  logging.basicConfig(format="%(message)s")
  if len(sys.argv) == 2:
    *arguments, refused = json.loads(sys.argv[1])
    if refused:
      no_folder_renames.refuse_renames()
    sitting(*arguments)
  where, *numbers = sys.argv[1:6]
  if "no_folder_renames" in sys.argv:
    no_folder_renames.refuse_renames()
  logging.getLogger("cmjax").info("killed %d", run(where, *map(int, numbers)))
