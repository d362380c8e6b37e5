r"""What the instability doctor costs, in percent of training.

  python benchmarks/cost/doctor.py
  python benchmarks/cost/doctor.py --config=configs/digits_scd.py --every=500

Three parts of one config, timed in one process: the train step; looking at its metrics for spikes
(`doctor.Spikes`, on the host); and a probe of the jvp against float64 (`doctor.Probe`), compiled
before. The first probe, which compiles, is printed beside.
"""

import argparse
import time

import jax
import numpy as np

from cmjax import experiment, pages
from cmjax.base import sharding
from cmjax.program import compiled_step, doctor


def seconds(fn, times: int) -> float:
  """The median of so many calls."""
  spent = []
  for _ in range(times):
    start = time.perf_counter()
    fn()
    spent.append(time.perf_counter() - start)
  return float(np.median(spent))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--config", default="configs/digits_sct.py")
  parser.add_argument("--every", type=int, default=1_000, help="doctor.probe_every_steps")
  parser.add_argument("--steps", type=int, default=30)
  args = parser.parse_args()
  given = experiment.parse(pages.load(args.config))
  if given.teacher:
    raise SystemExit("Give a config without a teacher: its step is timed with no run to read.")
  mesh = sharding.make_mesh()
  tx = experiment.transformation(given)
  state = sharding.create(experiment.state_init(given, tx), mesh, jax.random.key(0))[0]
  frozen = {"teacher": None, "lpips": None}
  key = sharding.gather(jax.random.key(1), mesh)
  batch = next(experiment.batches(given, mesh, 0))
  step = compiled_step.make_step_fn(given, tx)
  compiled = compiled_step.compile_step(step, mesh, (state, batch, key, frozen)).program
  params = jax.tree.map(np.array, jax.device_get(state.params["net"]))
  kept = {}

  def one_step():
    kept["state"], kept["metrics"] = compiled(kept.get("state", state), batch, key, frozen)
    jax.block_until_ready(kept)

  of_step = seconds(one_step, args.steps)
  metrics, spikes = jax.device_get(kept["metrics"]), doctor.Spikes(10.0)
  for i in range(doctor.WINDOW):
    spikes.see(i, metrics)
  of_spikes = seconds(lambda: spikes.see(0, metrics), 200)
  probe = doctor.Probe(given.network, given.samples, given.method.tangent)
  first = seconds(lambda: probe(params), 1)
  of_probe = seconds(lambda: probe(params), 5)
  print(f"python benchmarks/cost/doctor.py --config={args.config} --every={args.every}\n")
  print(f"train step                      {of_step * 1e3:9.2f} ms")
  print(f"spikes, each step               {of_spikes * 1e3:9.2f} ms   {of_spikes / of_step:8.2%}")
  share = of_probe / (args.every * of_step)
  print(f"probe, every {args.every:6d} steps      {of_probe * 1e3:9.2f} ms   {share:8.2%}")
  print(f"first probe, with compilation   {first:9.2f} s")


if __name__ == "__main__":
  main()
