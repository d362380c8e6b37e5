r"""Real digits, 8x8: continuous-time CT of 2023 (Song et al. 2023, theorem 6).

  python -m cmjax.main --config=configs/digits_ct_continuous.py --workdir=runs/digits_ct_continuous

Needs first: cmjax train --config=digits_teacher --workdir=runs/digits_teacher

It starts from the teacher, as in the paper. The gradient is that of f^T df/dsigma with the data's
velocity, squared l2.

Why this rate (`benchmarks/comparison/rates.py`, one step, classifier features, 2.8 as it is): a
fifth of it gives 5.4, five times as much 3.4.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.loss = dict(
    name="ct_continuous", sigma_min=0.002, distance=dict(name="squared_l2"), stop_gradient=True
  )
  c.optim.lr = 2.5e-4
  c.init_from.workdir = "runs/digits_teacher"
  return c
