"""Random weights for the detectors, at which features neither vanish nor grow."""

import numpy as np

from cmjax.metrics.detectors.network import shapes


def random_weights(module, seed=0):
  rng = np.random.default_rng(seed)

  def draw(name, shape):
    if name.endswith(("running_var", "gamma")) or (len(shape) == 1 and name.endswith("weight")):
      return rng.uniform(0.5, 1.5, shape)
    if len(shape) in (2, 4):
      return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    return 0.1 * rng.normal(size=shape)

  return {name: draw(name, shape).astype(np.float32) for name, shape in shapes(module).items()}
