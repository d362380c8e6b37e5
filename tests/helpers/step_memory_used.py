"""Takes one step of a config on one CPU device: {predicted, used} bytes beyond the arguments.

python tests/helpers/step_memory_used.py CONFIG.py:VARIANT key=value ...
"""

import ast
import json
import pathlib
import sys

import jax

from cmjax import experiment, pages
from cmjax.base import sharding
from cmjax.program import compiled_step, plan


def status(name):
  """A line of /proc/self/status, in bytes."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def main(path, *settings):
  values = dict(setting.split("=") for setting in settings)
  config = pages.load(path).unlock()
  config.update_from_flattened_dict({key: ast.literal_eval(v) for key, v in values.items()})
  given = experiment.parse(config)
  mesh = sharding.make_mesh(1, 1, devices=jax.devices()[:1])
  arguments = plan.abstract_arguments(given, mesh)
  traced = plan.trace_step(given, mesh)
  compiled = compiled_step.compile_traced(traced, mesh)
  zeros = lambda x: jax.device_put(jax.numpy.zeros(x.shape, x.dtype), x.sharding)
  state, batch = jax.tree.map(zeros, arguments[:2])
  key = jax.device_put(jax.random.key(0), arguments[2].sharding)
  jax.block_until_ready((state, batch, key))
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
  before = status("VmRSS")
  jax.block_until_ready(compiled(state, batch, key, arguments[3]))
  used = status("VmHWM") - before
  predicted = plan.memory(compiled)
  predicted = predicted["temporary"] + predicted["outputs"]
  print(json.dumps({"predicted": predicted, "used": used}))  # noqa: T201 (the answer)


if __name__ == "__main__":
  main(*sys.argv[1:])
