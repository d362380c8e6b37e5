r"""Real digits, 8x8: sCD of a class-conditional teacher under guidance, one student for all scales.

  python -m cmjax.main --config=configs/digits_scd_guided.py --workdir=runs/digits_scd_guided

Needs first: cmjax train --config=digits_cond_teacher --workdir=runs/digits_cond_teacher

The scale s ~ U[1, 2] of classifier-free guidance is an input of the student (sCM, appendix G.1).
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("digits")
  c.net.update(num_classes=10, guidance=True)
  c.loss.update(name="scd", guidance=(1.0, 2.0))
  c.teacher.workdir = c.init_from.workdir = "runs/digits_cond_teacher"
  told = lambda scale: dict(name="input", scale=scale)
  c.samplers = dict(
    two_step=dict(name="consistency", mid_times=(1.1,), guidance=told(1.0)),
    guided=dict(name="consistency", mid_times=(1.1,), guidance=told(1.5)),
  )
  c.evals.grid.samplers = c.evals.fd.samplers = c.evals.speed.samplers = ("two_step", "guided")
  return c
