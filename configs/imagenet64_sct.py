r"""ImageNet-64, class-conditional: continuous-time consistency training, sCT, S to XL.

  python -m cmjax.main --config=configs/imagenet64_sct.py:xl --workdir=runs/imagenet64_sct_xl

Needs first: cmjax train --config=imagenet64_teacher:s --workdir=runs/imagenet64_teacher_s

The size comes after the colon: s (the default), m, l, xl. From the average of
runs/imagenet64_teacher_<size>, whose network it is; Adam 1e-4 (S) to 7e-5 with EDM2's schedule,
batch 2048, 400k steps, dropout 0.45 at 16x16 and below, average sigma_rel 0.05, no flip (sCM, table
4).

Published, in one and two steps: FID 3.23, 2.93 (S); 2.25, 1.81 (M); 2.08, 1.57 (L); 2.04, 1.48
(XL). The replication (edm2_sCM, TMLR 2026), size S: 4.34, 3.98. Not run by us.
"""

import ml_collections as mlc

from cmjax import pages

RATES = {"s": 1e-4, "m": 9e-5, "l": 8e-5, "xl": 7e-5}
VARIANTS = tuple(RATES)


def get_config(size: str = "s") -> mlc.ConfigDict:
  c = pages.shared(f"imagenet64:{size}")
  c.net.dropout = 0.45
  c.optim.lr = RATES[size]
  c.init_from.workdir = f"runs/imagenet64_teacher_{size}"
  return c
