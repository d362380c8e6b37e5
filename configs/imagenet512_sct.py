r"""ImageNet-512 in latents of 64x64x4: continuous-time consistency training, sCT, S to XXL.

  python -m cmjax.main --config=configs/imagenet512_sct.py:xxl --workdir=runs/imagenet512_sct_xxl

Needs first: cmjax train --config=imagenet512_teacher:s --workdir=runs/imagenet512_teacher_s

The size comes after the colon: s (the default), m, l, xl, xxl; 280 M to 1.5 B parameters. From the
average of runs/imagenet512_teacher_<size>, whose network it is; batch 2048, 100k steps, dropout
0.25 (S) or 0.35 at 16x16 and below, average sigma_rel 0.05, no flip, no guidance (sCM, table 5).
Data as configs/imagenet512_teacher.py. Samples are latents; data.records.vae makes images of them.

Published, in one and two steps: FID 10.13, 9.86 (S); 5.84, 5.53 (M); 5.15, 4.65 (L); 4.33, 3.73
(XL); 4.29, 3.76 (XXL). Not run by us.
"""

import ml_collections as mlc

from cmjax import pages

# size: learning rate, dropout at 16x16 and below
SIZES = {
  "s": (1.0e-4, 0.25),
  "m": (9.0e-5, 0.35),
  "l": (8.0e-5, 0.35),
  "xl": (7.0e-5, 0.35),
  "xxl": (6.5e-5, 0.35),
}
VARIANTS = tuple(SIZES)


def get_config(size: str = "s") -> mlc.ConfigDict:
  c = pages.shared(f"imagenet512:{size}")
  c.optim.lr, c.net.dropout = SIZES[size]
  c.init_from.workdir = f"runs/imagenet512_teacher_{size}"
  return c
