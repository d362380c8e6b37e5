r"""CIFAR-10, unconditional: discrete-time sCD (dsCD) of the teacher.

  python -m cmjax.main --config=configs/cifar10_dscd.py --workdir=runs/cifar10_dscd

Needs first: cmjax train --config=cifar10_teacher --workdir=runs/cifar10_teacher

As cifar10_scd.py, but the tangent is a finite difference to the level below on a Karras grid of
1024 (sCM, appendix E).

Published as a curve only, for ImageNet-512. Not run by us.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.loss.name = "scd"
  c.loss.tangent = dict(name="discrete", num_levels=1024)
  c.teacher.workdir = c.init_from.workdir = "runs/cifar10_teacher"
  return c
