import numpy as np
import pytest

from cmjax.data import sources
from cmjax.metrics import classifier, frechet

TRAIN, TEST = (sources.as_array(sources.digits(split=split)) for split in ("train", "test"))
SCALED = [images.astype(np.float32) / 127.5 - 1 for images, _ in (TRAIN, TEST)]


@pytest.fixture(scope="module")
def made():
  return classifier.train(*TRAIN, TEST, seed=3, num_steps=150)


@pytest.fixture
def path(made, tmp_path):
  classifier.save(tmp_path / "sub" / "c.npz", made)
  return tmp_path / "sub" / "c.npz"


@pytest.mark.slow
@pytest.mark.heavy
def test_a_minute_of_training_tells_digits_apart(made):
  assert made.accuracy > 0.9
  logits = np.asarray(classifier.logits(made.weights, SCALED[1]))
  assert (logits.argmax(-1) == TEST[1]).mean() == made.accuracy


def test_features_have_unit_variance_on_average_and_come_before_the_last_layer(made, path):
  features = classifier.features(path)(SCALED[0])
  assert features.shape == (1442, classifier.NUM_FEATURES) and features.dtype == np.float64
  assert features.var(axis=0).mean() == pytest.approx(1.0, rel=1e-5)
  logits = made.scale * features @ made.weights["out_kernel"] + made.weights["out_bias"]
  np.testing.assert_allclose(logits, classifier.logits(made.weights, SCALED[0]), atol=1e-4)


def test_a_distance_sees_a_missing_class_and_noise_but_not_other_writers(path):
  features = classifier.features(path)
  of = lambda x: frechet.moments(features(x))
  train = of(SCALED[0])
  floor = frechet.distance(of(SCALED[1]), train)
  without = frechet.distance(of(SCALED[0][TRAIN[1] != 8]), train)
  noise = np.random.default_rng(0).uniform(-1, 1, SCALED[1].shape).astype(np.float32)
  assert 0 < floor < 2.0 and without > 0.3 and frechet.distance(of(noise), train) > 10 * floor


def test_the_seed_alone_decides():
  small = [a[:256] for a in TRAIN]
  make = lambda seed: classifier.train(*small, TEST, seed=seed, num_steps=3)
  a, b = make(1), make(1)
  assert a.accuracy == b.accuracy and a.scale == b.scale
  for name in classifier.ARRAYS:
    np.testing.assert_array_equal(a.weights[name], b.weights[name])
  first = [classifier.init(classifier.jax.random.key(seed), (8, 8, 1), 10) for seed in (1, 2)]
  assert np.any(first[0]["out_kernel"] != first[1]["out_kernel"])


def test_a_file_brings_back_the_classifier(made, path):
  back = classifier.load(path)
  assert back[1:] == made[1:]
  for name, value in made.weights.items():
    np.testing.assert_array_equal(back.weights[name], value)
  assert [p.name for p in path.parent.iterdir()] == ["c.npz"]


def test_a_missing_file_and_one_that_does_not_fit_are_named(path, tmp_path):
  with pytest.raises(ValueError, match="No classifier at .*none.npz"):
    classifier.features(tmp_path / "none.npz")
  np.savez(tmp_path / "other.npz", shape=np.ones(3))
  with pytest.raises(ValueError, match="it has no conv0_kernel"):
    classifier.features(tmp_path / "other.npz")
  (tmp_path / "text.npz").write_text("not arrays")
  with pytest.raises(ValueError, match="is no classifier"):
    classifier.features(tmp_path / "text.npz")
  with pytest.raises(ValueError, match=r"shape \[8, 8, 1\], got \[28, 28, 1\]"):
    classifier.features(path)(np.zeros((2, 28, 28, 1), np.float32))


@pytest.mark.parametrize(
  "images, labels, message",
  [
    (np.zeros((4, 8, 8, 1), np.uint8), None, "needs labels"),
    (np.zeros((4, 8, 8, 1)), np.zeros(4, int), "must be uint8"),
    (np.zeros((4, 8, 8, 1), np.uint8), np.zeros(3, int), "labels of the training images"),
    (np.zeros((4, 8, 8, 1), np.uint8), -np.ones(4, int), "labels of the training images"),
  ],
)
def test_what_it_cannot_be_trained_on_is_refused(images, labels, message):
  with pytest.raises(ValueError, match=message):
    classifier.train(images, labels, TEST)


@pytest.mark.parametrize("size, side", [(8, 4), (28, 7)])
def test_images_are_shrunk_to_a_few_pixels(size, side):
  weights = classifier.init(classifier.jax.random.key(0), (size, size, 3), 10)
  assert weights["hidden_kernel"].shape == (side * side * 64, 64)
  images = np.zeros((2, size, size, 3), np.float32)
  assert classifier.hidden(weights, images).shape == (2, 64)
