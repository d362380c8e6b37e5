"""What the pages of ImageNet-512 share: latents, EDM2 of five sizes, scores; sCT (sCM, table 5)."""

import ml_collections as mlc

from cmjax import pages

CHANNELS = {"s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
VARIANTS = tuple(CHANNELS)


def get_config(size: str = "s") -> mlc.ConfigDict:
  large = size in ("xl", "xxl")  # of which a chip holds neither a copy nor all activations
  c = pages.shared("base")
  c.total_steps = 100_000
  c.batch_size = 2_048
  c.sigma_data = 0.5

  c.data = dict(
    name="records", flip=False,
    records=dict(path="data/imagenet512", latents="scm", vae=None, max_corrupt=16,
                 cache="~/.cache/cmjax/records"),
  )  # fmt: skip
  c.net = dict(
    name="edm2", resolution=64, in_channels=4, channels=CHANNELS[size], channel_mult=(1, 2, 3, 4),
    num_blocks=3, attn_resolutions=(16, 8), channels_per_head=64, dropout=0.0,
    dropout_resolution=16, num_classes=1000, modulation="pnorm_scale_shift",
    embedding="positional", dtype="bfloat16", remat=large, scan=large,
  )  # fmt: skip
  c.loss = dict(
    name="sct", P_mean=-0.8, P_std=1.6, c=0.1, warmup_steps=10_000, norm="l2", weighting="learned",
    # dtype="float32" costs one forward pass more a step; --mode=verify says what it buys.
    tangent=dict(name="exact", dtype="bfloat16", matmul_precision=None),
  )  # fmt: skip
  c.optim = dict(
    name="adam", lr=1e-4, b1=0.9, b2=0.99, eps=1e-11, clip_norm=None,
    schedule=dict(name="inverse_sqrt", decay_steps=70_000, warmup_steps=4_883),
  )  # fmt: skip
  c.ema = dict(main=dict(name="power", sigma_rel=0.05), long=dict(name="power", sigma_rel=0.10))
  # Copies of both, every 32 Mi images, for averages of other lengths: docs/concepts/averages.md.
  c.snapshots = dict(every_steps=16_384, emas=("main", "long"), dtype="float16")
  # Off until their files are named: data.records.vae, evals.fid.weights (docs/guides/scores.md).
  c.evals = dict(
    grid=dict(name="samples", samplers=("one_step", "two_step"), emas=("main",),
              every_steps=10_000, num_samples=16),
    fid=dict(name="frechet", samplers=("one_step", "two_step"), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="data/img512.pkl",
             floor=False, num_samples=50_000, batch_size=512),
  )  # fmt: skip
  c.mesh = dict(data=1, fsdp=-1) if large else dict(data=-1, fsdp=1)
  return c
