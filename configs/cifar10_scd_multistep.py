r"""CIFAR-10, unconditional: multistep sCD with two segments.

  python -m cmjax.main --config=configs/cifar10_scd_multistep.py \
    --workdir=runs/cifar10_scd_multistep

The student jumps from any t to the lower end of its segment; NFE is loss.num_segments. The paper
has results and no algorithm: segments of equal angle, one proposal over all of [0, pi/2], the
segment as an extra input that starts at zero (cmjax default, unconfirmed). Train cifar10_teacher.py
in runs/cifar10_teacher first.

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
    attn_resolutions=(16,), dropout=0.0, num_classes=0, augment_dim=9,
    modulation="pnorm_scale_shift", segment=True, dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="scd", P_mean=-1.0, P_std=1.4, c=0.1, warmup_steps=10_000, norm="l2", weighting="learned",
    num_segments=2,
  )  # fmt: skip
  c.optim = dict(
    name="radam", lr=1e-4, b1=0.9, b2=0.99, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="half_life", half_life_images=500_000, rampup_ratio=0.05))
  c.init_from = dict(workdir="runs/cifar10_teacher", ema="main")
  c.teacher = dict(workdir="runs/cifar10_teacher", ema="main")

  c.samplers = dict(segments=dict(name="segments"))
  c.evals = dict(
    grid=dict(name="samples", samplers=("segments",), emas=("main",),
              every_steps=10_000, num_samples=8 if smoke else 64),
    # FID, once its network is named: --config.evals.fid.weights=FILE (docs/metrics.md).
    fid=dict(name="frechet", samplers=("segments",), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="train",
             num_samples=50_000, batch_size=500),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
