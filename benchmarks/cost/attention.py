r"""Memory and time of attention for a consistency loss: one jvp, and the gradient of its primal.

  python benchmarks/cost/attention.py                      # memory only: nothing runs
  python benchmarks/cost/attention.py --time               # seconds too
  python benchmarks/cost/attention.py --topology=v5e:2x2 --dtype=bfloat16 \
    --implementations xla blockwise two_path pallas   # compiled for TPU chips that are not there

The last needs libtpu (pip install 'cmjax[plan]') and prints what a chip needs; the batch is split
over the chips. Temporary memory is what XLA's compiler reserves beside arguments and results.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cmjax.networks.attention import IMPLEMENTATIONS, attention
from cmjax.program import plan

LENGTHS = (256, 1024, 4096, 8192)


def consistency_step(implementation, q, k, v, dq, dk, dv):
  """Value and gradient of a loss on the primal of a jvp, with the tangent stopped."""

  def loss(q, k, v):
    f = functools.partial(attention, implementation=implementation)
    y, dy = jax.jvp(f, (q, k, v), (dq, dk, dv))
    return jnp.mean((y - jax.lax.stop_gradient(y - jnp.tanh(dy))) ** 2)

  return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)


def compile_step(implementation, length, *, heads=8, channels=64, dtype="float32", devices=None):
  """The compiled step, on this machine or for the devices of a topology, one sample on each."""
  shape = (len(devices or [0]), length, heads, channels)
  step = jax.jit(functools.partial(consistency_step, implementation))
  if devices is None:
    return step.lower(*[jax.ShapeDtypeStruct(shape, dtype)] * 6).compile()
  mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec("data"))
  with jax.set_mesh(mesh):
    return step.lower(*[jax.ShapeDtypeStruct(shape, dtype, sharding=split)] * 6).compile()


def seconds(compiled, length, args, runs=3):
  draws = np.random.default_rng(0).normal(size=(6, 1, length, args.heads, args.channels))
  arrays = [jnp.asarray(a, args.dtype) for a in draws]
  times = []
  for _ in range(runs + 1):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arrays))
    times.append(time.perf_counter() - start)
  return float(np.median(times[1:]))  # the first warms up


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
  parser.add_argument("--heads", type=int, default=8)
  parser.add_argument("--channels", type=int, default=64, help="of a head")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument(
    "--implementations", nargs="+", default=["xla", "blockwise"], choices=IMPLEMENTATIONS
  )
  parser.add_argument("--time", action="store_true", help="run the steps too")
  parser.add_argument("--topology", help="TPU chips to compile for, e.g. v5e:2x2")
  args = parser.parse_args()
  if args.time and args.topology:
    parser.error("--time needs the chips; --topology is for chips that are not there.")

  devices = plan.topology_devices(args.topology) if args.topology else None
  where = f"{args.topology}, per chip" if devices else jax.devices()[0].device_kind
  print(f"jax {jax.__version__}, {where}, one sample, {args.heads} heads of {args.channels}, "
        f"{args.dtype}")  # fmt: skip
  print(f"{'pixels':>7} {'attention':12}{'temp MiB':>10}{'ratio':>8}{'compile s':>11}"
        + f"{'ms':>10}{'ratio':>8}" * args.time)  # fmt: skip
  for length in args.lengths:
    first = None
    for name in args.implementations:
      start = time.perf_counter()
      compiled = compile_step(
        name,
        length,
        heads=args.heads,
        channels=args.channels,
        dtype=args.dtype,
        devices=devices,
      )
      compilation = time.perf_counter() - start
      costs = [compiled.memory_analysis().temp_size_in_bytes / 2**20]
      if args.time:
        costs.append(1e3 * seconds(compiled, length, args))
      first = first or costs
      ratios = [cost / base for cost, base in zip(costs, first, strict=True)]
      line = f"{length:7d} {name:12}{costs[0]:10.1f}{ratios[0]:8.3f}{compilation:11.1f}"
      print(
        line + "".join(f"{c:10.1f}{r:8.3f}" for c, r in zip(costs[1:], ratios[1:], strict=True))
      )


if __name__ == "__main__":
  main()
