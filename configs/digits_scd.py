r"""Real digits, 8x8: consistency distillation (sCD) of the teacher.

  python -m cmjax.main --config=configs/digits_scd.py --workdir=runs/digits_scd

Needs first: cmjax train --config=digits_teacher --workdir=runs/digits_teacher

Two minutes on 2 CPU cores. Pixel-space Frechet distance in two steps and in one: at most 2 and 4
times the teacher's is expected; got 0.082 and 0.101, 1.5 and 1.9 times (`make quickstart`). A
constant learning rate of 5e-4 diverges; the decay matters, since a normalised tangent keeps its
size near the optimum.

Why these settings (`benchmarks/comparison/rates.py`, one step, classifier features, 2.1 as it is):
a fifth of the rate gives 4.5, five times as much breaks it (6.4), no warm-up of the tangent gives
2.6.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.loss.name = "scd"
  c.teacher.workdir = c.init_from.workdir = "runs/digits_teacher"
  return c
