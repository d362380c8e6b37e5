"""Several processes of one run on this machine, over gloo on the loopback."""

import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / "tests" / "helpers" / "tiny.py"


class Processes:
  """`count` processes of cmjax that have eight devices together. Use it as a context.

  Args:
    folder: of their logs.
    count: how many.
    arguments: of each, beside those by which they meet.
    before: process -> words before its command: `unshare -m`, ...
    program: what Python is started with.
    environment: variables of all; None: without it.
  """

  def __init__(
    self,
    folder,
    count,
    *arguments,
    before=lambda i: (),
    program=("-m", "cmjax.main"),
    **environment,
  ):
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    variables = os.environ | {
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // count}",
      "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
      "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
      **environment,
    }
    variables = {name: value for name, value in variables.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    self.logs, self.all = [folder / f"log.{i}" for i in range(count)], []
    for i, log in enumerate(self.logs):
      command = [
        *(*before(i), sys.executable, *program, *arguments),
        *(f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"),
      ]
      with log.open("w") as out:
        self.all.append(subprocess.Popen(command, env=variables, stdout=out, stderr=out))

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for process in self.all:
      process.kill()
      process.wait()

  def exit_codes(self, seconds=300):
    deadline = time.monotonic() + seconds
    return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.all]

  def said(self, process=None):
    """The log of a process; None: the ends of all."""
    if process is None:
      return "\n".join(log.read_text(errors="replace")[-2000:] for log in self.logs)
    return self.logs[process].read_text(errors="replace")
