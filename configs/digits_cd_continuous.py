r"""Real digits, 8x8: continuous-time CD of 2023 (Song et al. 2023, theorem 5).

  python -m cmjax.main --config=configs/digits_cd_continuous.py --workdir=runs/digits_cd_continuous

Needs first: cmjax train --config=digits_teacher --workdir=runs/digits_teacher

The gradient is that of f^T df/dsigma along the teacher's ODE, squared l2;
--config.loss.stop_gradient=False is theorem 3.

Why this rate (`benchmarks/comparison/rates.py`, one step, classifier features, 2.9 as it is): a
fifth of it gives 5.3, five times as much 2.6 (in two steps 2.5 for 2.3).
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.loss = dict(
    name="cd_continuous", sigma_min=0.002, distance=dict(name="squared_l2"), stop_gradient=True
  )
  c.optim.lr = 2.5e-4
  c.teacher.workdir = c.init_from.workdir = "runs/digits_teacher"
  return c
