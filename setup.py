"""Installs cmjax: `pip install .`, or, to work on it, `pip install -e '.[test]'` (see Makefile)."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# The address of the repository. Other files repeat it: tests/house/outside_test.py finds those that
# say another one, and CONTRIBUTING.md has the command that changes all.
URL = "https://github.com/cmjax/cmjax"

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
  "tqdm>=4.66",  # the bar of a download; tensorflow-datasets has it too
]

EXTRAS = {
  # Preparing a tfds image data set runs TensorFlow once; reading and training never do. Hugging
  # Face's parquet files are read with pyarrow.
  "prepare": ["pyarrow>=17", "tensorflow-cpu>=2.20"],
  # Workdirs at gs:// and s3://. pip finds versions of the two that want the same fsspec.
  "stores": ["gcsfs>=2025.7", "s3fs>=2025.7"],
  "tpu": ["jax[tpu]>=0.10"],
  # CUDA 12 asks less of the driver; `pip install 'jax[cuda13]'` replaces it on a newer one.
  "cuda": ["jax[cuda12]>=0.10"],
  # Compiling for a TPU pod needs the libtpu of the same jaxlib, and jax[tpu] is what pins the pair.
  "plan": ["jax[tpu]>=0.10"],
  "notebooks": ["ipykernel>=6.29", "matplotlib>=3.9", "nbclient>=0.10", "nbformat>=5.10"],
  # The site (`make docs`): Zensical, which reads mkdocs.yml and goes on from Material for MkDocs.
  "docs": ["mkdocstrings[python]>=1.0", "zensical>=0.0.70"],
  "test": [
    "beartype>=0.20",
    "check-jsonschema>=0.34",  # has the schemas of GitHub's files and of CITATION.cff
    "equinox>=0.13",  # a user's network may be one of its modules
    "pyarrow>=17",
    "pyright[nodejs]>=1.1.400",  # nodejs: Node comes as a wheel, not as a download at first use
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.12",
    "setuptools>=77",  # the tests build a wheel
  ],
  # Object stores on the loopback, for the slow tests of workdirs in buckets.
  "emulators": [
    "flask>=3.0",  # of moto's server, whose own extra brings 200 MB that S3 has no use for
    "flask-cors>=5.0",
    "gcp-storage-emulator>=2024.8",
    "gcsfs>=2025.7",
    "moto[s3]>=5.1",
    "s3fs>=2025.7",
  ],
  # Has libFuzzer, which feeds the readers of files (benchmarks/robustness/fuzz.py).
  "fuzz": ["atheris>=2.3"],
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


class BuildWithPages(build_py):
  """Puts the config pages into the package, as cmjax/configs; in the repository they are beside it.

  An editable install has none of this: there the pages are read where they are.
  """

  def run(self):
    """Builds what setuptools knows of, then copies the pages."""
    super().run()
    if not self.editable_mode:
      for page, target in self._pages().items():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, target)

  def get_outputs(self, include_bytecode=True):
    """Files of the build."""
    pages = [] if self.editable_mode else list(self._pages().values())
    return super().get_outputs(include_bytecode) + pages

  def get_source_files(self):
    """Files that it is made of."""
    return super().get_source_files() + list(self._pages())

  def _pages(self):
    """{file in the repository: file in the build}; setuptools wants paths relative to ROOT."""
    pages = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.py"))
    return {str(page): str(Path(self.build_lib, "cmjax", page)) for page in pages}


def readme():
  """README.md with links that work elsewhere too: those to files of the repository become URLs."""
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  text = re.sub(r"\]\((?!\w+:|#)([^)]+\.png)\)", rf"]({URL}/raw/main/\1)", text)
  return re.sub(r"\]\((?!\w+:|#)([^)]+)\)", rf"]({URL}/blob/main/\1)", text)


def version():
  """Read as text: importing cmjax needs what is about to be installed."""
  text = (ROOT / "cmjax" / "__init__.py").read_text(encoding="utf-8")
  return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


setup(
  name="cmjax",
  version=version(),
  description="Consistency models in JAX: training, distillation, sampling and evaluation.",
  long_description=readme(),
  long_description_content_type="text/markdown",
  url=URL,
  project_urls={
    "Documentation": f"{URL}/tree/main/docs",
    "Changelog": f"{URL}/blob/main/CHANGELOG.md",
    "Issues": f"{URL}/issues",
  },
  license_expression="Apache-2.0",
  license_files=["LICENSE"],
  keywords=["consistency models", "diffusion models", "distillation", "generative models", "JAX"],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "Operating System :: MacOS",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3 :: Only",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)),
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
  ],
  packages=find_packages(include=["cmjax", "cmjax.*"]),
  # It says nothing about where packages are, and still decides how `pip install -e` works: with it
  # the repository is put on sys.path by a .pth file. Without it an import hook is installed, which
  # Python asks last, and so not at all in the folder above a clone, where `cmjax` is a folder.
  package_dir={"": "."},
  package_data={"cmjax": ["py.typed", "models/*"]},
  cmdclass={"build_py": BuildWithPages},
  # Parts of others, which a config then names as "their_package.networks:Mine", are found under the
  # entry-point group "cmjax.parts" of their package; what is ours needs no entry.
  entry_points={"console_scripts": ["cmjax = cmjax.commands.cli:main"]},
  python_requires=">=3.11",
  install_requires=CORE,
  extras_require=EXTRAS,
)
