"""Prepared data sets of a few images or latents, and a config for them."""

import ml_collections as mlc
import numpy as np

from cmjax.data import manifest, shards
from helpers import tiny

RNG = np.random.default_rng(0)


def write_set(path, arrays, *, split="train", num_classes=0, per_shard=10, recorded=None):
  """A prepared set of these arrays, by hand."""
  image = arrays["image"]
  layout = shards.Layout(
    image.shape[1:], str(image.dtype), "image_std" in arrays, "label" in arrays
  )  # fmt: skip
  folder, listed = path / split, []
  folder.mkdir(parents=True)
  count = -(-len(image) // per_shard)
  for k in range(count):
    part = {name: a[k * per_shard : (k + 1) * per_shard] for name, a in arrays.items()}
    name = shards.name(split, k, count)
    listed.append(manifest.Shard(name=name, **shards.write(folder / name, layout.pack(part))))
  names = tuple(str(i) for i in range(num_classes))
  manifest.write(folder, manifest.Manifest(split, layout, names, recorded, tuple(listed), {}))
  return path


def latent_arrays(num=24, side=4):
  mean = RNG.normal(0, 0.5, (num, side, side, 4)).astype(np.float32)
  std = RNG.uniform(0.1, 0.2, mean.shape).astype(np.float32)
  return {"image": mean, "image_std": std, "label": np.arange(num) % 10}


def config(path, wanted="scm", side=4, **values):
  c = mlc.ConfigDict(tiny.get_config().to_dict())
  c.data = dict(
    name="records", flip=False, records=dict(path=str(path), latents=wanted, max_corrupt=0)
  )
  c.net = dict(
    name="ddpmpp", resolution=side, in_channels=4, channels=4, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(), dropout=0.0, num_classes=10, modulation="pnorm_scale_shift",
    dtype="float32",
  )  # fmt: skip
  c.loss = dict(name="diffusion", P_mean=-0.4, P_std=1.0, weighting="learned")
  c.evals, c.batch_size = {}, 8
  c.update_from_flattened_dict(values)
  return c
