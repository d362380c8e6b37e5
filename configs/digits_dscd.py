r"""Real digits, 8x8: discrete-time sCD of the teacher (dsCD; sCM, appendix E).

  python -m cmjax.main --config=configs/digits_dscd.py --workdir=runs/digits_dscd

Needs first: cmjax train --config=digits_teacher --workdir=runs/digits_teacher

As digits_scd.py, but the tangent is a finite difference to the level below on a Karras grid of
1024.

Why these settings (`benchmarks/comparison/rates.py`, one step, classifier features, 2.1 as it is):
a fifth of the rate gives 4.5, five times as much breaks it (14), no warm-up of the tangent gives
2.6.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.loss.name = "scd"
  c.loss.tangent = dict(name="discrete", num_levels=1024)
  c.teacher.workdir = c.init_from.workdir = "runs/digits_teacher"
  return c
