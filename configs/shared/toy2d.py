"""What pages of the plane share: points, an MLP, and a score that needs no features."""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("base")
  c.total_steps = 5_000
  c.batch_size = 512
  c.sigma_data = 0.5  # the points are scaled to it

  c.data = dict(name="toy2d", flip=False, toy2d=dict(distribution="checkerboard"))
  c.net = dict(
    name="mlp", dim=2, width=128, depth=4, frequencies=(1.0, 2.0, 4.0), num_classes=0, dropout=0.0,
    dtype="float32",
  )  # fmt: skip
  both = ("one_step", "two_step")
  c.evals = dict(
    grid=dict(name="samples", samplers=both, emas=("main",), every_steps=1_000, num_samples=50_000),
    swd=dict(name="sliced_wasserstein", samplers=both, emas=("main",), every_steps=1_000,
             num_samples=20_000, batch_size=20_000),
  )  # fmt: skip
  c.checkpoint.update(every_steps=1_000, keep=2)
  return c
