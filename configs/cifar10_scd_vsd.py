r"""CIFAR-10, unconditional: sCD with adaptive variational score distillation beside it.

  python -m cmjax.main --config=configs/cifar10_scd_vsd.py --workdir=runs/cifar10_scd_vsd

Needs first: cmjax train --config=cifar10_teacher --workdir=runs/cifar10_teacher

The fake-score network starts from the teacher too and is trained 1:1 by its own optimizer (sCM,
appendix C). The paper has this on ImageNet-512 only, for 20k steps: proposal and lambda of the VSD
part are those, the rest is cifar10_scd.py's.

Not run by us.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.total_steps = 20_000
  c.loss.name = "scd"
  c.loss.vsd = dict(
    lambda_vsd=1.0, P_mean=0.4, P_std=2.0,
    fake=dict(P_mean=-1.0, P_std=1.4, optim=c.optim.to_dict()),
  )  # fmt: skip
  c.teacher.workdir = c.init_from.workdir = "runs/cifar10_teacher"
  return c
