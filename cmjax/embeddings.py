"""Embeddings of one number per sample, for networks and for the learned weighting alike."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped


def positional(
  t: Shaped[Array, " b"], channels: int, *, max_period: float = 10000.0
) -> Float[Array, "b n"]:
  """The sinusoidal embedding [cos(t f), sin(t f)] with f_i = max_period^(-i / (n/2 - 1)).

  The frequencies run from exactly 1 down to exactly 1 / max_period ("endpoint" in Karras et al.
  2022) and multiply t itself: sCM (arXiv 2410.11081, sec. 4.1) needs a small d emb / dt, and
  c_noise = 1000 t, common elsewhere, makes it a thousand times larger.

  Args:
    t: one number per sample, of any dtype.
    channels: n, the width; even and at least 4.
    max_period: the inverse of the lowest frequency.

  Returns:
    All cosines, then all sines, in float32, or in float64 where t is.

  Raises:
    ValueError: for a width that is odd or less than 4.

  >>> import jax.numpy as jnp
  >>> positional(jnp.zeros(2), 4).tolist()
  [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
  """
  if channels < 4 or channels % 2:
    raise ValueError(
      f"A positional embedding needs an even number of channels, at least 4; got {channels}. "
      f"Nearest: {max(4, channels + channels % 2)}."
    )
  t = t.astype(jnp.promote_types(t.dtype, jnp.float32))
  half = channels // 2
  freqs = max_period ** (-np.arange(half) / (half - 1))
  angles = t[:, None] * jnp.asarray(freqs, t.dtype)[None, :]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def fourier(t: Shaped[Array, " b"], freqs: Float[Array, " h"]) -> Float[Array, "b n"]:
  """The random Fourier features [cos(2 pi f t), sin(2 pi f t)] of Tancik et al. 2020, n = 2 h.

  In NCSN++ f ~ 16 N(0, 1) and t = ln(sigma) / 4 (EDM, table 1); iCT (arXiv 2310.14189)
  lowers the 16 to 0.02, because d emb / dt grows with it.

  Args:
    t: one number per sample, of any dtype.
    freqs: f, one for each pair of a cosine and a sine.

  Returns:
    All cosines, then all sines, in float32, or in float64 where t is.

  >>> import jax.numpy as jnp
  >>> fourier(jnp.array([0.0, 1.0]), jnp.array([0.5])).round(4).tolist()
  [[1.0, 0.0], [-1.0, -0.0]]
  """
  t = t.astype(jnp.promote_types(t.dtype, jnp.float32))
  angles = 2 * np.pi * t[:, None] * freqs.astype(t.dtype)[None, :]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
