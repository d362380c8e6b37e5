"""What the pages of the digits share: data, a small DDPM++ and scores; method and rates of sCT."""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("base")
  c.total_steps = 600
  c.batch_size = 128
  c.sigma_data = 0.75  # --mode=measure says 0.752

  c.data = dict(name="digits", flip=False)
  c.net = dict(
    name="ddpmpp", resolution=8, in_channels=1, channels=16, channel_mult=(1, 2), num_blocks=1,
    attn_resolutions=(4,), dropout=0.0, num_classes=0, augment_dim=0,
    modulation="pnorm_scale_shift", dtype="float32", remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="sct", P_mean=-0.4, P_std=1.6, c=0.1, warmup_steps=100, norm="l2", weighting="learned",
  )  # fmt: skip
  c.optim = dict(
    name="adam", lr=1.5e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="inverse_sqrt", decay_steps=60, warmup_steps=20),
  )  # fmt: skip
  # Half as long an average is within 6 %, three times as long costs up to 25 %
  # (docs/results/rates.md).
  c.ema = dict(main=dict(name="half_life", half_life_images=50_000, rampup_ratio=0.1))
  both = ("one_step", "two_step")
  c.evals = dict(
    grid=dict(name="samples", samplers=both, emas=("main",), every_steps=300, num_samples=64),
    fd=dict(name="frechet", features="pixels", samplers=both, emas=("main",), num_samples=2_000,
            batch_size=500, every_steps=10_000),  # at the end
    speed=dict(name="throughput", samplers=both, emas=("main",), num_batches=1, batch_size=500,
               every_steps=10_000),
  )  # fmt: skip
  c.log_every_steps = 50
  c.checkpoint.update(every_steps=200, keep=2)
  return c
