r"""CIFAR-10, unconditional: continuous-time CD of 2023 (theorem 5) of the EDM teacher.

  python -m cmjax.main --config=configs/cifar10_cd_continuous.py \
    --workdir=runs/cifar10_cd_continuous

RAdam 5e-6, dropout 0.3, batch 512, 800k steps (Song et al. 2023, appendix B and released configs).
--config.loss.stop_gradient=False --config.optim.lr=1e-3 is theorem 3 with the paper's rate.

Published as a curve only; discrete CD is better there. Not run by us. The network is its
teacher's DDPM++; the paper's is the NCSN++ of cifar10_ct.py.
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 800_000
  c.batch_size = 8 if smoke else 512
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
    attn_resolutions=(16,), dropout=0.3, num_classes=0, augment_dim=9,
    modulation="additive", preconditioning="edm", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="cd_continuous", sigma_min=0.002, distance=dict(name="squared_l2"), stop_gradient=True,
  )  # fmt: skip
  c.optim = dict(
    name="radam", lr=5e-6, b1=0.9, b2=0.999, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="constant", beta=0.9999))
  c.init_from = dict(workdir="runs/cifar10_edm_teacher", ema="main")
  c.teacher = dict(workdir="runs/cifar10_edm_teacher", ema="main")

  c.samplers = dict(
    one_step=dict(name="consistency", mid_times=()),
    two_step=dict(name="consistency", mid_sigmas=(0.585,)),
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
