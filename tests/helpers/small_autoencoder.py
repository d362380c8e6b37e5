"""An SD-VAE of a few channels."""

import functools

import jax
import numpy as np

from cmjax.networks import autoencoder_kl

SMALL = dict(widths=(8, 16), num_blocks=1)


@functools.cache
def small(**kwargs):
  """A small autoencoder, its shapes, and weights that are all different from 0."""
  vae = autoencoder_kl(**SMALL, **kwargs)
  shapes = jax.eval_shape(vae.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  draw = lambda path, a: (path[-1].key == "scale") + 0.2 * rng.normal(size=a.shape)
  params = jax.tree_util.tree_map_with_path(lambda *a: draw(*a).astype("f"), shapes)
  return vae._replace(encode=jax.jit(vae.encode)), shapes, params
