r"""ImageNet-64, class-conditional: continuous-time consistency distillation, sCD, S to XL.

  python -m cmjax.main --config=configs/imagenet64_scd.py:xl --workdir=runs/imagenet64_scd_xl

Needs first: cmjax train --config=imagenet64_teacher:s --workdir=runs/imagenet64_teacher_s

The size comes after the colon: s (the default), m, l, xl. Distils, and starts from, the average of
runs/imagenet64_teacher_<size>, whose network it is; Adam 1e-4 (S) to 7e-5 with EDM2's schedule,
batch 2048, 400k steps, average sigma_rel 0.05, no flip, no dropout (sCM, table 4).

Published, in one and two steps: FID 2.97, 2.07 (S); 2.79, 1.89 (M); 2.43, 1.70 (L); 2.44, 1.66
(XL). The replication (edm2_sCM, TMLR 2026), size S: 3.59, 2.66. Not run by us.
"""

import ml_collections as mlc

from cmjax import pages

RATES = {"s": 1e-4, "m": 9e-5, "l": 8e-5, "xl": 7e-5}
VARIANTS = tuple(RATES)


def get_config(size: str = "s") -> mlc.ConfigDict:
  c = pages.shared(f"imagenet64:{size}")
  c.loss.name = "scd"
  c.optim.lr = RATES[size]
  c.ema.long = dict(name="power", sigma_rel=0.10)
  # Copies of both, every 32 Mi images, for averages of other lengths: docs/concepts/averages.md.
  c.snapshots = dict(every_steps=16_384, emas=("main", "long"), dtype="float16")
  c.teacher.workdir = c.init_from.workdir = f"runs/imagenet64_teacher_{size}"
  return c
