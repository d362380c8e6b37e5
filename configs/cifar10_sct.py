r"""CIFAR-10, unconditional: continuous-time consistency training, sCT (appendix G.1, G.2 of sCM).

  python -m cmjax.main --config=configs/cifar10_sct.py --workdir=runs/cifar10_sct

Starts from the teacher's average if one is named (the paper does; else from random weights):
--config.init_from.workdir=runs/cifar10_teacher. Data as in cifar10_teacher.py.

The paper (Lu & Song 2024, table 1): FID 2.85 in one step, 2.06 in two. Not run by us; for what we
ran at a small size see docs/results. 400k steps, no augmentation and no flip are cmjax
defaults (the paper does not state them; its replication does so).
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.net.dropout = 0.20
  return c
