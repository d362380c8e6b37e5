r"""ImageNet-512 in latents of 64x64x4: sCD with adaptive variational score distillation, S to XXL.

  python -m cmjax.main --config=configs/imagenet512_scd_vsd.py:xxl \
      --workdir=runs/imagenet512_scd_vsd_xxl

Needs first: cmjax train --config=imagenet512_teacher:s --workdir=runs/imagenet512_teacher_s

The size comes after the colon: s (the default), m, l, xl, xxl; 280 M to 1.5 B parameters. As
configs/imagenet512_scd.py, for 20k steps, with the VSD loss of weight 1 and a fake-score network
that starts from the teacher too and is trained 1:1, at the same rate and with the same dropout
(sCM, appendix C and table 5). Samples are latents: there is
nothing here that scores them.

Published, in one and two steps, at guidance 1.2 (S) or 1: FID 3.37, 2.70 (S); 2.67, 2.29 (M); 2.26,
1.99 (L); 2.39, 2.01 (XL); 2.16, 1.89 (XXL). Not run by us.
"""

import ml_collections as mlc

from cmjax import pages

# size: learning rate of both networks, dropout at 16x16 and below, guidance of samples
SIZES = {
  "s": (1.0e-4, 0.0, 1.2),
  "m": (9.0e-5, 0.1, 1.0),
  "l": (8.0e-5, 0.1, 1.0),
  "xl": (7.0e-5, 0.1, 1.0),
  "xxl": (6.5e-5, 0.1, 1.0),
}
VARIANTS = tuple(SIZES)


def get_config(size: str = "s") -> mlc.ConfigDict:
  c = pages.shared(f"imagenet512:{size}")
  c.total_steps = 20_000
  c.optim.lr, c.net.dropout, scale = SIZES[size]
  c.net.guidance = True
  c.loss.update(name="scd", guidance=(1.0, 2.0))
  c.loss.vsd = dict(
    lambda_vsd=1.0, P_mean=0.4, P_std=2.0,
    fake=dict(P_mean=-0.8, P_std=1.6, optim=c.optim.to_dict()),
  )  # fmt: skip
  c.snapshots.every_steps = 1_024  # 2 Mi images
  c.teacher.workdir = c.init_from.workdir = f"runs/imagenet512_teacher_{size}"
  c.samplers.one_step.guidance = c.samplers.two_step.guidance = dict(name="input", scale=scale)
  return c
