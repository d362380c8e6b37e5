r"""Real digits, 8x8: consistency distillation in discrete time (CD; Song et al. 2023).

  python -m cmjax.main --config=configs/digits_cd.py --workdir=runs/digits_cd

Needs first: cmjax train --config=digits_teacher --workdir=runs/digits_teacher

Heun steps of the teacher on a grid of 18 levels, squared l2 distance, the target is the network
itself (mu = 0): the paper's CIFAR-10 setting.

Why this rate (`benchmarks/comparison/rates.py`, one step, classifier features, 2.9 as it is): a
fifth of it gives 3.5, five times as much 5.1. For two steps or four a fifth is better: 1.8 to 2.3
and 1.4 to 2.2, from long averages to short, where the page has 2.9 and 2.8.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.loss = dict(
    name="cd", sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"), solver="heun",
    pairs=dict(name="uniform"), curriculum=dict(name="fixed", N=18), target=dict(name="current"),
  )  # fmt: skip
  c.teacher.workdir = c.init_from.workdir = "runs/digits_teacher"
  return c
