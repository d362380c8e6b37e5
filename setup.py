"""Installs cmjax: `pip install .`, or, to work on it, `pip install -e '.[test]'` (see Makefile)."""

from setuptools import find_packages, setup

CORE = [
  "absl-py>=2.1",
  "array-record>=0.8",
  "chex>=0.1.90",
  "clu>=0.0.12",
  "flax>=0.12",
  "grain>=0.2.15",
  "jax>=0.10",  # Python 3.11 gets 0.10.2, the last release for it
  "jaxtyping>=0.3",
  "ml-collections>=1.0",
  "numpy>=2.0",
  "optax>=0.2.6",
  "orbax-checkpoint>=0.11.30",
  "pillow>=11.0",
  "safetensors>=0.5",
  "scikit-learn>=1.5",
  "scipy>=1.14",
  "tensorboardX>=2.6.2",
  "tensorflow-datasets>=4.9.9",
]

EXTRAS = {
  # Preparing a tfds image data set runs TensorFlow once; reading and training never do. Hugging
  # Face's parquet files are read with pyarrow.
  "prepare": ["pyarrow>=17", "tensorflow-cpu>=2.20"],
  "tpu": ["jax[tpu]>=0.10"],
  # CUDA 12 asks less of the driver; `pip install 'jax[cuda13]'` replaces it on a newer one.
  "cuda": ["jax[cuda12]>=0.10"],
  # Compiling for a TPU pod needs the libtpu of the same jaxlib, and jax[tpu] is what pins the pair.
  "plan": ["jax[tpu]>=0.10"],
  "equinox": ["equinox>=0.13"],  # for `networks.from_equinox`
  "notebooks": ["ipykernel>=6.29", "matplotlib>=3.9", "nbclient>=0.10", "nbformat>=5.10"],
  "test": [
    "beartype>=0.20",
    "equinox>=0.13",
    "pyarrow>=17",
    "pyright[nodejs]>=1.1.400",  # nodejs: Node comes as a wheel, not as a download at first use
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.12",
  ],
  # Parity tests against other implementations; skipped where these are missing. On Linux, PyPI's
  # torch brings CUDA: 5.3 GB on the disk. A CPU build that is there already will do.
  "peers": [
    "clean-fid>=0.1.35",
    "diffusers>=0.33",
    "efficientnet-lite-pytorch>=0.1",
    "ema-pytorch>=0.7",
    "prdc>=0.2",
    "pytorch-fid>=0.3",
    "torch>=2.6",
    "torch-fidelity>=0.4",
    "torchmetrics>=1.9",
    "torchvision>=0.21",  # which the three of the FID import
  ],
}

setup(
  name="cmjax",
  version="0.1.0",
  description="Consistency models in JAX: training, distillation, sampling and evaluation.",
  license="Apache-2.0",
  license_files=["LICENSE"],
  packages=find_packages(include=["cmjax", "cmjax.*"]),
  python_requires=">=3.11",
  install_requires=CORE,
  extras_require=EXTRAS,
)
