r"""What a train step of EDM2 on latents needs on TPU chips that are not there.

  python benchmarks/cost/step_memory.py  # XS on one v5e chip
  python benchmarks/cost/step_memory.py --size=XXL --topology=v5p:4x4x4 --fsdp=64 \
    --batch_size=2048 --remat --methods scd  # the paper's largest

Compiles the whole step (loss, gradient, optimizer, averages; with the teacher where there is one)
of configs/imagenet64_*.py at 64x64x4 ahead of time, and prints what XLA's compiler says a chip
needs: arguments (state, teacher, batch), temporary memory, the most of both at any time, and FLOPs
of it. A program that does not fit does not compile. Nothing runs. It needs libtpu
(pip install 'cmjax[plan]'), and minutes to an hour; jax_optimization_level O1 (the default here)
halves them.
"""

import argparse
import time

import jax

from cmjax import experiment, pages
from cmjax.base import sharding
from cmjax.program import costs, plan

CHANNELS = {"XXS": 64, "XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}


def configure(method, args):
  config = pages.load(f"imagenet64_{method}").unlock()
  config.net.update(
    in_channels=4, channels=CHANNELS[args.size], dropout=0.0, remat=args.remat, attention="xla"
  )
  config.batch_size = args.batch_size
  return experiment.parse(config)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", choices=CHANNELS, default="XS")
  parser.add_argument("--topology", default="v5e:2x2")
  parser.add_argument("--num_devices", type=int, help="of it; default: 1, or all with --fsdp")
  parser.add_argument("--fsdp", type=int, default=1)
  parser.add_argument("--batch_size", type=int, default=32, help="of all devices")
  parser.add_argument("--remat", action="store_true")
  parser.add_argument("--methods", nargs="+", default=["teacher", "scd"])
  parser.add_argument("--optimization_level", default="O1", choices=("O0", "O1", "O2", "O3"))
  args = parser.parse_args()

  jax.config.update("jax_optimization_level", args.optimization_level)
  devices = plan.topology_devices(args.topology)
  devices = devices[: args.num_devices or (1 if args.fsdp == 1 else len(devices))]
  mesh = sharding.make_mesh(fsdp=args.fsdp, devices=devices)
  chip = costs.CHIPS.get(args.topology.split(":")[0])
  each = f" ({chip.memory / 1e9:.0f} GB each)" if chip else ""
  print(f"jax {jax.__version__}, EDM2-{args.size} 64x64x4, bfloat16, batch {args.batch_size} on "
        f"{len(devices)} chips of {args.topology}{each}{', remat' * args.remat}")  # fmt: skip
  print(f"{'step':10}{'TFLOP':>9}{'arguments GB':>14}{'temp GB':>9}{'ratio':>7}{'peak GB':>9}"
        f"{'compile s':>11}")  # fmt: skip
  first = None
  for method in args.methods:
    start = time.perf_counter()
    compiled = plan.compile_step(configure(method, args), mesh)
    seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
    arguments, temporary = memory.argument_size_in_bytes / 1e9, memory.temp_size_in_bytes / 1e9
    first = first or temporary
    print(f"{method:10}{compiled.cost_analysis()['flops'] / 1e12:9.2f}{arguments:14.2f}"
          f"{temporary:9.2f}{temporary / first:7.3f}{memory.peak_memory_in_bytes / 1e9:9.2f}"
          f"{seconds:11.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
  main()
