r"""Real digits, 8x8: sCD with adaptive variational score distillation beside it.

  python -m cmjax.main --config=configs/digits_scd_vsd.py --workdir=runs/digits_scd_vsd

Needs first: cmjax train --config=digits_teacher --workdir=runs/digits_teacher

A fake-score network of the same shape is trained 1:1 with the student, by its own optimizer (sCM,
appendix C).

Why these settings (`benchmarks/comparison/rates.py`, one step, classifier features, 2.4 as it is):
a fifth of the rate gives 10, five times as much breaks it (22), no warm-up of the tangent gives
3.3.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.loss.name = "scd"
  c.loss.vsd = dict(
    lambda_vsd=1.0, P_mean=0.4, P_std=2.0,
    fake=dict(P_mean=-0.4, P_std=1.6, optim=c.optim.to_dict()),
  )  # fmt: skip
  c.teacher.workdir = c.init_from.workdir = "runs/digits_teacher"
  return c
