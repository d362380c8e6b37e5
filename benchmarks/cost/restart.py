r"""What a restart of several processes reads, and how long it takes until its first step.

  python benchmarks/cost/restart.py                     # 2 and 4 processes, 10 minutes on 2 cores
  python benchmarks/cost/restart.py --processes=2 --parts=bytes

Processes on this machine (gloo over the loopback) with four devices together train a few steps, and
are started again for one more. Part `bytes`: an MLP of 17 M parameters, state replicated over the
processes and then sharded (fsdp=4); what each process has read by the end of the restore, of all
files (rchar of /proc/self/io) since it began. Part `time`: the digits sCT, small; from the start of
a process to the end of its first step, with a compile cache that all see, with one that each host
has by itself, as the disks of a cluster are (JAX writes on process 0 alone), and with none.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
BYTES = {
  "net.width": 2048, "net.depth": 2, "batch_size": 64, "evals": {}, "total_steps": 2,
  "checkpoint.every_steps": 2, "log_every_steps": 1,
}  # fmt: skip
TIME = {
  "total_steps": 2, "batch_size": 32, "net.channels": 16, "net.channel_mult": "(1,)",
  "net.attn_resolutions": "()", "evals": {}, "init_from.workdir": "", "log_every_steps": 1,
  "checkpoint.every_steps": 2,
}  # fmt: skip


def worker(out, flags):
  """One process: cmjax.main, with what it has read and how long it took."""
  began = time.time()
  from cmjax import main
  from cmjax.program import sitting
  from cmjax.run import checkpoint

  found, restore, take_step = {}, checkpoint.Checkpoints.restore, sitting.Sitting.take_step

  def read_so_far():
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))

  def restored(self, layout):
    before, start = read_so_far(), time.time()
    result = restore(self, layout)
    found.update(read=read_so_far() - before, restore=time.time() - start)
    return result

  def stepped(self):
    take_step(self)
    if "first_step" not in found:
      import jax

      jax.block_until_ready(self._course.state.step)
      found["first_step"] = time.time() - began
      Path(out).write_text(json.dumps(found))

  checkpoint.Checkpoints.restore, sitting.Sitting.take_step = restored, stepped
  main.main(["restart", *flags])


def run(folder, count, config, values, total_steps, cache):
  """The processes of one sitting; what each has measured.

  Args:
    folder: of the workdir and the logs.
    count: of processes.
    config: the page.
    values: of the config.
    total_steps: where it ends.
    cache: process -> its folder of compiled programs; "" for none.
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  variables = os.environ | {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
  }
  variables.pop("JAX_COMPILATION_CACHE_DIR", None)
  settings = values | {"total_steps": total_steps}
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  outs, started = [folder / f"out.{i}.json" for i in range(count)], []
  for i, out in enumerate(outs):
    command = [
      *(sys.executable, __file__, "--worker", str(out), f"--config={config}", *flags),
      *(f"--workdir={folder / 'run'}", f"--compile_cache={cache(i)}"),
      *(f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"),
    ]
    with open(folder / f"log.{i}", "a") as log:
      started.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log))
  try:
    for i, process in enumerate(started):
      if process.wait(600):
        raise SystemExit(f"process {i} failed:\n{(folder / f'log.{i}').read_text()[-3000:]}")
  finally:
    for process in started:
      process.kill()
      process.wait()
  return [json.loads(out.read_text()) for out in outs]


def size_of(folder):
  newest = max((folder / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
  return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())


def measure_bytes(count):
  """Rows of Markdown: what each process reads in its restore."""
  for fsdp in (1, 4):
    with tempfile.TemporaryDirectory() as name:
      folder = Path(name)
      values = BYTES | {"mesh.fsdp": fsdp}
      arguments = (folder, count, "toy2d_sct", values)
      shared = lambda i, folder=folder: folder / "cache"
      run(*arguments, 2, shared)
      size = size_of(folder)
      found = run(*arguments, 3, shared)
      read = [one["read"] for one in found]
      layout = "replicated" if fsdp == 1 else "sharded"
      each = ", ".join(f"{one / 1e6:.0f}" for one in read)
      row = f"| {count} | {layout} | {size / 1e6:.0f} | {each} | {sum(read) / 1e6:.0f} "
      print(f"{row}| {sum(read) / size:.2f} |", flush=True)


def measure_time(count):
  """Rows of Markdown: seconds from the start to the end of the first step."""
  caches = {
    "all see": lambda folder, i: folder / "cache",
    "each host its own": lambda folder, i: folder / f"cache.{i}",
    "none": lambda folder, i: "",
  }
  for name, place in caches.items():
    with tempfile.TemporaryDirectory() as temporary:
      folder = Path(temporary)
      arguments = (folder, count, "digits_sct", TIME)
      cache = lambda i, place=place, folder=folder: place(folder, i)
      run(*arguments, 2, cache)
      shutil.copytree(folder / "run", folder / "saved")
      times = []
      for _ in range(3):
        shutil.rmtree(folder / "run")
        shutil.copytree(folder / "saved", folder / "run")
        found = run(*arguments, 4, cache)
        times.append([one["first_step"] for one in found])
      each = ", ".join(f"{sorted(process)[1]:.1f}" for process in zip(*times, strict=True))
      print(f"| {count} | {name} | {each} |", flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
  parser.add_argument("--parts", nargs="+", default=["bytes", "time"])
  args = parser.parse_args()
  if "bytes" in args.parts:
    print("| processes | state | checkpoint, MB | read by each, MB | by all | of its size |")
    for count in args.processes:
      measure_bytes(count)
  if "time" in args.parts:
    print("| processes | compile cache | s to the first step, each process |")
    for count in args.processes:
      measure_time(count)


if __name__ == "__main__":
  if sys.argv[1:2] == ["--worker"]:
    worker(sys.argv[2], sys.argv[3:])
  else:
    main()
