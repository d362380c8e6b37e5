"""What the pages of CIFAR-10 share: data, DDPM++ and scores; method and rates of sCT (sCM, G.2)."""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("base")
  c.total_steps = 400_000
  c.batch_size = 512
  c.sigma_data = 0.5

  c.data = dict(
    name="cifar10", flip=False, cifar10=dict(cache="~/.cache/cmjax/datasets", url=None),
    tfds=dict(dataset="cifar10", data_dir=None),
    npz=dict(path="~/.cache/cmjax/cifar10.npz"), folder=dict(path="", held_out=0.0),
  )  # fmt: skip
  c.net = dict(
    name="ddpmpp", resolution=32, in_channels=3, channels=128, channel_mult=(2, 2, 2), num_blocks=4,
    attn_resolutions=(16,), dropout=0.0, num_classes=0, augment_dim=9,
    modulation="pnorm_scale_shift", dtype="float32", remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="sct", P_mean=-1.0, P_std=1.4, c=0.1, warmup_steps=10_000, norm="l2", weighting="learned",
  )  # fmt: skip
  c.optim = dict(
    name="radam", lr=1e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="half_life", half_life_images=500_000, rampup_ratio=0.05))
  c.evals = dict(
    grid=dict(name="samples", samplers=("one_step", "two_step"), emas=("main",),
              every_steps=10_000, num_samples=64),
    # FID, once its network is named: --config.evals.fid.weights=FILE (docs/guides/scores.md).
    fid=dict(name="frechet", samplers=("one_step", "two_step"), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="train",
             num_samples=50_000, batch_size=500),
  )  # fmt: skip
  return c
