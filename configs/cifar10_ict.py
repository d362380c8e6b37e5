r"""CIFAR-10, unconditional: improved consistency training (iCT), from random weights.

  python -m cmjax.main --config=configs/cifar10_ict.py --workdir=runs/cifar10_ict

Needs first: nothing. CIFAR-10 is downloaded at the first start (170 MB).

Pseudo-Huber with c = 0.00054 sqrt(D), weight 1 / (sigma_{i+1} - sigma_i), lognormal pairs, N
doubling from 10 to 1280, Fourier scale 0.02, dropout 0.3, RAdam 1e-4, batch 1024, 400k steps,
average 0.99993 (Song & Dhariwal 2023). docs/methods.md says how far others have reproduced it.

Published: FID 2.83 in one step, 2.46 in two; no independent reproduction is known. Not run by us.
The network is the paper's NCSN++; iCT-deep is --config.net.num_blocks=8.
"""

import ml_collections as mlc

from cmjax import pages


def get_config() -> mlc.ConfigDict:
  c = pages.shared("cifar10")
  c.batch_size = 1_024
  c.data.flip = True
  c.net.update(
    augment_dim=0, modulation="additive", preconditioning="edm", embedding="fourier",
    fourier_scale=0.02, noise_mult=2, fir=(1, 3, 3, 1), encoder="residual", dropout=0.3,
  )  # fmt: skip
  c.loss = dict(
    name="ct", sigma_min=0.002, weight="inverse_gap",
    distance=dict(name="pseudo_huber", c=0.00054 * (32 * 32 * 3) ** 0.5),
    pairs=dict(name="lognormal", P_mean=-1.1, P_std=2.0),
    curriculum=dict(name="doubling", total_steps=c.total_steps, s0=10, s1=1280),
    target=dict(name="current"),
  )  # fmt: skip
  c.optim.b2 = 0.999
  c.ema = dict(main=dict(name="constant", beta=0.99993))
  c.samplers.two_step = dict(name="consistency", mid_sigmas=(0.821,))
  return c
