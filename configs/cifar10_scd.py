r"""CIFAR-10, unconditional: continuous-time consistency distillation, sCD (G.1, G.2 of sCM).

  python -m cmjax.main --config=configs/cifar10_scd.py --workdir=runs/cifar10_scd

Needs first: cmjax train --config=cifar10_teacher --workdir=runs/cifar10_teacher

Distils, and starts from, the average of the teacher in runs/cifar10_teacher.

The paper (Lu & Song 2024, table 1): FID 3.66 in one step, 2.52 in two. Its replication (edm2_sCM,
TMLR 2026): 3.59 and 2.39, best at 139k steps. Not run by us; for what we ran at a small size see
docs/results. 400k steps, no augmentation and no flip are cmjax defaults: the paper does not state
them, its replication does so.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.loss.name = "scd"
  c.teacher.workdir = c.init_from.workdir = "runs/cifar10_teacher"
  return c
