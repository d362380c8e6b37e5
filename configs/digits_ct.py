r"""Real digits, 8x8: consistency training in discrete time (CT; Song et al. 2023).

  python -m cmjax.main --config=configs/digits_ct.py --workdir=runs/digits_ct

Needs first: nothing. The digits come with scikit-learn.

Squared l2 distance, N(k) from 2 to 30 levels by the paper's square-root curriculum (150 there, in
800k steps), a target network with the paper's adaptive average, weight 1. From random weights, as
in the paper: --config.init_from.workdir=runs/digits_teacher starts from the teacher.

The rate is that of digits_ict.py. CT bears more (`benchmarks/comparison/rates.py`, one step,
classifier features): five times as much gives 26 for 35 as it is, a fifth 42. Neither comes near
the others.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.loss = dict(
    name="ct", sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"),
    pairs=dict(name="uniform"),
    curriculum=dict(name="square_root", total_steps=c.total_steps, s0=2, s1=30),
    target=dict(name="curriculum", mu0=0.9, convention="paper"),
  )  # fmt: skip
  c.optim.update(name="radam", lr=1e-3, b2=0.999)
  c.optim.schedule = dict(name="constant", warmup_steps=0)
  return c
