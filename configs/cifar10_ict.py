r"""CIFAR-10, unconditional: improved consistency training (iCT), from random weights.

  python -m cmjax.main --config=configs/cifar10_ict.py --workdir=runs/cifar10_ict

Pseudo-Huber with c = 0.00054 sqrt(D), weight 1 / (sigma_{i+1} - sigma_i), lognormal pairs, N
doubling from 10 to 1280, Fourier scale 0.02, dropout 0.3, RAdam 1e-4, batch 1024, 400k steps,
average 0.99993 (Song & Dhariwal 2023; what of this is confirmed: docs/methods.md).

Published: FID 2.83 in one step, 2.46 in two; no independent reproduction is known. Not run by us.
The network is the paper's NCSN++; iCT-deep is --config.net.num_blocks=8.
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 400_000
  c.batch_size = 8 if smoke else 1_024
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5

  c.data = dict(
    name="tfds", flip=True, tfds=dict(dataset="cifar10", data_dir=None),
    npz=dict(path="~/.cache/cmjax/cifar10.npz"), folder=dict(path="", held_out=0.0),
  )  # fmt: skip
  c.net = dict(
    name="ddpmpp", resolution=32, in_channels=3, channels=8 if smoke else 128,
    channel_mult=(1, 1, 1) if smoke else (2, 2, 2), num_blocks=1 if smoke else 4,
    attn_resolutions=(16,), dropout=0.3, num_classes=0, augment_dim=0,
    modulation="additive", preconditioning="edm", embedding="fourier", fourier_scale=0.02,
    noise_mult=2, fir=(1, 3, 3, 1), encoder="residual", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="ct", sigma_min=0.002, weight="inverse_gap",
    distance=dict(name="pseudo_huber", c=0.00054 * (32 * 32 * 3) ** 0.5),
    pairs=dict(name="lognormal", P_mean=-1.1, P_std=2.0),
    curriculum=dict(
      name="doubling", total_steps=c.total_steps, s0=10, s1=20 if smoke else 1280
    ),
    target=dict(name="current"),
  )  # fmt: skip
  c.optim = dict(
    name="radam", lr=1e-4, b1=0.9, b2=0.999, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="constant", beta=0.99993))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(
    one_step=dict(name="consistency", mid_times=()),
    two_step=dict(name="consistency", mid_sigmas=(0.821,)),
  )
  c.evals = dict(
    grid=dict(name="samples", samplers=("one_step", "two_step"), emas=("main",),
              every_steps=10_000, num_samples=8 if smoke else 64),
    # FID, once its network is named: --config.evals.fid.weights=FILE (docs/metrics.md).
    fid=dict(name="frechet", samplers=("one_step", "two_step"), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="train",
             num_samples=50_000, batch_size=500),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
