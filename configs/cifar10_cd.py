r"""CIFAR-10, unconditional: consistency distillation in discrete time (CD).

  python -m cmjax.main --config=configs/cifar10_cd.py --workdir=runs/cifar10_cd

Needs first: cmjax train --config=cifar10_edm_teacher --workdir=runs/cifar10_edm_teacher

Distils, and starts from, the average of runs/cifar10_edm_teacher. Heun steps on N = 18 levels, the
target is the network itself (mu = 0), RAdam 4e-4, batch 512, 800k steps (Song et al. 2023, table
3). The squared l2 distance; cifar10_cd.py:lpips takes LPIPS, which the paper finds best.

Published, with LPIPS: FID 3.55 in one step, 2.93 in two. Not run by us. The network is its
teacher's DDPM++; the paper's is the NCSN++ of cifar10_ct.py.
"""

import ml_collections as mlc

from cmjax import pages

VARIANTS = ("lpips",)


def get_config(variant: str = "") -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.total_steps = 800_000
  c.data.flip = True
  c.net.update(modulation="additive", preconditioning="edm")
  c.loss = dict(
    name="cd", sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"), solver="heun",
    pairs=dict(name="uniform"), curriculum=dict(name="fixed", N=18), target=dict(name="current"),
  )  # fmt: skip
  if variant == "lpips":
    c.loss.distance = pages.shared("lpips")
  c.optim.update(lr=4e-4, b2=0.999)
  c.ema = dict(main=dict(name="constant", beta=0.9999))
  c.teacher.workdir = c.init_from.workdir = "runs/cifar10_edm_teacher"
  c.samplers.two_step = dict(name="consistency", mid_sigmas=(0.585,))
  return c
