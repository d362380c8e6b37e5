r"""ImageNet-64, class-conditional: consistency distillation in discrete time (CD).

  python -m cmjax.main --config=configs/imagenet64_cd.py --workdir=runs/imagenet64_cd

Needs first: cmjax train --config=imagenet64_edm_teacher --workdir=runs/imagenet64_edm_teacher

Heun steps on N = 40 levels, target average mu = 0.95, RAdam 8e-6, batch 2048, 600k steps, average
0.999943 (Song et al. 2023, table 3). Distils runs/imagenet64_edm_teacher, an ADM as the paper's.
The paper's body runs in float16 with a scaled loss; this in float32. imagenet64_cd.py:lpips takes
LPIPS, as the paper does.

Published, with LPIPS: FID 6.20 in one step, 4.70 in two. Not run by us.
"""

import ml_collections as mlc

from cmjax import pages

VARIANTS = ("lpips",)


def get_config(variant: str = "") -> mlc.ConfigDict:
  c = pages.shared("imagenet64_adm")
  c.total_steps = 600_000
  c.data.flip = True
  c.loss = dict(
    name="cd", sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"), solver="heun",
    pairs=dict(name="uniform"), curriculum=dict(name="fixed", N=40),
    target=dict(name="constant", beta=0.95),
  )  # fmt: skip
  if variant == "lpips":
    c.loss.distance = pages.shared("lpips")
  c.optim.lr = 8e-6
  c.ema = dict(main=dict(name="constant", beta=0.999943))
  c.teacher.workdir = c.init_from.workdir = "runs/imagenet64_edm_teacher"
  c.samplers.two_step = dict(name="consistency", mid_sigmas=(1.382,))
  return c
