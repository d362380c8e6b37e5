"""Questions that people have asked of projects like this one, and the page that answers each.

They are from public threads about consistency models; the thread stands above the question. The
words are what one types into the site's search, which shows the sections that have all of them.
"""

QUESTIONS = {
  # NVlabs/Sana#282
  "Why does the gradient norm explode, and what does the tangent norm mean?": (
    "tangent norm grows",
    "concepts/tangent",
  ),
  # NVlabs/rcm#13
  "Why is the loss on F and not on x0, why does the loss not fall?": (
    "loss rises",
    "concepts/tangent",
  ),
  # locuslab/ect#12
  "Training gives NaN after some hundred steps in float16": (
    "nan float16",
    "guides/when_it_goes_wrong",
  ),
  # NVlabs/rcm#10
  "Gradient spike in bfloat16, then samples become pure noise": (
    "spikes bfloat16",
    "guides/when_it_goes_wrong",
  ),
  # NVlabs/rcm#24
  "My student is worse than the teacher": ("student worse teacher", "guides/when_it_goes_wrong"),
  # Dao-AILab/flash-attention#1672
  "jvp through flash attention fails": ("jvp flashattention", "guides/when_it_goes_wrong"),
  # huggingface/diffusers#8277
  "Which EMA average should be used for sampling?": ("samples drawn average", "concepts/averages"),
  # Lyy-iiis/pMF#4
  "How do I find the best EMA length after training?": ("which length best", "concepts/averages"),
  # facebookresearch/flow_matching#68
  "My FID is not comparable with the paper's": ("FID differ papers", "concepts/metrics"),
  # Lightning-AI/torchmetrics#3110
  "Where do I get DINOv2 weights for FD-DINOv2?": ("dinov2 weights", "guides/detectors"),
  # openai/consistency_models#7
  "Which times for two steps, how do I choose the steps?": ("which times to step", "guides/tuning"),
  # openai/consistency_models#45
  "How much memory and how many hours will a run need on TPU chips?": (
    "plan topology memory",
    "results/planning",
  ),
  # openai/guided-diffusion#23
  "How do I resume training after preemption?": ("resume", "guides/resume"),
  # AI-Hypercomputer/maxtext#1760
  "Resume on another number of devices": ("another number of devices", "guides/resume"),
  # openai/consistency_models#54
  "How do I use an EDM pkl as teacher?": ("convert edm", "guides/own_teacher"),
  # zhuyu-cs/MeanFlow#13
  "How do I use my own pretrained network as teacher?": (
    "pretrained network teacher",
    "guides/own_teacher",
  ),
  # tianweiy/DMD2#22
  "How exactly are latents of ImageNet made with the autoencoder?": (
    "latents autoencoder imagenet",
    "guides/data",
  ),
  # NVlabs/edm2#19
  "How do I choose P_mean and P_std for my own data?": ("choose P_mean", "guides/tuning"),
  # openai/consistency_models#5
  "Inpaint and super resolve an image with a consistency model": ("inpaint", "guides/export"),
  # lucidrains/denoising-diffusion-pytorch#164
  "Compute FID during training": ("fid during training", "guides/scores"),
  # willisma/diffuse_nnx, its road map
  "What is the difference between sCT and sCD, which method do I take?": ("sct scd", "methods"),
  # everyone who is new
  "What does NFE mean?": ("NFE", "glossary"),
}
