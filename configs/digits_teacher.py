r"""Real digits, 8x8: the diffusion teacher (TrigFlow, v-prediction, learned weighting).

  python -m cmjax.main --config=configs/digits_teacher.py --workdir=runs/digits_teacher

Needs first: nothing. The digits come with scikit-learn.

The 1,442 training digits of scikit-learn (355 are held out). Two minutes on 2 CPU cores.
Pixel-space Frechet distance of 2,000 samples at NFE 35: expected about 0.05, got 0.053
(`make quickstart`, which trains digits_scd.py and digits_sct.py too).
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.total_steps = 800
  c.loss = dict(name="diffusion", P_mean=-0.4, P_std=1.2, weighting="learned")
  c.optim.lr = 3e-3
  c.optim.schedule = dict(name="constant", warmup_steps=100)
  c.ema.main.rampup_ratio = 0.05
  c.samplers = dict(heun=dict(name="heun", num_steps=18))
  c.evals.grid.every_steps = 400
  c.evals.grid.samplers = c.evals.fd.samplers = c.evals.speed.samplers = ("heun",)
  return c
