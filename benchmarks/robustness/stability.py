r"""The two parts of a consistency function's tangent at the start of training, over the time.

  python benchmarks/robustness/stability.py  # digits
  python benchmarks/robustness/stability.py --config=configs/cifar10_sct.py --channels=64 \
    --images=noise

df/dt = d_t f + grad_x f . dx/dt, and what makes consistency training unstable is in the first part:
the derivative of the embedding of t (sCM, sec. 4.1, eq. 7 and figure 4). For Fourier embeddings of
scale 16 and 0.02 and for the positional one, each with a plain modulation of the normalised
activations (AdaGN) and with sCM's adaptive double normalisation, this draws the root mean square of
both parts, over sigma_data, for real images and their own velocities. It writes a picture,
stability_PAGE.png, into docs/results, and a table into docs/results/numerics.md.

The weights are those of the start, but what starts at zero there (the last convolution, and the
last one of each block) is drawn with a variance of one over the fan-in: with F = 0 all networks
would be equal.
"""

import argparse
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import experiment, pages, trigflow
from cmjax.data import sources

sys.path.insert(0, str(Path(__file__).parents[1] / "comparison"))
import methods  # noqa: E402 (the benchmark beside this folder)

EMBEDDINGS = {
  "Fourier 16": dict(embedding="fourier", fourier_scale=16.0),
  "Fourier 0.02": dict(embedding="fourier", fourier_scale=0.02),
  "positional": dict(embedding="positional"),
}
MODULATIONS = {"AdaGN": "scale_shift", "double norm": "pnorm_scale_shift"}
PARTS = ("d_t f", "grad_x f . dx/dt")


def parts(F, x0, z, t, *, sigma_data):
  """Both parts of df/dt along the circle through x0 and z, [b, *d] each."""
  x_t, dxdt = trigflow.interpolate(x0, z, t), trigflow.velocity(x0, z, t)

  def f(x, t):
    return trigflow.denoise(x, sigma_data * F(x / sigma_data, t), t)

  by_t = jax.jvp(lambda t: f(x_t, t), (t,), (jnp.ones_like(t),))[1]
  by_x = jax.jvp(lambda x: f(x, t), (x_t,), (dxdt,))[1]
  return by_t, by_x


def random_weights(net, seed):
  """Initial weights, those that start at zero or nearly so drawn at the usual size instead."""
  generator = np.random.default_rng(seed)

  def drawn(a):
    usual = 1 / math.sqrt(math.prod(a.shape[:-1]))
    if a.ndim < 2 or jnp.std(a) > 0.1 * usual:
      return a
    return jnp.asarray(usual * generator.standard_normal(a.shape), a.dtype)

  return jax.tree.map(drawn, jax.jit(net.init)(jax.random.key(seed)))


def norms(config, images, times, seeds):
  """The root mean square of both parts over sigma_data [seeds, times, 2], mean over the images."""
  net, sigma_data = experiment.parse(config).network, config.sigma_data
  z = trigflow.noise(jax.random.key(0), images.shape, sigma_data=sigma_data)

  @jax.jit
  def rms(params, t):
    F = lambda x, t: net.apply(params, x, t, {}, None)
    found = parts(F, images, z, jnp.full(len(images), t), sigma_data=sigma_data)
    square = lambda part: jnp.mean(part.reshape(len(images), -1) ** 2, -1)
    return jnp.stack([jnp.mean(jnp.sqrt(square(part))) for part in found]) / sigma_data

  weights = [random_weights(net, seed) for seed in range(seeds)]
  return np.array([[rms(params, t) for t in jnp.asarray(times)] for params in weights])


def configure(args, embedding, modulation):
  config = pages.load(args.config).unlock()
  config.net.update(channels=args.channels, augment_dim=0, modulation=MODULATIONS[modulation])
  config.net.update(EMBEDDINGS[embedding])
  return config


def load_images(args):
  config = configure(args, "positional", "AdaGN")
  if args.images == "noise":
    shape = (args.batch_size, *[config.net.resolution] * 2, config.net.in_channels)
    return trigflow.noise(jax.random.key(1), shape, sigma_data=config.sigma_data)
  pixels = sources.as_array(experiment.opened(experiment.parse(config)))[0][: args.batch_size]
  return jnp.asarray(pixels, jnp.float32) / 127.5 - 1


def table(found, times, command):
  lines = [
    f"`{command}`",
    "",
    "| embedding | modulation | part | median over t | largest, at t | at t = 0.1 / 0.8 / 1.5 |",
    "|---|---|---|---|---|---|",
  ]
  for (embedding, modulation), values in found.items():
    for i, part in enumerate(PARTS):
      curve = values[..., i].mean(0)
      worst = int(np.argmax(curve))
      some = " / ".join(f"{np.interp(t, times, curve):.2f}" for t in (0.1, 0.8, 1.5))
      lines.append(
        f"| {embedding} | {modulation} | {part} | {np.median(curve):.2f} | "
        f"{curve[worst]:.2f}, {times[worst]:.2f} | {some} |"
      )
  return lines


def plot(path, found, times):
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.5), sharex=True, sharey=True)
  for (embedding, modulation), values in found.items():
    column = list(MODULATIONS).index(modulation)
    for row, part in enumerate(PARTS):
      axis, curves = axes[row, column], values[..., row]
      (line,) = axis.plot(times, curves.mean(0), label=embedding)
      axis.fill_between(times, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2)
      axis.set(title=f"{part}, {modulation}", yscale="log")
  for axis in axes[1]:
    axis.set_xlabel("t")
  for axis in axes[:, 0]:
    axis.set_ylabel("root mean square / sigma_data")
  axes[0, 0].legend()
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", type=Path, default=methods.ROOT / "configs" / "digits_sct.py")
  parser.add_argument("--channels", type=int, default=64)
  parser.add_argument("--images", choices=("data", "noise"), default="data")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--num_times", type=int, default=40)
  parser.add_argument("--seeds", type=int, default=3, help="initial weights")
  parser.add_argument("--docs", type=Path, default=methods.RESULTS)
  args = parser.parse_args()

  images = load_images(args)
  times = np.linspace(0, math.pi / 2, args.num_times + 2)[1:-1]
  found = {}
  for embedding in EMBEDDINGS:
    for modulation in MODULATIONS:
      config = configure(args, embedding, modulation)
      found[embedding, modulation] = norms(config, images, times, args.seeds)
  name = args.config.stem
  command = f"python benchmarks/robustness/stability.py --config=configs/{name}.py"
  command += f" --channels={args.channels} --images={args.images}"
  lines = table(found, times, command)
  print("\n".join(lines))
  picture = f"stability_{name}.png"
  plot(args.docs / picture, found, times)
  title = f"The tangent at the start of training: {name}"
  lines += ["", f"![Both parts of the tangent over t, by embedding and modulation]({picture})"]
  methods.write_results(args.docs / "numerics.md", f"stability:{name}", title, lines)


if __name__ == "__main__":
  main()
