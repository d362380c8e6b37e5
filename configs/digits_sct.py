r"""Real digits, 8x8: consistency training (sCT) from the teacher's average.

  python -m cmjax.main --config=configs/digits_sct.py --workdir=runs/digits_sct

Needs first: cmjax train --config=digits_teacher --workdir=runs/digits_teacher

From random weights instead: --config.init_from.workdir=

Two minutes on 2 CPU cores. Pixel-space Frechet distance in two steps and in one: at most 2 and 4
times the teacher's is expected; got 0.086 and 0.113, 1.6 and 2.1 times (`make quickstart`). The
optimizer is that of digits_scd.py.

Why these settings (`benchmarks/comparison/rates.py`, one step, classifier features, 2.1 as it is):
a fifth of the rate gives 4.0, five times as much 2.3 (in four steps 2.0 or more for 1.8), no
warm-up of the tangent 2.5.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.init_from.workdir = "runs/digits_teacher"
  return c
