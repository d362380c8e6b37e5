r"""What a train step costs: FLOPs, memory and time over those of the diffusion step, every method.

  python benchmarks/cost/step_cost.py     # DDPM++ with 64 channels, batch 8
  python benchmarks/cost/step_cost.py --channels=128 --num_blocks=4 --runs=0 \
    --methods teacher sct scd

The second is the published size. The floors count network evaluations, a forward pass as 1 and a
backward pass as 2 (`Method.evaluations`). All are whole train steps (loss, gradient, optimizer,
average) of the same network, each compiled once, timed in turns.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import experiment, pages
from cmjax.program import compiled_step, plan

PAGES = "cifar10_"
METHODS = [name.removeprefix(PAGES) for name in pages.names() if name.startswith(PAGES)]


def configure(method, args):
  config = pages.load(f"{PAGES}{method}").unlock()
  config.net.update(channels=args.channels, num_blocks=args.num_blocks, dropout=0.13)
  config.batch_size = args.batch_size
  return experiment.parse(config)


def compile_step(method, args):
  """The compiled step, its arguments, the seconds it took to trace and to compile, its floor."""
  given, key = configure(method, args), jax.random.key(0)
  tx, teacher = experiment.transformation(given), plan.teacher_network(given)
  frozen = {"teacher": jax.jit(teacher.init)(key) if teacher else None, "lpips": None}
  state = jax.jit(experiment.state_init(given, tx))(key)
  batch = {"image": jnp.zeros((args.batch_size, 32, 32, 3))}
  if given.samples.num_classes:
    batch["label"] = jnp.zeros(args.batch_size, jnp.int32)
  arguments = (state, batch, key, frozen)
  step = jax.jit(compiled_step.make_step_fn(given, tx, teacher))
  start = time.perf_counter()
  lowered = step.lower(*arguments)
  traced = time.perf_counter()
  compiled = lowered.compile()
  spent = traced - start, time.perf_counter() - traced
  return compiled, arguments, spent, given.method.evaluations


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--channels", type=int, default=64)
  parser.add_argument("--num_blocks", type=int, default=1)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--runs", type=int, default=10, help="timed steps of each; 0: compile only")
  parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
  args = parser.parse_args()

  methods = ["teacher", *(method for method in args.methods if method != "teacher")]
  steps = {method: compile_step(method, args) for method in methods}
  seconds = {method: [] for method in steps}
  for run in range(args.runs + 1 if args.runs else 0):
    for method, (compiled, arguments, *_) in steps.items():
      start = time.perf_counter()
      jax.block_until_ready(compiled(*arguments))
      if run:  # the first warms up
        seconds[method].append(time.perf_counter() - start)

  size = sum(x.size for x in jax.tree.leaves(steps["teacher"][1][0].params["net"]))
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, DDPM++ of {size / 1e6:.2f} M "
        f"parameters, batch {args.batch_size}")  # fmt: skip
  print(f"{'step':15}{'GFLOP':>8}{'ratio':>7}{'floor':>7}{'temp MB':>9}{'ratio':>7}"
        f"{'ms':>9}{'ratio':>7}{'trace s':>9}{'compile s':>11}")  # fmt: skip
  costs = {}
  for method, (compiled, _, (trace, compilation), evaluations) in steps.items():
    flops = compiled.cost_analysis()["flops"]
    temporary = compiled.memory_analysis().temp_size_in_bytes
    median = float(np.median(seconds[method])) if args.runs else float("nan")
    costs[method] = np.array([flops, temporary, median])
    ratios = costs[method] / costs["teacher"]
    floor = (evaluations or np.nan) / steps["teacher"][-1]
    print(
      f"{method:15}{flops / 1e9:8.2f}{ratios[0]:7.3f}{floor:7.3f}{temporary / 1e6:9.1f}"
      f"{ratios[1]:7.2f}{median * 1e3:9.1f}{ratios[2]:7.2f}{trace:9.1f}{compilation:11.1f}"
    )


if __name__ == "__main__":
  main()
