"""Exponential moving averages of the parameters; several lengths at once."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cmjax.types import Array, Params

# step (0 at the first update) -> beta of ema <- beta ema + (1 - beta) params
Decay = Callable[[ArrayLike], Array]


def half_life(
  half_life_images: int | float, *, batch_size: int, rampup_ratio: float | None = 0.05
) -> Decay:
  """beta = 0.5^(batch / h) with h = min(half_life, rampup_ratio * images seen) (EDM, section 4.1).

  The ramp-up keeps the average within a fixed fraction of the training so far: the first update
  copies the parameters, so initial weights never count.

  >>> round(float(half_life(500_000, batch_size=512, rampup_ratio=None)(0)), 5)
  0.99929
  """
  if half_life_images <= 0:
    raise ValueError(f"half_life_images={half_life_images} must be positive.")

  def decay(step):
    h = jnp.asarray(half_life_images, jnp.float32)
    if rampup_ratio is not None:
      h = jnp.minimum(h, rampup_ratio * batch_size * step)
    # At step 0 h is 0, and 0.5^inf = 0 is the limit meant.
    return jnp.exp2(-batch_size / h)

  return decay


def update(
  averages: dict[str, Params], params: Params, step: ArrayLike, decays: Mapping[str, Decay]
) -> dict[str, Params]:
  """All averages after the update that `step` counts from 0: ema + (1 - beta) (params - ema)."""

  def one(name):
    weight = 1.0 - decays[name](step)
    # Written as a difference: exact where both agree, and where beta is 0.
    return jax.tree.map(lambda e, p: jnp.where(weight == 1.0, p, e + weight * (p - e)),
                        averages[name], params)  # fmt: skip

  return {name: one(name) for name in averages}
