r"""Real digits, 8x8: discrete-time sCM from the teacher's average (dsCM; sCM, appendix E).

  python -m cmjax.main --config=configs/digits_dscm.py --workdir=runs/digits_dscm

Needs first: cmjax train --config=digits_teacher --workdir=runs/digits_teacher

As digits_sct.py, but the tangent is a finite difference to the level below on a Karras grid of
1024.

Why these settings (`benchmarks/comparison/rates.py`, one step, classifier features, 2.2 as it is):
a fifth of the rate gives 4.1, five times as much 2.3 (in four steps 2.0 or more for 1.8), no
warm-up of the tangent 2.5.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.loss.tangent = dict(name="discrete", num_levels=1024)
  c.init_from.workdir = "runs/digits_teacher"
  return c
