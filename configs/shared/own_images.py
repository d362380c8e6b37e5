"""What the pages of your own pictures share: prepared pictures, a DDPM++, and how long to train.

All that depends on how many pictures there are is worked out here, from that number. Nothing here
was tuned on a set of photographs: the shares are those of the pages of CIFAR-10 and the digits.
"""

import ml_collections as mlc

from cmjax import pages

VARIANTS = ("64", "32")
EPOCHS = 1_000  # CIFAR-10's pages: 4,096 of 50,000 images; the digits': 71 of 1,442
LEAST, MOST = 400_000, 100_000_000  # images of all steps together


def get_config(size: str = "64", num_images: int = 3_000) -> mlc.ConfigDict:
  few = num_images < 20_000
  c = pages.shared("base")
  c.batch_size = 64 if few else 256
  seen = min(max(EPOCHS * num_images, LEAST), MOST)
  c.total_steps = seen // c.batch_size // 100 * 100
  c.sigma_data = 0.5  # `cmjax measure` says yours

  c.data = dict(
    name="records", flip=True, records=dict(path=f"data/own_images{size}", max_corrupt=0)
  )
  c.net = dict(
    name="ddpmpp", resolution=int(size), in_channels=3, channels=64 if few else 128,
    channel_mult=(1, 2, 2) if size == "32" else (1, 2, 2, 2), num_blocks=2, attn_resolutions=(16,),
    dropout=0.0, num_classes=0, augment_dim=0, modulation="pnorm_scale_shift", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="scd", P_mean=-1.0, P_std=1.4, c=0.1, warmup_steps=0, norm="l2", weighting="learned",
  )  # fmt: skip
  c.optim = dict(
    name="adam", lr=1e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  # A fiftieth of the run.
  c.ema = dict(main=dict(name="half_life", half_life_images=seen // 50, rampup_ratio=0.05))
  both = ("one_step", "two_step")
  c.evals = dict(
    grid=dict(name="samples", samplers=both, emas=("main",), every_steps=c.total_steps // 20,
              num_samples=64),
    swd=dict(name="sliced_wasserstein", samplers=both, emas=("main",),
             every_steps=c.total_steps // 10, num_samples=1_000, batch_size=100),
    # FID, once its network is named: --config.evals.fid.weights=FILE (docs/guides/scores.md).
    fid=dict(name="frechet", samplers=both, emas=("main",), every_steps=c.total_steps // 5,
             features="inception", variant="edm", weights=None, reference="train",
             num_samples=10_000, batch_size=100),
  )  # fmt: skip
  c.checkpoint.every_steps = c.total_steps // 20
  return c
