"""Warm-ups, averages and runs that are too long for their data are told of."""

import pytest

from cmjax import experiment, pages
from cmjax.experiment import models
from cmjax.types import Network
from helpers import tiny

SIZES = {"cifar10": 50_000, "digits": 1_442, "imagenet64": 1_281_167, "imagenet512": 1_281_167}
SIZES |= {"toy2d": 65_536, "own": 3_000, "fashion": 60_000}


@pytest.fixture(autouse=True)
def _any_network(monkeypatch):
  """A page's own network takes seconds to put together, and lengths do not depend on it."""
  any_network = Network(lambda key: {}, lambda params, x, t, cond, key: x)
  like = lambda section, sigma_data: any_network._replace(inputs=models.inputs_of(section))
  monkeypatch.setattr(models, "network", like)


def warned(config, num_images):
  return experiment.too_long(experiment.parse(config), num_images)


@pytest.mark.parametrize("name", pages.names())
def test_no_page_is_warned_of_on_its_own_data(name):
  config, num_images = pages.load(name), SIZES[name.partition("_")[0]]
  assert warned(config, num_images) == []


def test_a_page_of_50000_images_is_warned_of_on_3000():
  first, second, third = warned(pages.load("cifar10_edm_teacher"), 3_000)
  assert "see each of the 3,000 images 68,267 times" in first
  assert second.startswith("optim.schedule.warmup_steps=19531 lasts 3,333 times 3,000 images")
  assert third.startswith("ema.main has a half-life of 500,000 images, 167 times 3,000 images")


@pytest.mark.parametrize(
  "values, words",
  [
    ({"optim.schedule.warmup_steps": 7}, ["optim.schedule.warmup_steps=7 is 58% of total_steps"]),
    ({"loss.warmup_steps": 6}, []),
    ({"ema.short.half_life_images": 49, "ema.short.rampup_ratio": None},
     ["ema.short has a half-life of 49 images, 26% of the run"]),
    ({"ema.short.half_life_images": 47, "ema.short.rampup_ratio": None}, []),
    ({"ema.short": {"name": "constant", "beta": 0.9}}, ["ema.short has a half-life of 105 images"]),
  ],
)  # fmt: skip
def test_what_is_long_for_the_run_is_told(values, words):
  config = tiny.config(**{"loss.warmup_steps": 0, **values})
  found = warned(config, 512)
  assert len(found) == len(words) and all(map(str.startswith, found, words)), found


@pytest.mark.parametrize("size", ["32", "64"])
@pytest.mark.parametrize("num_images", [200, 1_000, 3_000, 19_999, 20_000, 100_000, 2_000_000])
@pytest.mark.parametrize("page", ["own_images_teacher", "own_images_scd"])
def test_the_pages_of_own_pictures_follow_their_number(page, size, num_images):
  config = pages.load(f"{page}:{size}:{num_images}")
  seen = config.total_steps * config.batch_size
  assert experiment.too_long(experiment.parse(config), num_images) == []
  assert config.net.resolution == int(size)
  epochs = seen / num_images
  assert 20 <= epochs <= 5_000
  half_life = config.ema.main.half_life_images / seen
  warmup = max(config.optim.schedule.warmup_steps, config.loss.get("warmup_steps", 0))
  assert half_life == pytest.approx(0.02, rel=0.02)
  assert 0.03 <= warmup / config.total_steps <= 0.11
  student = page == "own_images_scd"
  if num_images == 3_000:
    assert seen == pytest.approx(1_500_000 if student else 3_000_000, rel=0.01)


def test_a_number_of_images_is_read_from_a_spec():
  assert pages.load("own_images_teacher:32") == pages.load("own_images_teacher:32:3,000")
  assert pages.load("own_images_teacher").net == pages.load("own_images_teacher:64").net
  assert pages.load("own_images_teacher:64:12_000").total_steps == 187_500
  for spec, why in (
    ("own_images_teacher:64:many", "'many' is no number of images"),
    ("own_images_teacher:64:0", "'0' is no number of images"),
    ("own_images_teacher:128", "Unknown variant '128'. Choose from: smoke, 64, 32."),
    ("cifar10_sct:scratch:5", "Unknown variant 'scratch:5'"),
  ):
    with pytest.raises(ValueError, match=why):
      pages.load(spec)
