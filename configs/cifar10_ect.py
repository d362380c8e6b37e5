r"""CIFAR-10, unconditional: easy consistency tuning (ECT) of the EDM teacher.

  python -m cmjax.main --config=configs/cifar10_ect.py --workdir=runs/cifar10_ect

Starts from runs/cifar10_edm_teacher. Pairs (t, r) whose gap halves every 25k steps (q = 2, 8
stages), l2 distance, weight 1 / (t - r), dropout 0.2, RAdam 1e-4, batch 128, 200k steps, no flip
(Geng et al. 2024). Their training has EDM's unshifted boundary, as here; their sampling shifts it
by 0.003.

Published: FID 3.86 in one step, 2.15 in two after 200k steps. Not run by us.
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 200_000
  c.batch_size = 8 if smoke else 128
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5

  c.data = dict(
    name="tfds", flip=False, tfds=dict(dataset="cifar10", data_dir=None),
    npz=dict(path="~/.cache/cmjax/cifar10.npz"), folder=dict(path="", held_out=0.0),
  )  # fmt: skip
  c.net = dict(
    name="ddpmpp", resolution=32, in_channels=3, channels=8 if smoke else 128,
    channel_mult=(1, 1, 1) if smoke else (2, 2, 2), num_blocks=1 if smoke else 4,
    attn_resolutions=(16,), dropout=0.2, num_classes=0, augment_dim=9,
    modulation="additive", preconditioning="edm", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="ct", sigma_min=0.0, weight="inverse_gap", distance=dict(name="l2"),
    pairs=dict(
      name="ect", P_mean=-1.1, P_std=2.0, q=2.0, k=8.0, b=1.0, mapping="sigmoid",
      num_stages=2 if smoke else 8,
      steps_per_stage=1 if smoke else 25_000,
    ),
    target=dict(name="current"),
  )  # fmt: skip
  c.optim = dict(
    name="radam", lr=1e-4, b1=0.9, b2=0.999, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="constant", beta=0.9999))
  c.init_from = dict(workdir="runs/cifar10_edm_teacher", ema="main")
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
