r"""CIFAR-10, unconditional: continuous-time consistency training, sCT (appendix G.1, G.2 of sCM).

  python -m cmjax.main --config=configs/cifar10_sct.py --workdir=runs/cifar10_sct

Needs first: cmjax train --config=cifar10_teacher --workdir=runs/cifar10_teacher

Starts from the teacher's average, as the paper does. cifar10_sct.py:scratch starts from random
weights and needs no teacher. It is not what the numbers below are for, and none is known for it.

The paper (Lu & Song 2024, table 1): FID 2.85 in one step, 2.06 in two. Its replication (edm2_sCM,
TMLR 2026): 2.88 and 2.09 after 397k steps. Not run by us; for what we ran at a small size see
docs/results. 400k steps, no augmentation and no flip are cmjax defaults: the paper does not state
them, its replication does so.
"""

import ml_collections as mlc

from cmjax import pages

VARIANTS = ("scratch",)


def get_config(variant: str = "") -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.net.dropout = 0.20
  if variant != "scratch":
    c.init_from.workdir = "runs/cifar10_teacher"
  return c
