r"""Real digits, 8x8: the class-conditional diffusion teacher, a tenth of its labels dropped.

  python -m cmjax.main --config=configs/digits_cond_teacher.py --workdir=runs/digits_cond_teacher

Needs first: nothing. The digits come with scikit-learn.

As digits_teacher.py with classes, so that classifier-free guidance can ask it for a prediction
without one: digits_scd_guided.py distils it.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.total_steps = 800
  c.net.num_classes = 10
  c.loss = dict(name="diffusion", P_mean=-0.4, P_std=1.2, weighting="learned", label_dropout=0.1)
  c.optim.lr = 3e-3
  c.optim.schedule = dict(name="constant", warmup_steps=100)
  c.ema.main.rampup_ratio = 0.05
  c.samplers = dict(heun=dict(name="heun", num_steps=18))
  c.evals.grid.every_steps = 400
  c.evals.grid.samplers = c.evals.fd.samplers = c.evals.speed.samplers = ("heun",)
  return c
