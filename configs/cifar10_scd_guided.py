r"""CIFAR-10, class-conditional: sCD of a teacher under guidance, one student for all scales.

  python -m cmjax.main --config=configs/cifar10_scd_guided.py --workdir=runs/cifar10_scd_guided

Needs first: cmjax train --config=cifar10_cond_teacher --workdir=runs/cifar10_cond_teacher

The scale s ~ U[1, 2] of classifier-free guidance is an input of the student, through a layer that
starts at zero (sCM, appendix G.1; there on ImageNet-512).

Not run by us.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.net.update(num_classes=10, guidance=True)
  c.loss.update(name="scd", guidance=(1.0, 2.0))
  c.teacher.workdir = c.init_from.workdir = "runs/cifar10_cond_teacher"
  told = lambda scale: dict(name="input", scale=scale)
  c.samplers = dict(
    two_step=dict(name="consistency", mid_times=(1.1,), guidance=told(1.0)),
    guided=dict(name="consistency", mid_times=(1.1,), guidance=told(1.5)),
  )
  c.evals.grid.samplers = c.evals.fid.samplers = ("two_step", "guided")
  return c
