"""Reference statistics in the formats people have, in and out; what does not fit is refused."""

import json
import pickle

import numpy as np
import pytest
from etils import epath

from cmjax.metrics import features, frechet, references, scoring
from cmjax.metrics.detectors import Detector
from helpers.fake_detectors import LINEAR, linear


@pytest.fixture(name="tmp_path")
def _tmp_path(tmp_path):
  return epath.Path(tmp_path)  # as `paths.place` gives it


D = 4


def detector(name="inception", dim=D, **record):
  return Detector(name, "FD", dim, linear, {"name": name, "variant": "edm"} | record)


def rows(num=50, dim=D, seed=0):
  x = np.random.default_rng(seed).standard_normal((num, dim)) * np.logspace(-1, 1, dim)[None]
  return x.astype(np.float32)


def statistics(x, suffix=""):
  return {f"mu{suffix}": x.mean(0, dtype=np.float64), f"sigma{suffix}": np.cov(x, rowvar=False)}


def assert_moments(moments, x):
  np.testing.assert_allclose(moments.mean, x.mean(0, dtype=np.float64), rtol=1e-12)
  np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-12)


def collected(num=50, keep=features.KINDS):
  pictures = np.random.default_rng(3).integers(0, 256, (num, 4, 4, 3)).astype(np.uint8)
  return features.collect(iter([(np.arange(num), pictures, np.arange(num) % 2)]), linear, keep=keep)


def ours(**changed):
  seen = collected()
  record = dict(kind="cmjax", format=1, detector=LINEAR.record, num=50, digest=seen.digest)
  return features.Reference(seen, record | {"prepared": {"resize": "lanczos"}} | changed)


# --- in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_of_moments_is_edms_pytorch_fids_and_clean_fids(tmp_path, save):
  save(tmp_path / "cifar10-32x32.npz", **statistics(rows()))
  found = references.read(tmp_path / "cifar10-32x32.npz", "inception")
  assert_moments(found.features.moments, rows())
  record = found.record
  assert (record["kind"], record["detector"], record["num"]) == ("moments", "inception", None)
  assert record["file"] == "cifar10-32x32.npz" and len(record["sha256"]) == 64
  scoring.check_reference(found, detector(), ("frechet",))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_edm2_has_a_set_of_moments_for_each_detector(tmp_path, protocol):
  path = tmp_path / "img64.pkl"
  content = dict(num_images=50, fid=statistics(rows()), fd_dinov2=statistics(rows(dim=3)))
  path.write_bytes(pickle.dumps(content, protocol=protocol))
  for name, dim in (("inception", D), ("dinov2", 3)):
    found = references.read(path, name)
    assert_moments(found.features.moments, rows(dim=dim))
    assert (found.record["kind"], found.record["detector"], found.record["num"]) == (
      "edm2", name, 50,
    )  # fmt: skip
    assert found.features.moments.num == 50
    scoring.check_reference(found, detector(name, dim), ("frechet",))
  with pytest.raises(ValueError, match="has statistics of inception, dinov2, and none of linear"):
    references.read(path, "linear")


def test_nothing_of_a_pickle_is_executed(tmp_path):
  class Evil:
    def __reduce__(self):
      return (open, (str(tmp_path / "executed"), "w"))

  path = tmp_path / "img64.pkl"
  path.write_bytes(pickle.dumps(dict(num_images=50, fid=Evil())))
  with pytest.raises(ValueError, match="io.open.*nothing of it was executed"):
    references.read(path, "inception")
  assert not (tmp_path / "executed").exists()


def test_an_npz_of_adm_has_spatial_moments_and_images_for_what_needs_features(tmp_path):
  pictures = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3)).astype(np.uint8)
  x, spatial = rows(), rows(dim=3)
  arrays = statistics(x) | statistics(spatial, "_s") | {"arr_0": pictures}
  np.savez(tmp_path / "VIRTUAL_imagenet64.npz", **arrays)
  found = references.read(tmp_path / "VIRTUAL_imagenet64.npz", "inception")
  assert found.record["kind"] == "adm"
  assert_moments(found.features.spatial_moments, spatial)
  scores = ("frechet", "sfid", "precision_recall")
  scoring.check_reference(found, detector(), scores)
  assert scoring.with_rows(found, detector(), ("frechet",)).features.rows is None
  whole = scoring.with_rows(found, detector(), scores)
  np.testing.assert_array_equal(whole.features.rows, linear(pictures).features)
  assert whole.record["num_rows"] == 30


def test_features_of_clean_fid_are_for_the_kernel_distance_alone(tmp_path):
  np.savez(tmp_path / "kid.npz", feats=rows())
  found = references.read(tmp_path / "kid.npz", "inception")
  assert (found.record["kind"], found.record["num_rows"]) == ("clean_fid_kernel", 50)
  scoring.check_reference(found, detector(), ("kernel",))
  with pytest.raises(
    ValueError, match=r"has no mean and covariance .mu, sigma., which the score 'f"
  ):
    scoring.check_reference(found, detector(), ("frechet",))


# --- out ------------------------------------------------------------------------------------------


def test_ours_come_back_whole_and_can_be_read_by_others(tmp_path):
  written, path = ours(), tmp_path / "ours.npz"
  references.write(path, written)
  found = references.read(path, "linear")
  for kind in ("moments", "spatial_moments"):
    for a, b in zip(getattr(found.features, kind), getattr(written.features, kind), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-14)
  for kind in ("rows", "labels"):
    np.testing.assert_array_equal(getattr(found.features, kind), getattr(written.features, kind))
  assert written.record.items() <= found.record.items()
  scoring.check_reference(found, LINEAR, tuple(scoring.SCORES), per_class=True)
  with np.load(path, allow_pickle=False) as file:  # as EDM, clean-fid and ADM look for them
    assert {"mu", "sigma", "mu_s", "sigma_s", "feats"} <= set(file.files)


def test_a_pickle_for_edm2_is_what_it_reads(tmp_path):
  record = dict(kind="cmjax", format=1, detector={"name": "dinov2"}, num=50)
  references.write(tmp_path / "a.pkl", ours(**record))
  content = pickle.loads((tmp_path / "a.pkl").read_bytes())
  assert content.keys() == {"num_images", "fd_dinov2"} and content["num_images"] == 50
  moments = references.read(tmp_path / "a.pkl", "dinov2").features.moments
  np.testing.assert_allclose(moments.covariance, ours().features.moments.covariance, rtol=1e-14)


@pytest.mark.parametrize("name", ["a.pkl", "a.txt"])
def test_another_ending_or_a_detector_that_edm2_does_not_know_is_refused(tmp_path, name):
  with pytest.raises(ValueError, match="written as .npz, or as .pkl for EDM2"):
    references.write(tmp_path / name, ours())
  assert not any(tmp_path.iterdir())


# --- refused --------------------------------------------------------------------------------------


def read_and_check(path, own, scores=("frechet",), **options):
  scoring.check_reference(references.read(path, own.name), own, scores, **options)


def test_a_reference_of_another_detector_says_in_what_they_differ(tmp_path):
  references.write(tmp_path / "a.npz", ours())
  other = LINEAR._replace(record={"name": "linear", "scale": "0-1"})
  with pytest.raises(ValueError, match="another detector: scale is 'tanh' there and '0-1' here"):
    read_and_check(tmp_path / "a.npz", other)
  np.savez(tmp_path / "b.npz", **statistics(rows()))
  with pytest.raises(ValueError, match="for the detector 'inception'; this one is 'dinov2'"):
    read_and_check(tmp_path / "b.npz", detector("dinov2"))


def test_a_reference_of_another_dimension_is_refused(tmp_path):
  np.savez(tmp_path / "a.npz", **statistics(rows()))
  with pytest.raises(ValueError, match="a.npz has 4 features, the detector 'inception' 2,048"):
    read_and_check(tmp_path / "a.npz", detector(dim=2_048))


@pytest.mark.parametrize(
  ("scores", "options", "message"),
  [
    (("sfid",), {}, r"no statistics of spatial features .mu_s, sigma_s., which the score 'sfid'"),
    (("kernel",), {}, r"no features .feats. or images .arr_0., which the score 'kernel' needs"),
    (("frechet",), {"per_class": True}, "has no classes: per_class=True needs reference='train'"),
  ],
)
def test_what_a_reference_has_not_is_named_with_the_score(tmp_path, scores, options, message):
  np.savez(tmp_path / "a.npz", **statistics(rows()))
  with pytest.raises(ValueError, match=message):
    read_and_check(tmp_path / "a.npz", detector(), scores, **options)


def damaged(**arrays):
  """statistics with other arrays in some places; None leaves one out."""
  return {k: v for k, v in (statistics(rows()) | arrays).items() if v is not None}


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    (damaged(sigma=None), "it has mu, and not mu and sigma, or feats"),
    (damaged(mu=None, sigma=None), "it has nothing, and not"),
    (damaged(mu=np.zeros((2, 4))), r"mean must have shape \[d\]"),
    (damaged(mu=np.full(4, np.nan)), "NaN or infinity"),
    (damaged(sigma=np.triu(np.ones((4, 4)))), "must be symmetric"),
    (damaged(mu=np.arange(4)), "mu and sigma are int64 and float64, not floats"),
    (damaged(mu=np.array([{}] * 4)), "damaged, or holds objects"),
    (damaged(arr_0=np.zeros((3, 4, 4, 3))), "arr_0 is float64"),
    (damaged(feats=np.zeros(3)), r"feats is float64 \[3\]"),
    (damaged(mu_s=np.zeros(2)), "it has mu_s and no sigma_s"),
    (damaged(record=np.array("{")), "its record cannot be read"),
    (
      damaged(record=np.array(json.dumps(dict(kind="x", num=1, detector=dict(name="y"))))),
      "format",
    ),
  ],
)
def test_a_file_that_is_none_says_why_in_one_line(tmp_path, arrays, message):
  np.savez(tmp_path / "a.npz", **arrays)
  with pytest.raises(ValueError, match=message) as error:
    references.read(tmp_path / "a.npz", "inception")
  assert str(tmp_path / "a.npz") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"PK\x03\x04 and no more", "damaged"),
    (b"<html>", "its first bytes are b'<htm'; an .npz or EDM2's .pkl is expected"),
    (b"", "its first bytes are b''"),
    (pickle.dumps([1]), r"holds \[1\], not a dict"),
    (pickle.dumps(dict(fid=dict(mu=1.0))), "its mu is 1.0, not an array"),
    (pickle.dumps(dict(other=1)), "no detector known here, and none of inception"),
  ],
)
def test_a_file_of_another_kind_says_what_is_expected(tmp_path, content, message):
  (tmp_path / "a").write_bytes(content)
  with pytest.raises(ValueError, match=message):
    references.read(tmp_path / "a", "inception")


def test_a_missing_file_says_how_to_make_one(tmp_path):
  with pytest.raises(ValueError, match="no reference statistics at .*--mode=reference"):
    references.read(tmp_path / "none.npz", "inception")


def test_the_distance_to_a_file_is_that_to_the_features_it_was_made_of(tmp_path):
  x, y = rows(60, seed=1), rows(70, seed=2)
  np.savez(tmp_path / "a.npz", **statistics(y))
  found = references.read(tmp_path / "a.npz", "inception").features.moments
  want = frechet.distance(frechet.moments(x), frechet.moments(y))
  np.testing.assert_allclose(frechet.distance(frechet.moments(x), found), want, rtol=1e-10)


def made_reference(rng, num=20):
  rows = rng.standard_normal((num, 6))
  record = {"kind": "cmjax", "format": references.FORMAT, "num": num, "digest": "ab"}
  record |= {"detector": {"name": "pixels"}, "data": {"name": "npz"}}
  seen = features.Features(num, "ab", moments=frechet.moments(rows), rows=rows)
  return features.Reference(seen, record)


def test_a_reference_is_made_once_and_read_later_to_the_same_bits(tmp_path, caplog):
  path, calls = tmp_path / "references" / "a.npz", []
  made = made_reference(np.random.default_rng(0))

  def kept(made_of, agree=bool, primary=True):
    make = lambda: calls.append(1) or made
    return references.kept(path, made_of, make, primary=primary, agree=agree)

  first = kept({"data": "x"})
  second = kept({"data": "x"})
  assert len(calls) == 1 and first.record == second.record == made.record
  for a, b in zip(first.features.moments, second.features.moments, strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
  np.testing.assert_array_equal(second.features.rows, made.features.rows)
  np.testing.assert_allclose(
    second.features.moments.covariance, made.features.moments.covariance, rtol=1e-12
  )
  assert not caplog.text

  kept({"data": "y"})  # other data
  assert len(calls) == 2 and "it was made of other data" in caplog.text
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  kept({"data": "y"})
  assert len(calls) == 3 and "is made anew" in caplog.text
  kept({"data": "y"}, agree=lambda ok: False)  # another process cannot read it
  assert len(calls) == 4


def test_a_reference_that_cannot_be_kept_is_used_all_the_same(tmp_path, caplog):
  (tmp_path / "references").write_text("a file is in the way")
  made = made_reference(np.random.default_rng(0))
  found = references.kept(
    tmp_path / "references" / "a.npz", {}, lambda: made, primary=True, agree=bool
  )
  assert found is made and "is not kept for later" in caplog.text
