r"""One gradient, every way to compute it: fsdp x remat x microbatch x precision.

  python benchmarks/cost/combinations.py

For the losses of sCT (a jvp inside the gradient) and of a teacher (none): the relative L2 error of
the gradient of all parameters against that of the plain step in float32 on one device, for a small
DDPM++ with dropout on simulated devices. What is float32 has to agree to 1e-5; what is bfloat16 is
compared with the plain bfloat16 step too, from which rounding in another order is all that may
differ. (That `scan` changes nothing is tests/networks/run_blocks_test.py's, in float64.)
"""

import argparse
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.base import sharding
from cmjax.experiment import Frozen, Method, Scene, methods, models
from cmjax.training import microbatch
from cmjax.types import Network, Params

BATCH = 16
OPTIONS = {"fsdp": (1, 4), "remat": (False, True), "microbatch": (None, 8)}
FLOAT32_LIMIT, BFLOAT16_LIMIT = 1e-5, 0.05


def configure(method: str, dtype: str, *, remat: bool) -> tuple[Network, Method]:
  """A network and a loss of the method, without the rest of an experiment."""
  loss = dict(name=method, P_mean=-1.0, P_std=1.4, weighting="learned")
  net = dict(
    name="ddpmpp", resolution=8, in_channels=1, channels=16, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(8,), augment_dim=0, dropout=0.2, dtype=dtype, remat=remat,
  )  # fmt: skip
  network, scene = models.network(net, 0.5), Scene(0.5, (8, 8, 1), total_steps=100)
  return network, methods.method(scene, loss)


def first_params(network: Network, method: Method) -> Params:
  """Weights away from their start, where many a gradient is 0."""
  rng = np.random.default_rng(0)
  move = lambda a: a + jnp.asarray(0.1 * rng.normal(size=a.shape), a.dtype)
  net = network.init(jax.random.key(0))
  return jax.tree.map(move, {"net": net, **method.init(jax.random.key(1), net, None)})


def gradient(
  network: Network, method: Method, params: Params, *, fsdp: int, size: int | None
) -> dict[str, np.ndarray]:
  """The gradient of one batch, on `fsdp` devices, in passes of `size` samples."""
  mesh = sharding.make_mesh(1, fsdp, devices=jax.devices()[:fsdp])
  parts = microbatch.check(BATCH, size, mesh.size)
  loss_fn = method.loss(network, Frozen())
  images = np.random.default_rng(2).normal(size=(BATCH, 8, 8, 1)).astype(np.float32)

  @jax.jit
  def run(params, batch, key):
    grad = jax.value_and_grad(lambda p, batch, key: loss_fn(p, batch, key, 100), has_aux=True)
    return microbatch.accumulate(lambda *args: grad(params, *args), batch, key, parts)[1]

  placed = jax.device_put(params, sharding.shard_params(params, mesh, min_size=256))
  with jax.set_mesh(mesh):
    batch = sharding.global_batch({"image": images / 2}, mesh)
    return jax.device_get(run(placed, batch, jax.random.key(3)))


def error(got: Params, truth: Params) -> float:
  """|| got - truth || / || truth || over all parameters."""
  flat = lambda tree: np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)]).astype(float)
  return float(np.linalg.norm(flat(got) - flat(truth)) / np.linalg.norm(flat(truth)))


def rows(methods=("sct", "diffusion"), dtypes=("float32", "bfloat16"), options=None):
  """(method, dtype, options, error against plain float32, error against plain of its dtype)."""
  options = OPTIONS if options is None else options
  for method in methods:
    plain = {}
    for dtype in ("float32", *(d for d in dtypes if d != "float32")):
      made = configure(method, dtype, remat=False)
      plain[dtype] = gradient(*made, first_params(*made), fsdp=1, size=None)
    for dtype in dtypes:
      for values in itertools.product(*options.values()):
        one = dict(zip(options, values, strict=True))
        made = configure(method, dtype, remat=one["remat"])
        got = gradient(*made, first_params(*made), fsdp=one["fsdp"], size=one["microbatch"])
        yield method, dtype, one, error(got, plain["float32"]), error(got, plain[dtype])


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--methods", nargs="+", default=["sct", "diffusion"])
  args = parser.parse_args()
  jax.config.update("jax_num_cpu_devices", max(OPTIONS["fsdp"]))
  print(f"python benchmarks/cost/{Path(__file__).name}\n")
  print("| loss | dtype | fsdp | remat | microbatch | to plain float32 | to plain dtype |")
  print("|---|---|---|---|---|---|---|")
  bad = 0
  for method, dtype, one, to_float32, to_own in rows(args.methods):
    limit = FLOAT32_LIMIT if dtype == "float32" else BFLOAT16_LIMIT
    bad += not to_own <= limit
    cells = [method, dtype, one["fsdp"], one["remat"], one["microbatch"] or BATCH]
    print("|", " | ".join(map(str, cells)), f"| {to_float32:.1e} | {to_own:.1e} |", flush=True)
  print(f"\n{bad} beyond {FLOAT32_LIMIT:g} (float32) or {BFLOAT16_LIMIT:g} (bfloat16).")
  return int(bad > 0)


if __name__ == "__main__":
  sys.exit(main())
