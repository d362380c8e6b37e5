r"""What a consistency step costs: FLOPs, memory and time over those of the diffusion step.

  python benchmarks/step_cost.py                      # DDPM++ with 64 channels, batch 8
  python benchmarks/step_cost.py --channels=128 --num_blocks=4 --runs=0   # the published size

The floors, counting a forward pass as 1 and a backward pass as 2: the diffusion step is 3, sCT 4
(the tangent is one more forward pass), sCD 5 (and the teacher's another). All three are whole train
steps (loss, gradient, optimizer, average) of the same network, each compiled once, timed in turns.
"""

import argparse
import runpy
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import build, train

CONFIGS = Path(__file__).parent.parent / "configs"
FLOOR = {"teacher": 1.0, "sct": 4 / 3, "scd": 5 / 3}


def configure(method, args):
  config = runpy.run_path(str(CONFIGS / f"cifar10_{method}.py"))["get_config"]()
  config.net.update(channels=args.channels, num_blocks=args.num_blocks, dropout=0.13)
  config.batch_size = args.batch_size
  return config


def compile_step(method, args):
  """The compiled step, its arguments, and the seconds it took to trace and to compile."""
  config = configure(method, args)
  net = build.network(config)
  key = jax.random.key(0)
  params = jax.jit(net.init)(key)
  teacher = (net, params) if method == "scd" else None
  state = jax.jit(build.state_init(config, net))(key)
  batch = {"image": jnp.zeros((args.batch_size, 32, 32, 3))}
  arguments = (state, batch, key, params if teacher else None)
  step = jax.jit(train.make_step_fn(config, net, teacher))
  start = time.perf_counter()
  lowered = step.lower(*arguments)
  traced = time.perf_counter()
  compiled = lowered.compile()
  return compiled, arguments, (traced - start, time.perf_counter() - traced)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--channels", type=int, default=64)
  parser.add_argument("--num_blocks", type=int, default=1)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--runs", type=int, default=10, help="timed steps of each; 0: compile only")
  args = parser.parse_args()

  steps = {method: compile_step(method, args) for method in FLOOR}
  seconds = {method: [] for method in steps}
  for run in range(args.runs + 1 if args.runs else 0):
    for method, (compiled, arguments, _) in steps.items():
      start = time.perf_counter()
      jax.block_until_ready(compiled(*arguments))
      if run:  # the first warms up
        seconds[method].append(time.perf_counter() - start)

  size = sum(x.size for x in jax.tree.leaves(steps["teacher"][1][0].params["net"]))
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, DDPM++ of {size / 1e6:.2f} M "
        f"parameters, batch {args.batch_size}")  # fmt: skip
  print(f"{'step':9}{'GFLOP':>8}{'ratio':>7}{'floor':>7}{'temp MB':>9}{'ratio':>7}"
        f"{'ms':>9}{'ratio':>7}{'trace s':>9}{'compile s':>11}")  # fmt: skip
  costs = {}
  for method, (compiled, _, (trace, compilation)) in steps.items():
    flops = compiled.cost_analysis()["flops"]
    temporary = compiled.memory_analysis().temp_size_in_bytes
    median = float(np.median(seconds[method])) if args.runs else float("nan")
    costs[method] = np.array([flops, temporary, median])
    ratios = costs[method] / costs["teacher"]
    name = "diffusion" if method == "teacher" else {"sct": "sCT", "scd": "sCD"}[method]
    print(
      f"{name:9}{flops / 1e9:8.2f}{ratios[0]:7.3f}{FLOOR[method]:7.3f}{temporary / 1e6:9.1f}"
      f"{ratios[1]:7.2f}{median * 1e3:9.1f}{ratios[2]:7.2f}{trace:9.1f}{compilation:11.1f}"
    )


if __name__ == "__main__":
  main()
