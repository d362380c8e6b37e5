r"""CIFAR-10, class-conditional: sCD of a teacher under guidance, one student for all scales.

  python -m cmjax.main --config=configs/cifar10_scd_guided.py --workdir=runs/cifar10_scd_guided

The scale s ~ U[1, 2] of classifier-free guidance is an input of the student, through a layer that
starts at zero (sCM, appendix G.1; there on ImageNet-512). Train cifar10_cond_teacher.py in
runs/cifar10_cond_teacher first.

Not run by us.
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
    attn_resolutions=(16,), dropout=0.0, num_classes=10, augment_dim=9,
    modulation="pnorm_scale_shift", guidance=True, dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="scd", P_mean=-1.0, P_std=1.4, c=0.1, warmup_steps=10_000, norm="l2", weighting="learned",
    guidance=(1.0, 2.0),
  )  # fmt: skip
  c.optim = dict(
    name="radam", lr=1e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="half_life", half_life_images=500_000, rampup_ratio=0.05))
  c.init_from = dict(workdir="runs/cifar10_cond_teacher", ema="main")
  c.teacher = dict(workdir="runs/cifar10_cond_teacher", ema="main")

  c.samplers = dict(
    two_step=dict(name="consistency", mid_times=(1.1,), guidance=dict(name="input", scale=1.0)),
    guided=dict(name="consistency", mid_times=(1.1,), guidance=dict(name="input", scale=1.5)),
  )
  c.evals = dict(
    grid=dict(name="samples", samplers=("two_step", "guided"), emas=("main",),
              every_steps=10_000, num_samples=8 if smoke else 64),
    # FID, once its network is named: --config.evals.fid.weights=FILE (docs/metrics.md).
    fid=dict(name="frechet", samplers=("two_step", "guided"), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="train",
             num_samples=50_000, batch_size=500),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
