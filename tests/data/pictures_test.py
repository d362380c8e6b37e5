"""One gateway to pictures and one finder of them: what training, preparing and scoring read."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile, ImageOps

from cmjax.commands import prepare
from cmjax.data import image_files, records, sources
from cmjax.data.prepare import originals

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 6, 4, 3), np.uint8)  # taller than wide
PLAIN = Image.fromarray(PIXELS[0])


def encoded(image, format="png", **options):
  file = io.BytesIO()
  image.save(file, format=format, **options)
  return file.getvalue()


def write(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return path


def opened(data, **rules):
  image, kinds = image_files.open_picture(io.BytesIO(data), "x", image_files.Rules(**rules))
  return np.asarray(image), kinds


def prepared(source, out, *options, code=0):
  assert prepare.main([str(source), "--out", str(out), "--workers=0", *options]) == code
  return None if code else sources.as_array(records.records(out))


# --- formats ---

FOREIGN = {
  "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
  "EPS with a preview": b"\xc5\xd0\xd3\xc6" + bytes(60),
  "PDF": b"%PDF-1.7\n",
  "AVIF": b"\0\0\0\x1cftypavif" + bytes(20),
  "PPM": b"P6 4 6 255\n" + bytes(72),
  "icon": encoded(PLAIN, "ico", sizes=[(4, 4)]),
  "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20),
  "BigTIFF": b"II+\0\x08\0\0\0" + bytes(20),
  "web page": b"<!DOCTYPE html><title>404 Not Found</title>",
  "text": b"no picture",
  "nothing": b"",
}


SUFFIXES = [*((kind, "png") for kind in FOREIGN), ("PostScript", "jpg"), ("PostScript", "tiff")]


@pytest.mark.parametrize(("kind", "suffix"), SUFFIXES)
def test_a_file_is_what_its_bytes_are_and_other_formats_reach_no_reader(
  tmp_path, monkeypatch, kind, suffix
):
  def started(*args, **kwargs):
    raise AssertionError("Ghostscript would have been started")

  monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
  monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", started)
  path = write(tmp_path / "a" / f"x.{suffix}", FOREIGN[kind])
  with pytest.raises(image_files.Damaged, match=f"Cannot decode .*x.{suffix}: it "):
    image_files.open_picture(path, str(path))
  with pytest.raises(image_files.Damaged, match=f"Cannot decode .*x.{suffix}: it "):
    sources.folder(tmp_path / "a")
  prepared(tmp_path / "a", tmp_path / "out", code=1)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "bmp", "tiff"])
def test_the_formats_that_are_read_give_pillows_pixels_whatever_their_suffix(tmp_path, format):
  options = {"lossless": True} if format == "webp" else {}
  for image in (PLAIN, PLAIN.convert("L")):
    data = encoded(image, format, **options)
    path = write(tmp_path / f"{image.mode}.png", data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert(image.mode))
    got, kinds = opened(data)
    if (format, image.mode) == ("webp", "L"):
      got = got[..., 0]  # WebP has no gray
    np.testing.assert_array_equal(got, expected)
    shape = (6, 4, 1) if image.mode == "L" else (6, 4, 3)
    np.testing.assert_array_equal(image_files.read_pixels(path, shape), expected.reshape(shape))
    assert kinds == ()


def test_pillow_is_told_the_format(tmp_path, monkeypatch):
  told, plain = [], Image.open
  monkeypatch.setattr(Image, "open", lambda file, formats: told.append(formats) or plain(file))
  for format in ("png", "jpeg", "webp", "bmp", "tiff"):
    path = write(tmp_path / format / "x.png", encoded(PLAIN, format))
    sources.folder(path.parent)[0]
    assert set(told[-2:]) == {(format.upper(),)}


# --- limits ---


def chunk(name, data):
  return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge_png():
  header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(bytes(99)))
    + chunk(b"IEND", b"")
  )


def huge_jpeg():
  data = encoded(PLAIN, "jpeg")
  place = data.index(b"\xff\xc0") + 5
  return data[:place] + struct.pack(">HH", 65_000, 65_000) + data[place + 4 :]


def huge_webp():
  body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
  return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def huge_lossless_webp():
  data = bytearray(encoded(PLAIN, "webp", lossless=True))
  data[21:25] = struct.pack("<I", 0x3FFF | 0x3FFF << 14)
  return bytes(data)


def huge_gif():
  data = encoded(PLAIN.quantize(4), "gif")
  return data[:6] + struct.pack("<HH", 65_000, 65_000) + data[10:]


def huge_bmp():
  data = encoded(PLAIN, "bmp")
  return data[:18] + struct.pack("<ii", 40_000, 40_000) + data[26:]


def huge_tiff():
  data = bytearray(encoded(PLAIN, "tiff"))
  (start,) = struct.unpack_from("<I", data, 4)
  for k in range(struct.unpack_from("<H", data, start)[0]):
    place = start + 2 + 12 * k
    if struct.unpack_from("<H", data, place)[0] in (256, 257):
      data[place : place + 12] = data[place : place + 2] + struct.pack("<HII", 4, 1, 30_000)
  return bytes(data)


HUGE = [huge_png, huge_jpeg, huge_webp, huge_lossless_webp, huge_gif, huge_bmp, huge_tiff]


@pytest.mark.parametrize("make", HUGE)
def test_too_many_pixels_are_refused_by_the_header_and_the_limit_is_named(tmp_path, make):
  path = write(tmp_path / "x.png", make())
  for read in (lambda: image_files.open_picture(path, "x.png"), lambda: sources.folder(tmp_path)):
    with pytest.raises(image_files.Refused, match="max_pixels=67108864.*--max_pixels"):
      read()


@pytest.mark.parametrize("make", [huge_webp, huge_lossless_webp])
def test_pillow_does_not_open_a_huge_webp_for_which_it_would_take_memory(monkeypatch, make):
  monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("Pillow got it"))
  with pytest.raises(image_files.Refused, match="max_pixels"):
    opened(make())


def test_the_limits_can_be_set_and_say_so(tmp_path, capsys):
  write(tmp_path / "a" / "x.png", encoded(PLAIN))
  for option, value in (("max_pixels", 23), ("max_bytes", 50)):
    with pytest.raises(image_files.Refused, match=f"{option}={value}.*data.folder.{option}"):
      sources.folder(tmp_path / "a", **{option: value})
    prepared(tmp_path / "a", tmp_path / "out", f"--{option}={value}", "--max_bad=1", code=1)
    assert f"{option}={value}" in capsys.readouterr().err
  assert sources.folder(tmp_path / "a", max_pixels=24).shape == (6, 4, 3)
  with pytest.raises(ValueError, match="max_pixels=0 must be from 1 to 178956970"):
    sources.folder(tmp_path / "a", max_pixels=0)


def bomb(num=5000, size=60_000, at=0):
  """A TIFF directory of which every entry points to the same bytes."""
  entries = b"".join(struct.pack("<HHII", 1000 + k, 1, size, 8) for k in range(num))
  return b"II*\0" + struct.pack("<IH", 8, num) + entries + bytes(8)


def jpeg_with(*segments):
  data = encoded(PLAIN, "jpeg")
  parts = [b"\xff" + k + struct.pack(">H", len(x) + 2) + x for k, x in segments]
  return data[:2] + b"".join(parts) + data[2:]


def progressive(scans):
  data = encoded(PLAIN, "jpeg", progressive=True)
  begin = data.rindex(b"\xff\xda")
  return data[:begin] + data[begin:-2] * scans + data[-2:]


def nested_bomb():
  """The same in the directory of EXIF, to which the outer one points."""
  inner = bomb()[8:]
  outer = struct.pack("<HHHII", 1, 0x8769, 4, 1, 26) + bytes(4)
  return b"II*\0" + struct.pack("<I", 8) + outer + inner


WORK = {
  "EXIF of a JPEG": lambda: jpeg_with((b"\xe1", b"Exif\0\0" + bomb())),
  "EXIF over two segments": lambda: jpeg_with(
    (b"\xe1", b"Exif\0\0" + bomb()), (b"\xe1", b"Exif\0\0" + bytes(999))
  ),
  "index of an MPO": lambda: jpeg_with((b"\xe2", b"MPF\0" + bomb())),
  "EXIF of a PNG": lambda: encoded(PLAIN)[:-12] + chunk(b"eXIf", bomb()) + encoded(PLAIN)[-12:],
  "EXIF of a WebP": lambda: encoded(PLAIN, "webp", exif=bomb()),
  "TIFF": bomb,
  "EXIF inside of EXIF": lambda: jpeg_with((b"\xe1", b"Exif\0\0" + nested_bomb())),
  "scans": lambda: progressive(200),
}


@pytest.mark.parametrize("kind", WORK)
def test_headers_that_ask_for_much_work_are_refused_before_pillow_sees_them(monkeypatch, kind):
  data = WORK[kind]()
  monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("Pillow got it"))
  with pytest.raises(image_files.Damaged, match="points to .* bytes of|more than 100 scans"):
    opened(data)


# --- orientation ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_orientation_is_applied_by_both_readers_and_counted(tmp_path, orientation, format):
  exif = Image.Exif()
  exif[0x112] = orientation
  options = {"lossless": True} if format == "webp" else {}
  data = encoded(PLAIN, format, exif=exif, **options)
  expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
  write(tmp_path / "a" / f"x.{format}", data)
  source = sources.folder(tmp_path / "a")
  assert source.shape == expected.shape
  np.testing.assert_array_equal(source[0]["image"], expected)
  assert source.converted == ({"orientation": 1} if orientation > 1 else {})
  pixels, kinds = originals.find(tmp_path / "a").picture(0, ())
  np.testing.assert_array_equal(np.asarray(pixels), expected)
  assert kinds == (("orientation",) if orientation > 1 else ())


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_an_orientation_that_is_none_changes_nothing(value):
  exif = Image.Exif()
  exif[0x112] = value
  got, kinds = opened(encoded(PLAIN, exif=exif))
  np.testing.assert_array_equal(got, PIXELS[0])
  assert kinds == ()


# --- alpha, depth, palettes, colour spaces ---


def with_alpha(hidden, mode="RGBA"):
  """The right half is transparent, over colours that must not be seen."""
  pixels = np.concatenate([PIXELS[0], np.full((6, 4, 1), 255, np.uint8)], -1)
  pixels[:, 2:] = (*(hidden,) * 3, 0)
  image = Image.fromarray(pixels)
  return image if mode == "RGBA" else image.convert(mode)


def palette_with_alpha(hidden):
  image = Image.fromarray(np.tile(np.array([0, 1], np.uint8), (6, 2)))
  image.putpalette([10, 20, 30, hidden, hidden, hidden])
  return encoded(image, transparency=b"\xff\0")


def colour_key(hidden):
  pixels = PIXELS[0].copy()
  pixels[:, 2:] = hidden
  return encoded(Image.fromarray(pixels), transparency=(hidden,) * 3)


def gray_key(hidden):
  pixels = PIXELS[0, ..., 0].copy()
  pixels[:, 2:] = hidden
  pixels[:, :2] = np.where(pixels[:, :2] == hidden, hidden ^ 1, pixels[:, :2])
  return encoded(Image.fromarray(pixels), transparency=hidden)


ALPHA = {
  "RGBA": lambda hidden: encoded(with_alpha(hidden)),
  "LA": lambda hidden: encoded(with_alpha(hidden, "LA")),
  "WebP": lambda hidden: encoded(with_alpha(hidden), "webp", lossless=True, exact=True),
  "TIFF": lambda hidden: encoded(with_alpha(hidden), "tiff"),
  "palette": palette_with_alpha,
  "colour key": colour_key,
  "gray key": gray_key,
}


@pytest.mark.parametrize("kind", ALPHA)
def test_hidden_colours_do_not_train(tmp_path, capsys, kind):
  folder = tmp_path / "a"
  write(folder / "0.png", ALPHA[kind](7))
  write(folder / "1.png", ALPHA[kind](200))
  with pytest.raises(image_files.Refused, match=r"0.png is .*alpha.*data.folder.convert"):
    sources.folder(folder, convert=("palette",))
  prepared(folder, tmp_path / "out", "--max_bad=2", "--convert=palette", code=1)
  assert "0.png is" in capsys.readouterr().err
  images, _ = sources.as_array(sources.folder(folder, convert=("palette", "alpha")))
  got, _ = prepared(folder, tmp_path / "out", "--convert=palette,alpha")
  np.testing.assert_array_equal(got, images)
  hidden = np.s_[:, 1::2] if kind == "palette" else np.s_[:, 2:]
  for image in images:
    assert (image[hidden] == 255).all()
  shown = np.s_[:, ::2] if kind == "palette" else np.s_[:, :2]
  np.testing.assert_array_equal(images[0][shown], images[1][shown])
  if kind in ("RGBA", "WebP", "TIFF"):
    np.testing.assert_array_equal(images[0][shown], PIXELS[0][shown])


def test_half_transparency_is_blended_with_white():
  pixels = np.zeros((6, 4, 4), np.uint8)
  pixels[..., 3] = 64
  got, _ = opened(encoded(Image.fromarray(pixels)), convert=("alpha",))
  assert (got == 255 - 64).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_that_is_opaque_needs_no_asking_in_training_either(tmp_path, mode):
  image = Image.fromarray(np.concatenate([PIXELS[0], np.full((6, 4, 1), 255, np.uint8)], -1))
  write(tmp_path / "x.png", encoded(image.convert(mode)))
  expected = np.asarray(PLAIN if mode == "RGBA" else image.convert(mode).convert("L"))
  np.testing.assert_array_equal(sources.folder(tmp_path)[0]["image"].squeeze(), expected)


def deep_png(channels, values):
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
  kind = {1: 0, 3: 2, 4: 6, 2: 4}[channels]
  header = struct.pack(">IIBBBBB", 4, 6, 16, kind, 0, 0, 0)
  parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


DEEP = RNG.integers(0, 65_536, (6, 4, 3), np.uint16)
UNUSUAL = {
  "palette": lambda: encoded(PLAIN.quantize(16)),
  "palette of a GIF": lambda: encoded(PLAIN.quantize(16), "gif"),
  "cmyk": lambda: encoded(PLAIN.convert("CMYK"), "jpeg"),
  "cmyk of a TIFF": lambda: encoded(PLAIN.convert("CMYK"), "tiff"),
  "16-bit": lambda: deep_png(3, DEEP),
  "16-bit gray": lambda: deep_png(1, DEEP[..., 0]),
  "16-bit gray of a TIFF": lambda: encoded(Image.fromarray(DEEP[..., 0].copy()), "tiff"),
  "animated GIF": lambda: moving("gif"),
  "animated PNG": lambda: moving("png"),
  "animated WebP": lambda: moving("webp"),
  "animated TIFF": lambda: moving("tiff"),
}


def moving(format):
  frames = [Image.fromarray(x).quantize(8) for x in PIXELS[:3]]
  return encoded(frames[0], format, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("kind", UNUSUAL)
def test_training_and_preparing_refuse_the_same_and_convert_to_the_same(tmp_path, capsys, kind):
  word = kind.split()[0]
  write(tmp_path / "a" / "x.png", UNUSUAL[kind]())
  with pytest.raises(image_files.Refused, match=rf"x.png is .*{word}.*add .*{word}"):
    sources.folder(tmp_path / "a", max_bad=1)
  prepared(tmp_path / "a", tmp_path / "out", "--max_bad=1", code=1)
  assert f"{word}" in capsys.readouterr().err
  every = tuple(image_files.CONVERSIONS)
  image = sources.folder(tmp_path / "a", convert=every)[0]["image"]
  got, _ = prepared(tmp_path / "a", tmp_path / "out", f"--convert={','.join(every)}")
  np.testing.assert_array_equal(got[0], image)
  if word == "16-bit":
    np.testing.assert_array_equal(image, (DEEP >> 8)[..., : image.shape[-1]])


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_what_is_neither_gray_nor_rgb_is_refused_under_every_conversion(tmp_path, mode):
  if mode == "LAB":
    image = Image.frombytes("LAB", (4, 6), PIXELS[0].tobytes())
  else:
    image = Image.fromarray(PIXELS[0, ..., 0].astype("float32" if mode == "F" else "int32") - 9)
  write(tmp_path / "x.tiff", encoded(image, "tiff"))
  every = tuple(image_files.CONVERSIONS)
  with pytest.raises(image_files.Refused, match=f"mode {mode}"):
    sources.folder(tmp_path, convert=every)[0]


# --- damage ---


def test_every_flipped_bit_of_the_pixels_of_a_png_is_noticed():
  data = encoded(Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)))
  begin, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
  for place in RNG.integers(8 * begin, 8 * end, 200).tolist():
    flipped = bytearray(data)
    flipped[place // 8] ^= 1 << place % 8
    with pytest.raises(image_files.Damaged, match="checksum of its chunk 'IDAT'"):
      opened(bytes(flipped))


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_the_start_of_a_picture_is_no_picture(format, part):
  noise = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8))
  data = encoded(noise, format)
  with pytest.raises(image_files.Damaged, match="Cannot decode x: .*Remove or replace it"):
    opened(data[: int(part * len(data))])


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "bmp", "tiff", "gif"])
def test_changed_bytes_are_read_or_refused_in_one_line(format):
  exif = Image.Exif()
  exif[0x112] = 6
  image = PLAIN.quantize(16) if format == "gif" else PLAIN
  data = encoded(image, format, **({} if format in ("gif", "bmp") else {"exif": exif}))
  rng = np.random.default_rng(1)
  for _ in range(60):
    changed = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 5)):
      changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
    cut = rng.integers(len(data)) if rng.random() < 0.2 else len(data)
    try:
      opened(bytes(changed[:cut]), convert=tuple(image_files.CONVERSIONS), max_pixels=10_000)
    except (image_files.Damaged, image_files.Refused) as error:
      assert "\n" not in str(error)


def test_pillow_must_not_be_set_to_take_half_pictures(monkeypatch):
  monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
  with pytest.raises(image_files.Refused, match="LOAD_TRUNCATED_IMAGES.*Set it to False"):
    opened(encoded(PLAIN))


def broken(path, kind):
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "link to nothing":
    path.symlink_to("nowhere.png")
  elif kind == "no rights":
    path.symlink_to("/proc/self/mem")
  else:
    data = {"empty": b"", "text": b"404", "cut": encoded(PLAIN)[:-20]}
    path.write_bytes(data[kind])


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "pipe", "link to nothing", "no rights"])
def test_max_bad_lets_the_next_sound_picture_stand_in_and_says_so(tmp_path, caplog, kind):
  for i in (0, 1, 3):
    write(tmp_path / f"{i}.png", encoded(Image.fromarray(PIXELS[i])))
  broken(tmp_path / "2.png", kind)
  with pytest.raises(image_files.Damaged, match="Cannot decode .*2.png.*"):
    sources.as_array(sources.folder(tmp_path))
  source = sources.folder(tmp_path, max_bad=1)
  for _ in range(2):
    images = source.take(np.array([3, 2, 1, 0]))["image"]
    np.testing.assert_array_equal(images, PIXELS[[3, 3, 1, 0]])
  said = [r.getMessage() for r in caplog.records if "takes its place" in r.getMessage()]
  assert len(said) == 1 and "2.png" in said[0] and "1 so far" in said[0]
  write(tmp_path / "1.png", b"404")
  with pytest.raises(image_files.Damaged, match="Cannot decode .*.png"):
    sources.as_array(sources.folder(tmp_path, max_bad=1))


def test_the_last_picture_is_followed_by_the_first_with_its_label(tmp_path):
  write(tmp_path / "a" / "0.png", encoded(Image.fromarray(PIXELS[0])))
  write(tmp_path / "b" / "1.png", b"404")
  element = sources.folder(tmp_path, max_bad=1)[1]
  np.testing.assert_array_equal(element["image"], PIXELS[0])
  assert element["label"] == 0
