r"""CIFAR-10, unconditional: continuous-time consistency training, sCT (appendix G.1, G.2 of sCM).

  python -m cmjax.main --config=configs/cifar10_sct.py --workdir=runs/cifar10_sct

Starts from the teacher's average if one is named (the paper does; else from random weights):
--config.init_from.workdir=runs/cifar10_teacher. Data as in cifar10_teacher.py.

The paper (Lu & Song 2024, table 1): FID 2.85 in one step, 2.06 in two. Not run by us; for what we
ran at a small size see docs/results. 400k steps, no augmentation and no flip are cmjax defaults
(the paper does not state them; its replication does so).
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 400_000
  c.batch_size = 8 if smoke else 512
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
    attn_resolutions=(16,), dropout=0.20, num_classes=0, augment_dim=9,
    modulation="pnorm_scale_shift", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="sct", P_mean=-1.0, P_std=1.4, c=0.1, warmup_steps=10_000, norm="l2", weighting="learned",
  )  # fmt: skip
  c.optim = dict(
    name="radam", lr=1e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="half_life", half_life_images=500_000, rampup_ratio=0.05))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(
    one_step=dict(name="consistency", mid_times=()),
    two_step=dict(name="consistency", mid_times=(1.1,)),  # an angle; sigma 0.98
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
