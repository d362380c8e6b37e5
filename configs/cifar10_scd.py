r"""CIFAR-10, unconditional: continuous-time consistency distillation, sCD (G.1, G.2 of sCM).

  python -m cmjax.main --config=configs/cifar10_scd.py --workdir=runs/cifar10_scd

Distils, and starts from, the average of the teacher in runs/cifar10_teacher (train
cifar10_teacher.py first). Data as in cifar10_teacher.py.

The paper (Lu & Song 2024, table 1): FID 3.66 in one step, 2.52 in two. Not run by us; for what we
ran at a small size see docs/results. 400k steps, no augmentation and no flip are cmjax
defaults (the paper does not state them; its replication does so, and was best near 139k steps).
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.loss.name = "scd"
  c.teacher.workdir = c.init_from.workdir = "runs/cifar10_teacher"
  return c
