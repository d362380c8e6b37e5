"""Runs that launchers start, with the tools of their clusters replaced by `stub_cluster`."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
STUB = ROOT / "tests" / "helpers" / "stub_cluster.py"
TOOLS = ("srun", "sbatch", "scontrol", "xpk", "kubectl", "sky", "gcloud", "curl", "python3")
SCRIPTS = {
  "local": ("local.sh", {"PROCESSES": "2", "CPUS": "1"}),
  "slurm": ("slurm.sh", {"NODES": "1", "GPUS": "2"}),
  "xpk": ("xpk.sh", {"CLUSTER": "c", "DEVICE": "h100-80gb-8", "NODES": "2"}),
  "jobset": ("jobset.sh", {"IMAGE": "i", "GPU": "nvidia-h100-80gb", "NODES": "2"}),
  "skypilot": (None, {}),
  "tpu_pod": ("tpu_pod.sh", {"POLL": "1"}),
}
STARTING = "Starting at step "


def wait(reached, seconds, said=lambda: ""):
  """Until a condition holds."""
  deadline = time.monotonic() + seconds
  while not reached():
    assert time.monotonic() < deadline, said()
    time.sleep(0.05)


class Launched:
  """A run of tests/helpers/tiny.py on two hosts, started by a launcher.

  Args:
    launcher: one of `SCRIPTS`.
    folder: for the run, the tools, and what they write.
    variant: of the page.
    environment: what more the launcher sees.
    values: of the config.
  """

  def __init__(self, launcher, folder, *, variant="long", environment=None, **values):
    self.folder, self._launcher = folder, launcher
    self.workdir = folder / "bucket" / "run"
    tools, repository = folder / "tools", folder / "repository"
    if not tools.exists():
      _make(tools, repository)
    script, given = SCRIPTS[launcher]
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = str(free.getsockname()[1])
    env = os.environ | given | {
      "PATH": f"{tools}:{os.environ['PATH']}", "STUBS": str(folder), "STUB_PORT": port,
      "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
      "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "XLA_FLAGS": "", "PAUSE": "1",
      "LOST_PAUSE": "1", "SOON": "0",
    } | (environment or {})  # fmt: skip
    place = "gs://bucket/run" if launcher == "tpu_pod" else str(self.workdir)
    page = f"{ROOT / 'tests' / 'helpers' / 'tiny.py'}:{variant}"
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    # tpu_pod packs what git knows of, the others run in a folder as they are told to.
    self._log, cwd = folder / "launcher.log", ROOT if launcher == "tpu_pod" else repository
    if launcher == "skypilot":
      command = ["sky", "jobs", "launch", str(ROOT / "launch" / "skypilot.yaml")]
      for name, value in (("CONFIG", page), ("WORKDIR", place), ("FLAGS", " ".join(flags))):
        command += ["--env", f"{name}={value}"]
    elif launcher == "tpu_pod":
      start = ["run", "pod", "v5litepod-8", "v2-alpha-tpuv5-lite", page, place]
      command = ["bash", str(ROOT / "launch" / script), *start, *flags]
    else:
      command = ["bash", str(ROOT / "launch" / script), page, place, *flags]
    with self._log.open("a") as out:
      self.process = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=out, stderr=out, start_new_session=True
      )

  def text(self):
    """All that the run and its launcher have written."""
    logs = [self._log, *self.workdir.glob("slurm-*.log"), *self.folder.glob("host-*/run.log")]
    return "".join(path.read_text(errors="replace") for path in logs if path.exists())

  def said(self):
    return self.text()[-6000:]

  def trainers(self):
    """The processes of the run, by their ids."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
      with contextlib.suppress(OSError):
        words = path.read_bytes().decode(errors="replace").split("\0")
        if "cmjax.main" in words[1:3] and f"--workdir={self.workdir}" in words:
          found.append(int(path.parent.name))
    return sorted(found)

  def send(self, number, count=1):
    """A signal to so many of its processes."""
    for pid in self.trainers()[-count:]:
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

  def starts(self):
    """The steps that it was started at, of both processes."""
    return [int(part.split()[0]) for part in self.text().split(STARTING)[1:]]

  def saved(self):
    folder = self.workdir / "checkpoints"
    return {int(p.name) for p in folder.glob("*") if p.name.isdigit()} if folder.exists() else set()

  def until(self, reached, seconds=300):
    wait(lambda: reached() or self.process.poll() is not None, seconds, self.said)
    assert reached(), self.said()

  def code(self, seconds=300):
    """Of the launcher, or of the scheduler in its place."""
    try:
      return self.process.wait(seconds)
    except subprocess.TimeoutExpired:
      raise AssertionError(self.said()) from None

  def clear(self):
    """Ends whatever is left of it."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()
    for path in self.folder.glob("host-*.pid"):
      with contextlib.suppress(ProcessLookupError):
        os.killpg(int(path.read_text()), signal.SIGKILL)
    for pid in self.trainers():
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _make(tools, repository):
  """The tools on the path, and a folder in which launchers find launch/ and .venv."""
  tools.mkdir(parents=True)
  for name in TOOLS:
    _program(tools / name, f'exec "{sys.executable}" "{STUB}" {name} "$@"')
  _program(tools / "python", f'exec "{sys.executable}" "$@"')
  _program(tools / "pip", "exit 0")
  (repository / ".venv" / "bin").mkdir(parents=True)
  _program(repository / ".venv" / "bin" / "python", f'exec "{sys.executable}" "$@"')
  (repository / "launch").symlink_to(ROOT / "launch")


def _program(path, text):
  path.write_text(f"#!/bin/sh\n{text}\n")
  path.chmod(0o755)
