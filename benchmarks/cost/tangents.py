r"""What each estimator of the tangent g = cos(t) df/dt gets wrong, and what it costs.

  python benchmarks/cost/tangents.py  # the digits network, perturbed
  python benchmarks/cost/tangents.py --config=cifar10_sct --batch_size=16  # a page of configs/

The error is ||g - g*|| / ||g*|| over all samples of a batch of noise levels of the config's own
proposal, g* the exact jvp with everything in float64. The network is a random one, moved away from
its zero-initialised layers. The cost is that of sCT's loss and gradient, in FLOPs and in time, over
those with the exact estimator.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import experiment, pages, tangent, times, trigflow, weighting
from cmjax.losses import continuous


def estimators(sigma_data):
  below = lambda n: lambda t: times.below(t, sigma_data=sigma_data, num_levels=n)
  return {
    "exact": tangent.exact(),
    "central, float64": tangent.central(),
    "semi_continuous": tangent.semi_continuous(),
    "discrete, N=256": tangent.discrete(below(256)),
    "discrete, N=1024": tangent.discrete(below(1024)),
    "discrete, N=4096": tangent.discrete(below(4096)),
  }


def draw(config, batch_size):
  """A network away from its zeros, and x_t, t, dx_t/dt of the config's proposal on pure noise."""
  net = experiment.parse(config).network
  keys = jax.random.split(jax.random.key(0), 5)
  params = jax.jit(net.init)(keys[0])
  leaves, tree = jax.tree.flatten(params)
  noise = jax.random.split(keys[1], len(leaves))
  move = lambda a, key: a + 0.05 * jax.random.normal(key, (a.size,)).reshape(a.shape)
  params = jax.tree.unflatten(tree, list(map(move, leaves, noise)))
  shape = (batch_size, config.net.resolution, config.net.resolution, config.net.in_channels)
  sd, loss = config.sigma_data, config.loss
  t = times.lognormal(loss.P_mean, loss.P_std, sigma_data=sd)(keys[2], (batch_size,))
  x0, z = (trigflow.noise(key, shape, sigma_data=sd) for key in keys[3:])
  return net, params, trigflow.interpolate(x0, z, t), t, trigflow.velocity(x0, z, t)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="digits_sct")
  parser.add_argument("--batch_size", type=int, default=128)
  parser.add_argument("--runs", type=int, default=5)
  args = parser.parse_args()
  config = pages.load(args.config)
  net, params, x_t, t, dxdt = draw(config, args.batch_size)
  sd = config.sigma_data

  with jax.enable_x64(True):
    wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (params, x_t, t, dxdt))
    truth = tangent.tangent(
      lambda x, s: net.apply(wide[0], x, s, {}, None), *wide[1:], sigma_data=sd
    )[1]
    truth = np.asarray(truth)

  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {args.config}, "
        f"batch {args.batch_size}")  # fmt: skip
  print(f"{'estimator':20}{'error of g':>12}{'FLOPs':>8}{'time':>8}")
  base = None
  for name, estimator in estimators(sd).items():
    _, g = jax.jit(
      lambda params, estimator=estimator: estimator(
        lambda x, s: net.apply(params, x, s, {}, None), x_t, t, dxdt,
        sigma_data=sd, warmup=1.0, origin=0.0,
      )
    )(params)  # fmt: skip
    error = np.linalg.norm(np.asarray(g, np.float64) - truth) / np.linalg.norm(truth)
    cost = price(net, config, estimator, params, args)
    base = base or cost
    ratios = [a / b for a, b in zip(cost, base, strict=True)]
    print(f"{name:20}{error:12.2e}{ratios[0]:8.3f}{ratios[1]:8.2f}")


def price(net, config, estimator, params, args):
  """FLOPs, and the median of the seconds, of sCT's loss and gradient."""
  loss = continuous.loss(
    net,
    continuous.data_velocity(),
    times.lognormal(config.loss.P_mean, config.loss.P_std, sigma_data=config.sigma_data),
    weighting.constant(),
    sigma_data=config.sigma_data,
    estimator=estimator,
  )
  gradient = jax.jit(jax.grad(lambda *a: loss(*a)[0]))
  shape = (args.batch_size, config.net.resolution, config.net.resolution, config.net.in_channels)
  arguments = {"net": params, "weighting": {}}, {"image": jnp.zeros(shape)}
  arguments = (*arguments, jax.random.key(0), jnp.int32(10**6))
  compiled = gradient.lower(*arguments).compile()
  seconds = []
  for _ in range(args.runs + 1):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    seconds.append(time.perf_counter() - start)
  return compiled.cost_analysis()["flops"], float(np.median(seconds[1:]))


if __name__ == "__main__":
  main()
