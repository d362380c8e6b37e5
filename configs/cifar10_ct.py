r"""CIFAR-10, unconditional: consistency training in discrete time (CT), from random weights.

  python -m cmjax.main --config=configs/cifar10_ct.py --workdir=runs/cifar10_ct

Needs first: nothing. CIFAR-10 is downloaded at the first start (170 MB).

N(k) from 2 to 150 by the square-root curriculum, a target network with mu(k) from mu0 = 0.9 (the
paper's convention; "openai" is that of the released code), RAdam 4e-4, batch 512, 800k steps (Song
et al. 2023, table 3). The squared l2 distance; cifar10_ct.py:lpips takes LPIPS, as the paper does.

Published, with LPIPS: FID 8.70 in one step, 5.83 in two. Not run by us. The network is the
paper's NCSN++.
"""

import ml_collections as mlc

from cmjax import pages

VARIANTS = ("lpips",)


def get_config(variant: str = "") -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.total_steps = 800_000
  c.data.flip = True
  c.net.update(
    augment_dim=0, modulation="additive", preconditioning="edm", embedding="fourier",
    fourier_scale=16.0, noise_mult=2, fir=(1, 3, 3, 1), encoder="residual",
  )  # fmt: skip
  c.loss = dict(
    name="ct", sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"),
    pairs=dict(name="uniform"),
    curriculum=dict(name="square_root", total_steps=c.total_steps, s0=2, s1=150),
    target=dict(name="curriculum", mu0=0.9, convention="paper"),
  )  # fmt: skip
  if variant == "lpips":
    c.loss.distance = pages.shared("lpips")
  c.optim.update(lr=4e-4, b2=0.999)
  c.ema = dict(main=dict(name="constant", beta=0.9999))
  c.samplers.two_step = dict(name="consistency", mid_sigmas=(0.821,))
  return c
