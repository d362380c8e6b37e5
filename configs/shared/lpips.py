"""The distance LPIPS, the best of the papers; its weights are a file: see cmjax/losses/lpips.py."""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  return mlc.ConfigDict(
    dict(name="lpips", path="~/.cache/cmjax/lpips_vgg16.npz", pooling="max", resize=224)
  )
