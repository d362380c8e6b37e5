r"""ImageNet-512 in latents of 64x64x4: continuous-time consistency distillation, sCD, S to XXL.

  python -m cmjax.main --config=configs/imagenet512_scd.py:xxl --workdir=runs/imagenet512_scd_xxl
  python -m cmjax.main --config=configs/imagenet512_scd.py:xxl --mode=plan --topology=v5p:4x4x4

Needs first: cmjax train --config=imagenet512_teacher:s --workdir=runs/imagenet512_teacher_s

The size comes after the colon: s (the default), m, l, xl, xxl; 280 M to 1.5 B parameters. Batch
2048, 200k steps, average sigma_rel 0.05, no flip; the teacher is guided with a scale from U[1, 2],
which the student is told (sCM, table 5). Distils, and starts from, the average of
runs/imagenet512_teacher_<size>: the same network without the input for the scale.

What a run needs on which chips: --mode=plan, which reads no data; docs/results/planning.md has that
of XXL. Samples are latents; data.records.vae makes images of them.

Published, in one and two steps: FID 3.07, 2.50 (S); 2.75, 2.26 (M); 2.55, 2.04 (L); 2.40, 1.93
(XL); 2.28, 1.88 (XXL). Not run by us.
"""

import ml_collections as mlc

from cmjax import pages

# size: learning rate, dropout at 16x16 and below, guidance in one step and in two
SIZES = {
  "s": (1.0e-4, 0.0, 1.5, 1.4),
  "m": (9.0e-5, 0.1, 1.3, 1.2),
  "l": (8.0e-5, 0.1, 1.3, 1.2),
  "xl": (7.0e-5, 0.1, 1.3, 1.2),
  "xxl": (6.5e-5, 0.1, 1.3, 1.2),
}
VARIANTS = tuple(SIZES)


def get_config(size: str = "s") -> mlc.ConfigDict:
  c = pages.shared(f"imagenet512:{size}")
  c.total_steps = 200_000
  c.optim.lr, c.net.dropout, one_step, two_step = SIZES[size]
  c.net.guidance = True
  c.loss.update(name="scd", guidance=(1.0, 2.0))
  c.teacher.workdir = c.init_from.workdir = f"runs/imagenet512_teacher_{size}"
  c.samplers.one_step.guidance = dict(name="input", scale=one_step)
  c.samplers.two_step.guidance = dict(name="input", scale=two_step)
  return c
