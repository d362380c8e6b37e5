"""What the pages of ImageNet-64 with an ADM share: EDM's preconditioning, float32, RAdam."""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("imagenet64")
  c.net = dict(
    name="adm", resolution=64, in_channels=3, channels=192, channel_mult=(1, 2, 3, 4),
    num_blocks=3, attn_resolutions=(32, 16, 8), channels_per_head=64, dropout=0.0,
    dropout_resolution=64, num_classes=1000, augment_dim=0, modulation="scale_shift",
    preconditioning="edm", dtype="float32", remat=False, scan=False,
  )  # fmt: skip
  c.optim = dict(
    name="radam", lr=1e-4, b1=0.9, b2=0.999, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  return c
