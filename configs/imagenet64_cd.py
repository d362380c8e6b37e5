r"""ImageNet-64, class-conditional: consistency distillation in discrete time (CD).

  python -m cmjax.main --config=configs/imagenet64_cd.py --workdir=runs/imagenet64_cd

Heun steps on N = 40 levels, target average mu = 0.95, RAdam 8e-6, batch 2048, 600k steps, average
0.999943 (Song et al. 2023, table 3). Distils runs/imagenet64_edm_teacher, an ADM as the paper's.
The paper's body runs in float16 with a scaled loss; this in float32. imagenet64_cd.py:lpips takes
LPIPS, as the paper does.
Data as in imagenet64_teacher.py.

Published, with LPIPS: FID 6.20 in one step, 4.70 in two. Not run by us.
"""

import ml_collections as mlc


def get_config(variant: str = "") -> mlc.ConfigDict:
  smoke = variant == "smoke"
  c = mlc.ConfigDict()
  c.seed = 0
  c.total_steps = 2 if smoke else 600_000
  c.batch_size = 8 if smoke else 2_048
  c.microbatch = None
  c.steps_per_dispatch = 1
  c.sigma_data = 0.5

  c.data = dict(
    name="records", flip=True,
    records=dict(path="data/imagenet64", max_corrupt=16, cache="~/.cache/cmjax/records"),
    npz=dict(path=""), folder=dict(path="", held_out=0.0),
    tfds=dict(dataset="imagenet_resized/64x64", data_dir=None),  # other pixels: see the teacher's
  )  # fmt: skip
  c.net = dict(
    name="adm", resolution=64, in_channels=3, channels=8 if smoke else 192,
    channel_mult=(1, 1, 1, 1) if smoke else (1, 2, 3, 4), num_blocks=1 if smoke else 3,
    attn_resolutions=(32, 16, 8), channels_per_head=8 if smoke else 64, dropout=0.0,
    dropout_resolution=64, num_classes=1000, augment_dim=0, modulation="scale_shift",
    preconditioning="edm", dtype="float32",
    remat=False, scan=False,
  )  # fmt: skip
  c.loss = dict(
    name="cd", sigma_min=0.002, weight="uniform", distance=dict(name="squared_l2"), solver="heun",
    pairs=dict(name="uniform"), curriculum=dict(name="fixed", N=40),
    target=dict(name="constant", beta=0.95),
  )  # fmt: skip
  if (
    variant == "lpips"
  ):  # the paper's best; the weights are a file of yours, see cmjax/losses/lpips.py
    c.loss.distance = dict(
      name="lpips", path="~/.cache/cmjax/lpips_vgg16.npz", pooling="max", resize=224,
    )  # fmt: skip
  c.optim = dict(
    name="radam", lr=8e-6, b1=0.9, b2=0.999, eps=1e-8, clip_norm=None,
    schedule=dict(name="constant", warmup_steps=0),
  )  # fmt: skip
  c.ema = dict(main=dict(name="constant", beta=0.999943))
  c.init_from = dict(workdir="runs/imagenet64_edm_teacher", ema="main")
  c.teacher = dict(workdir="runs/imagenet64_edm_teacher", ema="main")

  c.samplers = dict(
    one_step=dict(name="consistency", mid_times=()),
    two_step=dict(name="consistency", mid_sigmas=(1.382,)),
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
