"""The same features, other people's programs: the same numbers.

Their networks and the weights of those are not needed, nor fetched.
"""

import contextlib
import io
import warnings

import numpy as np
import pytest
import scipy.linalg

from cmjax.metrics import frechet, inception_score, kernel, neighbours

DIM = 24
# What they warn of when they are imported is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def peer(module):
  """A module of another program; the test is skipped, with the reason, where it is not there."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return pytest.importorskip(module, exc_type=ImportError)


def features(num, seed, dim=DIM):
  """Like those of a detector: not negative, many near 0, correlated, of different scales."""
  rng = np.random.default_rng(seed)
  mixing = np.random.default_rng(0).standard_normal((dim, dim)) * np.logspace(-1, 0.5, dim)[None]
  return np.maximum(rng.standard_normal((num, dim)) @ mixing + 0.1 * seed, 0).astype(np.float32)


SAMPLES, REAL = features(400, 1), features(500, 2)
OURS = frechet.distance(frechet.moments(SAMPLES), frechet.moments(REAL))


def statistics(x):
  """As all of them compute them; in float64, where they leave it to the features' dtype."""
  x = x.astype(np.float64)
  return x.mean(axis=0), np.cov(x, rowvar=False)


# --- Frechet --------------------------------------------------------------------------------------


def test_the_frechet_distance_is_torch_fidelitys():
  metric = peer("torch_fidelity.metric_fid")
  torch = peer("torch")
  both = [metric.fid_features_to_statistics(torch.tensor(x).double()) for x in (SAMPLES, REAL)]
  found = metric.fid_statistics_to_metric(*both, verbose=False)
  np.testing.assert_allclose(OURS, found["frechet_inception_distance"], rtol=1e-8)


@pytest.mark.parametrize(
  ("module", "function"),
  [
    ("pytorch_fid.fid_score", "calculate_frechet_distance"),
    ("cleanfid.fid", "frechet_distance"),
  ],
)
def test_the_frechet_distance_is_that_of_a_matrix_square_root(module, function, monkeypatch):
  theirs, sqrtm = getattr(peer(module), function), scipy.linalg.sqrtm
  # They ask for the estimate of the error too, by an argument that new SciPy has no more.
  monkeypatch.setattr(
    scipy.linalg, "sqrtm", lambda S, disp=True: sqrtm(S) if disp else (sqrtm(S), 0)
  )
  found = theirs(*statistics(SAMPLES), *statistics(REAL))
  np.testing.assert_allclose(OURS, found, rtol=1e-8)


def test_the_frechet_distance_is_torchmetrics():
  metric, torch = peer("torchmetrics.image.fid"), peer("torch")

  class Identity(torch.nn.Module):
    num_features = DIM

    def forward(self, x):
      return x.flatten(1)

  # Of its own, with whole numbers for features: it takes images of 8 bits.
  levels = lambda num, seed: np.random.default_rng(seed).integers(0, 9 + seed, (num, 2, 3, 4))
  a, b = levels(300, 1), levels(400, 2)
  fid = metric.FrechetInceptionDistance(
    feature=Identity(), normalize=False, input_img_size=(2, 3, 4)
  ).set_dtype(torch.float64)
  for x, real in ((a, False), (b, True)):
    fid.update(torch.tensor(x).double(), real=real)
  ours = frechet.distance(*(frechet.moments(x.reshape(len(x), -1)) for x in (a, b)))
  np.testing.assert_allclose(ours, float(fid.compute()), rtol=1e-8)


# --- kernel ---------------------------------------------------------------------------------------


def test_the_kernel_distance_is_torch_fidelitys_on_its_own_subsets():
  metric, torch = peer("torch_fidelity.metric_kid"), peer("torch")
  found = metric.kid_features_to_metric(
    *(torch.tensor(x).double() for x in (SAMPLES, REAL)),
    kid_subsets=20, kid_subset_size=150, rng_seed=2020, verbose=False,
  )  # fmt: skip
  ours = kernel.distance(SAMPLES, REAL, num_subsets=20, subset_size=150)
  np.testing.assert_allclose(ours.mean, found["kernel_inception_distance_mean"], rtol=1e-12)
  np.testing.assert_allclose(ours.std, found["kernel_inception_distance_std"], rtol=1e-12)


def test_the_kernel_distance_is_clean_fids_on_its_own_subsets(monkeypatch):
  theirs = peer("cleanfid.fid").kernel_distance
  # It draws from the global stream, for its second set first.
  rng = np.random.RandomState(2020)
  monkeypatch.setattr(np.random, "choice", rng.choice)
  real, samples = REAL.astype(np.float64), SAMPLES.astype(np.float64)
  found = theirs(real, samples, num_subsets=20, max_subset_size=150)
  ours = kernel.distance(SAMPLES, REAL, num_subsets=20, subset_size=150)
  np.testing.assert_allclose(ours.mean, found, rtol=1e-11)


def test_the_kernel_distance_of_one_subset_is_torchmetrics():
  metric, torch = peer("torchmetrics.image.kid"), peer("torch")
  found = metric.poly_mmd(*(torch.tensor(x[:300]).double() for x in (REAL, SAMPLES)))
  np.testing.assert_allclose(kernel.unbiased(SAMPLES[:300], REAL[:300]), float(found), rtol=1e-11)


# --- neighbours -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("in_parts", [False, True])
def test_precision_and_recall_are_torch_fidelitys(k, in_parts):
  metric, torch = peer("torch_fidelity.metric_prc"), peer("torch")
  found = metric.prc_features_to_metric(
    *(torch.tensor(x).double() for x in (SAMPLES, REAL)),
    prc_neighborhood=k, prc_batch_size=150, save_cpu_ram=in_parts, verbose=False,
  )  # fmt: skip
  ours = neighbours.compare(SAMPLES, REAL, k=k)
  assert 0 < ours.precision < 1 and 0 < ours.recall < 1
  # Their mean is in float32: the same counts, to its rounding.
  assert round(ours.precision * 400) == pytest.approx(found["precision"] * 400, abs=1e-3)
  assert round(ours.recall * 500) == pytest.approx(found["recall"] * 500, abs=1e-3)


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_those_of_their_authors(k):
  prdc = peer("prdc")
  with contextlib.redirect_stdout(io.StringIO()):
    found = prdc.compute_prdc(REAL.astype(np.float64), SAMPLES.astype(np.float64), nearest_k=k)
  ours = neighbours.compare(SAMPLES, REAL, k=k, k_density=k)
  np.testing.assert_allclose(ours, [found[name] for name in ours._fields], rtol=1e-12)


# --- Inception score ------------------------------------------------------------------------------


def test_the_inception_score_is_torch_fidelitys():
  metric, torch = peer("torch_fidelity.metric_isc"), peer("torch")
  logits = features(235, 3, 10)
  found = metric.isc_features_to_metric(torch.tensor(logits), splits=10, shuffle=False)
  want = found["inception_score_mean"], found["inception_score_std"]
  np.testing.assert_allclose(inception_score.score(logits), want, rtol=1e-12)
