"""What the pages of Fashion-MNIST share: data, classes, a DDPM++ for a CPU, scores."""

import ml_collections as mlc

from cmjax import pages

CLASS_NAMES = (
  *("T-shirt", "Trouser", "Pullover", "Dress", "Coat"),
  *("Sandal", "Shirt", "Sneaker", "Bag", "Boot"),
)


def get_config() -> mlc.ConfigDict:
  c = pages.shared("base")
  c.batch_size = 64
  c.sigma_data = 0.705  # --mode=measure

  c.data = dict(
    name="fashion_mnist", flip=False,
    fashion_mnist=dict(cache="~/.cache/cmjax/datasets", url=None),
    npz=dict(path="~/.cache/cmjax/fashion_mnist.npz", class_names=CLASS_NAMES),
  )  # fmt: skip
  # Most of it is at 7x7, so that a CPU can train it.
  c.net = dict(
    name="ddpmpp", resolution=28, in_channels=1, channels=8, channel_mult=(1, 2, 6), num_blocks=1,
    attn_resolutions=(7,), dropout=0.0, num_classes=10, augment_dim=0,
    modulation="pnorm_scale_shift", dtype="float32", remat=False, scan=False,
  )  # fmt: skip
  both = ("one_step", "two_step")
  c.evals = dict(
    grid=dict(name="samples", samplers=both, emas=("main",), every_steps=500, num_samples=100),
    fd=dict(name="frechet", features="pixels", samplers=both, emas=("main",), num_samples=10_000,
            batch_size=500, every_steps=100_000),  # at the end
  )  # fmt: skip
  c.log_every_steps = 50
  c.checkpoint.update(every_steps=100, keep=2)
  return c
