r"""ImageNet-64, class-conditional: consistency training in discrete time (CT).

  python -m cmjax.main --config=configs/imagenet64_ct.py --workdir=runs/imagenet64_ct

Needs first: cmjax prepare ILSVRC/train --out data/imagenet64, whole in imagenet64_teacher.py.

N(k) from 2 to 200, mu0 = 0.95, RAdam 8e-6, batch 2048, 800k steps, average 0.999943, from random
weights (Song et al. 2023, table 3; the released script has lr 1e-4 and starts from the teacher).
The network is the paper's ADM, in float32 (theirs: float16 with a scaled loss). iCT found its scale
and shift unstable and does without: --config.net.modulation=additive. imagenet64_ct.py:lpips takes
LPIPS, as the paper does.

Published, with LPIPS: FID 13.0 in one step, 11.1 in two. Not run by us.
"""

import ml_collections as mlc

from cmjax import pages

VARIANTS = ("lpips",)


def get_config(variant: str = "") -> mlc.ConfigDict:
  c = pages.shared("imagenet64_adm")
  c.total_steps = 800_000
  c.data.flip = True
  c.loss = dict(
    name="ct", sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"),
    pairs=dict(name="uniform"),
    curriculum=dict(name="square_root", total_steps=c.total_steps, s0=2, s1=200),
    target=dict(name="curriculum", mu0=0.95, convention="paper"),
  )  # fmt: skip
  if variant == "lpips":
    c.loss.distance = pages.shared("lpips")
  c.optim.lr = 8e-6
  c.ema = dict(main=dict(name="constant", beta=0.999943))
  c.samplers.two_step = dict(name="consistency", mid_sigmas=(1.913,))
  return c
