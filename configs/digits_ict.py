r"""Real digits, 8x8: improved consistency training (iCT; Song & Dhariwal 2023).

  python -m cmjax.main --config=configs/digits_ict.py --workdir=runs/digits_ict

Needs first: nothing. The digits come with scikit-learn.

Pseudo-Huber distance with c = 0.00054 sqrt(D), weight 1 / (sigma_{i+1} - sigma_i), lognormal pairs,
N(k) doubling from 10 to 160 levels (1280 in the paper), no target average. From random weights, as
in the paper: --config.init_from.workdir=runs/digits_teacher starts from the teacher.

Why this rate, which is the paper's (`benchmarks/comparison/rates.py`, one step, classifier
features, 2.8 as it is): a fifth of it gives 4.6, five times as much 3.6.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.loss = dict(
    name="ct", sigma_min=0.002, weight="inverse_gap",
    distance=dict(name="pseudo_huber", c=0.00054 * 64**0.5),
    pairs=dict(name="lognormal", P_mean=-1.1, P_std=2.0),
    curriculum=dict(name="doubling", total_steps=c.total_steps, s0=10, s1=160),
    target=dict(name="current"),
  )  # fmt: skip
  c.optim.update(name="radam", lr=1e-3, b2=0.999)
  c.optim.schedule = dict(name="constant", warmup_steps=0)
  return c
