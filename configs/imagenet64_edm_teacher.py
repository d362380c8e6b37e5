r"""ImageNet-64, class-conditional: EDM's diffusion teacher, in EDM's preconditioning.

  python -m cmjax.main --config=configs/imagenet64_edm_teacher.py \
    --workdir=runs/imagenet64_edm_teacher

Adam 1e-4, batch 4096, dropout 0.1, average of 50 Mimg, 2500 Mimg (Karras et al. 2022). The network
is the paper's, ADM with 295.9 M parameters, in float32 (theirs: float16 with a scaled loss).
Data as in imagenet64_teacher.py, whose crop is not EDM's (that is --transform=center-crop).

Published: FID 2.44 at NFE 79. Not run by us.
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 610_352
  c.batch_size = 8 if smoke else 4_096
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5

  c.data = dict(
    name="records", flip=False,
    records=dict(path="data/imagenet64", max_corrupt=16, cache="~/.cache/cmjax/records"),
    npz=dict(path=""), folder=dict(path="", held_out=0.0),
    tfds=dict(dataset="imagenet_resized/64x64", data_dir=None),  # other pixels: see the teacher's
  )  # fmt: skip
  c.net = dict(
    name="adm", resolution=64, in_channels=3, channels=8 if smoke else 192,
    channel_mult=(1, 1, 1, 1) if smoke else (1, 2, 3, 4), num_blocks=1 if smoke else 3,
    attn_resolutions=(32, 16, 8), channels_per_head=8 if smoke else 64, dropout=0.1,
    dropout_resolution=64, num_classes=1000, augment_dim=0, modulation="scale_shift",
    preconditioning="edm", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(name="diffusion", P_mean=-1.2, P_std=1.2, weighting="constant")
  c.optim = dict(
    name="adam", lr=1e-4, b1=0.9, b2=0.999, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=2_441),
  )  # fmt: skip
  c.ema = dict(main=dict(name="half_life", half_life_images=50_000_000, rampup_ratio=0.05))
  c.init_from = dict(workdir="", ema="main")
  c.teacher = dict(workdir="", ema="main")

  c.samplers = dict(heun=dict(name="heun", num_steps=3 if smoke else 40))
  c.evals = dict(
    grid=dict(name="samples", samplers=("heun",), emas=("main",),
              every_steps=10_000, num_samples=8 if smoke else 64),
    # FID, once its network is named: --config.evals.fid.weights=FILE (docs/metrics.md).
    fid=dict(name="frechet", samplers=("heun",), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="train",
             num_samples=50_000, batch_size=500, floor=False),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
