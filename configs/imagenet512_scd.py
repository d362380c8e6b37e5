r"""ImageNet-512 in latents of 64x64x4: continuous-time consistency distillation, sCD, S to XXL.

  python -m cmjax.main --config=configs/imagenet512_scd.py:xxl --workdir=runs/imagenet512_scd_xxl
  python -m cmjax.main --config=configs/imagenet512_scd.py:xxl --mode=plan --topology=v5p:4x4x4

The size comes after the colon: s (the default), m, l, xl, xxl; 280 M to 1.5 B parameters. Batch
2048, 200k steps, average sigma_rel 0.05, no flip; the teacher is guided with a scale from U[1, 2],
which the student is told (sCM, table 5). Distils, and starts from, the average of
runs/imagenet512_teacher_<size>: the same network without the input for the scale. Data as there.

What a run needs on which chips: --mode=plan, which reads no data; docs/results has that of XXL.
Samples are latents; data.records.vae makes images of them.

Published, in one and two steps: FID 3.07, 2.50 (S); 2.75, 2.26 (M); 2.55, 2.04 (L); 2.40, 1.93
(XL); 2.28, 1.88 (XXL). Not run by us.
"""

import ml_collections as mlc

# size: channels, learning rate, dropout at 16x16 and below, guidance in one step and in two
SIZES = {
  "s": (192, 1.0e-4, 0.0, 1.5, 1.4),
  "m": (256, 9.0e-5, 0.1, 1.3, 1.2),
  "l": (320, 8.0e-5, 0.1, 1.3, 1.2),
  "xl": (384, 7.0e-5, 0.1, 1.3, 1.2),
  "xxl": (448, 6.5e-5, 0.1, 1.3, 1.2),
}


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke, size = variant == "smoke", variant if variant in SIZES else "s"
  if variant not in ("", "smoke", *SIZES):
    raise ValueError(f"Unknown variant {variant!r}. Choose from: smoke, {', '.join(SIZES)}.")
  channels, lr, dropout, one_step, two_step = SIZES[size]
  large = size in ("xl", "xxl")  # of which a chip holds neither a copy nor all activations
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 200_000
  c.batch_size = 8 if smoke else 2_048
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5

  c.data = dict(
    name="records", flip=False,
    records=dict(path="data/imagenet512", latents="scm", vae=None, max_corrupt=16,
                 cache="~/.cache/cmjax/records"),
  )  # fmt: skip
  c.net = dict(
    name="edm2", resolution=64, in_channels=4, channels=8 if smoke else channels,
    channel_mult=(1, 1, 1, 1) if smoke else (1, 2, 3, 4), num_blocks=1 if smoke else 3,
    attn_resolutions=(16, 8), channels_per_head=8 if smoke else 64, dropout=dropout,
    dropout_resolution=16, num_classes=1000, modulation="pnorm_scale_shift",
    embedding="positional", guidance=True, remat=large, dtype="bfloat16",
    scan=large,
  )  # fmt: skip
  c.loss = dict(
    name="scd", P_mean=-0.8, P_std=1.6, c=0.1, warmup_steps=10_000, norm="l2", weighting="learned",
    guidance=(1.0, 2.0),
    # dtype="float32" costs one forward pass more a step; --mode=verify says what it buys.
    tangent=dict(name="exact", dtype="bfloat16", matmul_precision=None),
  )  # fmt: skip
  c.optim = dict(
    name="adam", lr=lr, b1=0.9, b2=0.99, eps=1e-11, clip_norm=None,
    schedule=dict(name="inverse_sqrt", decay_steps=70_000, warmup_steps=4_883),
  )  # fmt: skip
  c.ema = dict(main=dict(name="power", sigma_rel=0.05), long=dict(name="power", sigma_rel=0.10))
  # Copies of both, every 32 Mi images, for averages of other lengths: docs/averages.md.
  c.snapshots = dict(
    every_steps=1 if smoke else 16_384, emas=("main", "long"), dtype="float16",
  )  # fmt: skip
  c.init_from = dict(workdir=f"runs/imagenet512_teacher_{size}", ema="main")
  c.teacher = dict(workdir=f"runs/imagenet512_teacher_{size}", ema="main")

  told = lambda scale: dict(name="input", scale=scale)
  c.samplers = dict(
    one_step=dict(name="consistency", mid_times=(), guidance=told(one_step)),
    two_step=dict(name="consistency", mid_times=(1.1,), guidance=told(two_step)),  # an angle
  )
  # Off until their files are named: data.records.vae, and evals.fid.weights (docs/metrics.md).
  c.evals = dict(
    grid=dict(name="samples", samplers=("one_step", "two_step"), emas=("main",),
              every_steps=10_000, num_samples=8 if smoke else 16),
    fid=dict(name="frechet", samplers=("one_step", "two_step"), emas=("main",), every_steps=50_000,
             features="inception", variant="edm", weights=None, reference="data/img512.pkl",
             floor=False, num_samples=50_000, batch_size=512),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=1, fsdp=-1) if large else dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
