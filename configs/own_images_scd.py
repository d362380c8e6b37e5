r"""Your own pictures, 64x64 or 32x32: the few-step student (consistency distillation, sCD).

  python -m cmjax.main --config=configs/own_images_scd.py:64 --workdir=runs/own_images_scd_64

Needs first: cmjax train --config=own_images_teacher:64 --workdir=runs/own_images_teacher_64

Distils, and starts from, the average of that teacher, in half as many steps. Size and number of
pictures come after the colon as in own_images_teacher.py, and must be the same there. The tangent
warms up in a tenth of the steps and the rate falls from a tenth on, as on the digits.

Not run by us at this size.
"""

import ml_collections as mlc

from cmjax import pages

VARIANTS = ("64", "32")


def get_config(size: str = "64", num_images: int = 3_000) -> mlc.ConfigDict:
  c = pages.shared(f"own_images:{size}:{num_images}")
  c.total_steps //= 2
  c.ema.main.half_life_images //= 2
  c.loss.warmup_steps = c.total_steps // 10
  c.optim.schedule = dict(
    name="inverse_sqrt", decay_steps=c.total_steps // 10, warmup_steps=c.total_steps // 30
  )
  for section in (*c.evals.values(), c.checkpoint):
    section.every_steps //= 2
  c.teacher.workdir = c.init_from.workdir = f"runs/own_images_teacher_{size}"
  return c
