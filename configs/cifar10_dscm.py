r"""CIFAR-10, unconditional: discrete-time sCM (dsCM), from the teacher's average.

  python -m cmjax.main --config=configs/cifar10_dscm.py --workdir=runs/cifar10_dscm

Needs first: cmjax train --config=cifar10_teacher --workdir=runs/cifar10_teacher

As cifar10_sct.py, but the tangent is a finite difference to the level below on a Karras grid of
1024, the best discrete value of sCM's figure 5c (where continuous time beats every grid).

Published as a curve only, for ImageNet-512. Not run by us.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.net.dropout = 0.20
  c.loss.tangent = dict(name="discrete", num_levels=1024)
  c.init_from.workdir = "runs/cifar10_teacher"
  return c
