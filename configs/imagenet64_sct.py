r"""ImageNet-64, class-conditional: continuous-time consistency training, sCT, S to XL.

  python -m cmjax.main --config=configs/imagenet64_sct.py:xl --workdir=runs/imagenet64_sct_xl

The size comes after the colon: s (the default), m, l, xl. From the average of
runs/imagenet64_teacher_<size>, whose network it is; Adam 1e-4 (S) to 7e-5 with EDM2's schedule,
batch 2048, 400k steps, dropout 0.45 at 16x16 and below, average sigma_rel 0.05, no flip (sCM, table
4). Data as there.

Published, in one and two steps: FID 3.23, 2.93 (S); 2.25, 1.81 (M); 2.08, 1.57 (L); 2.04, 1.48
(XL). Not run by us.
"""

import ml_collections as mlc

# size: channels, learning rate
SIZES = {
  "s": (192, 1e-4),
  "m": (256, 9e-5),
  "l": (320, 8e-5),
  "xl": (384, 7e-5),
}


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke, size = variant == "smoke", variant if variant in SIZES else "s"
  if variant not in ("", "smoke", *SIZES):
    raise ValueError(f"Unknown variant {variant!r}. Choose from: smoke, {', '.join(SIZES)}.")
  channels, lr = SIZES[size]
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 400_000
  c.batch_size = 8 if smoke else 2_048
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
    name="edm2", resolution=64, in_channels=3, channels=8 if smoke else channels,
    channel_mult=(1, 1, 1, 1) if smoke else (1, 2, 3, 4), num_blocks=1 if smoke else 3,
    attn_resolutions=(16, 8), channels_per_head=8 if smoke else 64, dropout=0.45,
    dropout_resolution=16, num_classes=1000, modulation="pnorm_scale_shift",
    embedding="positional", dtype="bfloat16",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="sct", P_mean=-1.0, P_std=1.6, c=0.1, warmup_steps=10_000, norm="l2", weighting="learned",
    # dtype="float32" costs one forward pass more a step; --mode=verify says what it buys.
    tangent=dict(name="exact", dtype="bfloat16", matmul_precision=None),
  )  # fmt: skip
  c.optim = dict(
    name="adam", lr=lr, b1=0.9, b2=0.99, eps=1e-11, clip_norm=None,
    schedule=dict(name="inverse_sqrt", decay_steps=35_000, warmup_steps=4_883),
  )  # fmt: skip
  c.ema = dict(main=dict(name="power", sigma_rel=0.05))
  c.init_from = dict(workdir=f"runs/imagenet64_teacher_{size}", ema="main")
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
             num_samples=50_000, batch_size=500, floor=False),
  )  # fmt: skip
  c.log_every_steps = 1 if smoke else 100
  c.checkpoint = dict(every_steps=5_000, keep=3, asynchronous=True)
  c.mesh = dict(data=-1, fsdp=1)
  c.nonfinite = "stop"
  c.doctor = dict(spike_factor=10.0, on_spike="warn", probe_every_steps=None)
  return c
