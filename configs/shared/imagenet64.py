"""What the pages of ImageNet-64 share: data, EDM2 of four sizes and scores; sCT (sCM, table 4)."""

import ml_collections as mlc

from cmjax import pages

CHANNELS = {"s": 192, "m": 256, "l": 320, "xl": 384}
VARIANTS = tuple(CHANNELS)


def get_config(size: str = "s") -> mlc.ConfigDict:
  c = pages.shared("base")
  c.total_steps = 400_000
  c.batch_size = 2_048
  c.sigma_data = 0.5

  c.data = dict(
    name="records", flip=False,
    records=dict(path="data/imagenet64", max_corrupt=16, cache="~/.cache/cmjax/records"),
    npz=dict(path=""), folder=dict(path="", held_out=0.0),
    tfds=dict(dataset="imagenet_resized/64x64", data_dir=None),  # other pixels: see the teacher's
  )  # fmt: skip
  c.net = dict(
    name="edm2", resolution=64, in_channels=3, channels=CHANNELS[size], channel_mult=(1, 2, 3, 4),
    num_blocks=3, attn_resolutions=(16, 8), channels_per_head=64, dropout=0.0,
    dropout_resolution=16, num_classes=1000, modulation="pnorm_scale_shift",
    embedding="positional", dtype="bfloat16", remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="sct", P_mean=-1.0, P_std=1.6, c=0.1, warmup_steps=10_000, norm="l2", weighting="learned",
    # dtype="float32" costs one forward pass more a step; --mode=verify says what it buys.
    tangent=dict(name="exact", dtype="bfloat16", matmul_precision=None),
  )  # fmt: skip
  c.optim = dict(
    name="adam", lr=1e-4, b1=0.9, b2=0.99, eps=1e-11, clip_norm=None,
    schedule=dict(name="inverse_sqrt", decay_steps=35_000, warmup_steps=4_883),
  )  # fmt: skip
  c.ema = dict(main=dict(name="power", sigma_rel=0.05))
  c.evals = dict(
    grid=dict(name="samples", samplers=("one_step", "two_step"), emas=("main",),
              every_steps=10_000, num_samples=64),
    # FID, once its network is named: --config.evals.fid.weights=FILE (docs/guides/scores.md).
    fid=dict(name="frechet", samplers=("one_step", "two_step"), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="train",
             num_samples=50_000, batch_size=500, floor=False),
  )  # fmt: skip
  return c
