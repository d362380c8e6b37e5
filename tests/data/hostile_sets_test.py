"""Sets and sources that somebody else made: nothing is written outside, and no memory taken."""

import json
import os
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from cmjax.base import limits
from cmjax.data import image_sets, manifest, records, sources
from cmjax.data.prepare import originals, parquet_files, parquet_pages, validation
from helpers.prepared_sets import write_set


@pytest.fixture(autouse=True)
def _own_limits(monkeypatch):
  monkeypatch.setattr(limits, "_raised", {})
  monkeypatch.setattr(limits, "FREE", 2**16)  # so that small bombs are bombs


def refused(call, message, most=2_000_000):
  """The one line that a call ends with, without much memory."""
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=message) as stop:
      call()
    assert tracemalloc.get_traced_memory()[1] < most
  finally:
    tracemalloc.stop()
  assert str(stop.value).isprintable() and len(str(stop.value)) < 1000
  return str(stop.value)


# --- manifests ---


@pytest.fixture(name="prepared")
def _prepared(tmp_path):
  """A set of 20 images in two shards, and a function that changes its manifest."""
  arrays = {
    "image": np.arange(320, dtype=np.uint8).reshape(20, 4, 4, 1),
    "label": np.arange(20) % 2,
  }
  path = write_set(tmp_path / "set", arrays, num_classes=2)
  file = path / "train" / "manifest.json"
  content = json.loads(file.read_text())

  def change(**values):
    shard = {k: v for k, v in values.items() if k in manifest.Shard._fields}
    layout = {k: v for k, v in values.items() if k in content["layout"]}
    whole = {k: v for k, v in values.items() if k not in shard and k not in layout}
    first, second = content["shards"]
    changed = {"shards": [first | shard, second], "layout": content["layout"] | layout}
    file.write_text(json.dumps(content | changed | whole))

  return path, change


NAMES = {
  "../x.array_record": "leaves its folder",
  "a/../../x.array_record": "leaves its folder",
  "/tmp/x.array_record": "begins at the root",
  "a/x.array_record": "right in its folder",
  "./x.array_record": "right in its folder",
  "..\\x.array_record": "backslash",
  "C:x.array_record": "drive letter",
  "nul.array_record": "device",
  "x\0.array_record": "control characters",
  "x\x1b[2J.array_record": "control characters",
  "x\u202e.array_record": "order of letters",
  "manifest.json": "does not end with .array_record",
  ".bashrc": "does not end with .array_record",
  "": "names no file",
  None: "is no text",
  5: "is no text",
}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_shard_is_a_file_right_in_its_folder(prepared, name, tmp_path, monkeypatch):
  path, change = prepared
  change(name=name)
  before = sorted(tmp_path.rglob("*"))
  refused(lambda: records.records(path), NAMES[name])
  assert len(validation.validate(path).problems) == 1
  monkeypatch.setattr(manifest, "SCHEMES", ("/",))  # as from a bucket
  refused(lambda: records.records(path, cache=tmp_path / "cache"), NAMES[name])
  assert sorted(tmp_path.rglob("*")) == before


CLAIMS = {
  "more records than bytes": (dict(num_records=2**40), "cannot hold 1099511627776 records"),
  "fewer than none": (dict(num_records=-1), "num_records of train-.* is -1"),
  "half a record": (dict(num_records=1.5), "num_records of train-.* is 1.5"),
  "true": (dict(num_bytes=True), "num_bytes of train-.* is True"),
  "2^63 bytes": (dict(num_bytes=2**63), "num_bytes of"),
  "a number of 4000 digits": (dict(num_bytes=10**4000), "a number of more than 20 digits"),
  "no digest": (dict(sha256="x"), "the sha256 of train-.* is 'x'"),
  "a digest that is a list": (dict(sha256=[1]), "the sha256 of"),
  "a layout of a terabyte": (dict(shape=[2**20, 2**20, 1]), "record_bytes=268435456"),
  "sizes that cancel": (dict(shape=[-4, -4, 1]), "a size of its shape is -4"),
  "no size": (dict(shape=[]), "records of 'uint8' ()"),
  "twenty axes": (dict(shape=[1] * 20), "records of 'uint8'"),
  "text for a shape": (dict(shape="ab"), "shape is 'ab', not list"),
  "objects": (dict(dtype="object"), "records of 'object'"),
  "text": (dict(dtype="U1000000000"), "records of 'U1000000000'"),
  "a flag that is none": (dict(has_label="no"), "has_label is 'no', not bool"),
  "classes of text": (dict(class_names="ab"), "class_names is 'ab', not list"),
  "classes of numbers": (dict(class_names=[1, 2]), "a class name is 1, not str"),
  "a split above": (dict(split="../train"), "leaves its folder"),
  "latents that are text": (dict(latents="scm"), "latents is 'scm', not dict"),
  "latents without a name": (dict(latents={}), "latents has no name"),
  "shards that are none": (dict(shards=7), "shards is 7, not list"),
  "a shard that is none": (dict(shards=[7]), "a shard is 7, not dict"),
  "counts that are none": (dict(class_counts=7), "class_counts is 7, not list"),
  "copies that are none": (dict(duplicates=[]), "duplicates is \\[\\], not dict"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_what_a_manifest_says_is_checked_before_it_is_believed(prepared, name):
  path, change = prepared
  claim, message = CLAIMS[name]
  change(**claim)
  refused(lambda: records.records(path), message)
  assert len(validation.validate(path).problems) == 1


def test_a_shard_twice_and_a_manifest_of_something_else_are_refused(prepared):
  path, change = prepared
  file = path / "train" / "manifest.json"
  shards = json.loads(file.read_text())["shards"]
  change(shards=[shards[0], shards[0]])
  refused(lambda: records.records(path), "it lists a shard twice")
  for text in ("[]", "3", "null", '"x"', "[" * 10_000, '{"format": 1, "format": 2}', "\x1b"):
    file.write_text(text)
    refused(lambda: records.records(path), "is no manifest of cmjax-records-1")
  file.unlink()
  os.mkfifo(file)
  refused(lambda: records.records(path), "no regular file")


def test_a_shard_that_is_no_file_is_not_read(prepared):
  path, change = prepared
  shard = sorted((path / "train").glob("*.array_record"))[0]
  shard.unlink()
  for make in (os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p)):
    make(shard)
    refused(lambda: records.records(path), "has (no|0) bytes, but its manifest says")
    assert validation.validate(path).problems
    (os.rmdir if shard.is_dir() else os.unlink)(shard)


@pytest.mark.parametrize(
  "address",
  ["http://here/set", "https://here/set", "file:///tmp/set", "ftp://here/set", "S3:/x", "hdfs://x"],
)
def test_an_address_that_is_no_folder_and_no_bucket_is_one_line(address):
  refused(lambda: records.records(address), "is in a folder, .*or in a bucket .gs://, s3://")


def test_what_a_bucket_raises_is_one_line(monkeypatch):
  class NoLogin(Exception):
    """As botocore's and gcsfs's are: of no class that is known here."""

  def fail(path, split):
    raise NoLogin("Unable to locate\ncredentials \x1b[31m")

  monkeypatch.setattr(manifest, "read", fail)
  said = refused(
    lambda: records.records("s3://here/set"), "Cannot read s3://here/set: NoLogin: Una"
  )
  assert said.endswith(r"Unable to locate credentials \x1b[31m")
  with pytest.raises(NoLogin):  # of a folder it would be a fault of ours
    records.records("/here/set")


def test_a_bucket_gives_no_more_bytes_than_its_manifest_says(prepared, tmp_path, monkeypatch):
  path, change = prepared
  shard = sorted((path / "train").glob("*.array_record"))[1]
  with shard.open("ab") as file:
    file.truncate(2**30)
  monkeypatch.setattr(manifest, "SCHEMES", ("/",))
  call = lambda: records.records(path, cache=tmp_path / "cache")
  refused(call, "is not the shard of its manifest", most=40_000_000)
  sizes = [p.stat().st_size for p in (tmp_path / "cache").rglob("*.array_record")]
  assert len(sizes) == 1 and sizes[0] < 2**20


def test_any_change_of_a_manifest_is_the_set_or_one_line(prepared):
  path, _ = prepared
  file = path / "train" / "manifest.json"
  whole, rng = file.read_bytes(), np.random.default_rng(0)
  for _ in range(150):
    data = bytearray(whole)
    data[rng.integers(len(data))] = int(rng.choice(list(b'[]{}",:-0e\\/.\xff\0')))
    file.write_bytes(data)
    try:
      assert len(records.records(path)) == 20
    except ValueError as error:
      assert "\n" not in str(error)


# --- folders and zips to be prepared ---


def png(path, side=4):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(path)
  return path


TABLES = {
  "label 2^31 - 1": ('{"a.png": 2147483647}', "speak of 2147483648 classes: .* classes=1048576"),
  "label 2^40": ('{"a.png": 1099511627776}', "1099511627777 classes: .*--limits=classes=NUMBER"),
  "label of 4000 digits": ('{"a.png": ' + "9" * 4000 + "}", "a number of more than 20 digits"),
  "label -1": ('{"a.png": -1}', "label of a.png is -1"),
  "label nan": ('{"a.png": NaN}', "label of a.png is nan"),
  "label 1e400": ('{"a.png": 1e400}', "label of a.png is inf"),
  "label true": ('{"a.png": true}', "label of a.png is True"),
  "label null": ('{"a.png": null}', "label of a.png is None"),
  "label of lists": ('{"a.png": ' + "[" * 50 + "]" * 50 + "}", "label of a.png is \\[list"),
  "nested": ("[" * 50_000, "dataset.json: it is nested too deep"),
  "nested, closed": ('{"labels": ' + "[" * 900 + "]" * 900 + "}", "nested too deep|json_depth"),
  "a list": ("[1]", "it is \\[1\\]. It must be JSON"),
  "a number": ("3", "it is 3. It must be JSON"),
  "labels that are text": ('{"labels": "abc"}', "It must be JSON"),
  "labels that are a number": ('{"labels": 3}', "It must be JSON"),
  "labels of threes": ('{"labels": [["a.png", 1, 2]]}', "It must be JSON"),
  "labels of lists": ('{"labels": [[["a.png"], 1]]}', "It must be JSON"),
  "a picture twice": ('{"labels": [["a.png", 0], ["a.png", 1]]}', "more than once, such as a.png"),
  "a key twice": ('{"a.png": 0, "a.png": 1}', "it has 'a.png' twice"),
  "cut off": ('{"a.png": ', "Expecting value"),
  "escapes": ('{"a.png": "\x1b[2J"}', "Invalid control character"),
}


@pytest.mark.parametrize("kind", ["folder", "zip", "--labels"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_labels_that_cannot_be_is_one_line(tmp_path, name, kind):
  text, message = TABLES[name]
  source, labels = tmp_path / "a", None
  png(source / "a.png")
  if kind == "folder":
    (source / "dataset.json").write_text(text)
  elif kind == "--labels":
    labels = tmp_path / "labels.json"
    labels.write_text(text)
  else:
    source = tmp_path / "a.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as file:
      file.write(tmp_path / "a" / "a.png", "a.png")
      file.writestr("dataset.json", text)
  message = message.replace("dataset.json", "labels.json" if labels else "dataset.json")
  refused(lambda: originals.find(source, labels=labels and str(labels)), message)


def test_more_classes_than_the_limit_are_the_users_to_allow(tmp_path):
  png(tmp_path / "a" / "a.png")
  (tmp_path / "a" / "dataset.json").write_text('{"a.png": 20}')
  limits.allow({"classes": 10})
  refused(lambda: originals.find(tmp_path / "a"), "the limit classes=10")
  assert len(originals.find(tmp_path / "a", num_classes=30).class_names) == 30
  limits.allow({"classes": 30})
  refused(lambda: originals.find(tmp_path / "a"), "20 of 21 classes have no picture")


def test_a_zip_is_no_bomb_and_leaves_no_folder(tmp_path):
  path = tmp_path / "a.zip"
  picture = png(tmp_path / "a.png").read_bytes()
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr("a.png", picture)
    file.writestr("b.png", bytes(2**22))
    file.writestr("dataset.json", b'{"labels": null' + b" " * 2**22 + b"}")
  refused(lambda: originals.find(path), "'dataset.json' would unpack .*zip_ratio=200")
  found = originals.find(path, labels="none")
  assert found.open(0).getvalue() == picture
  refused(lambda: found.open(1), "Cannot read b.png in .*would unpack .*zip_ratio=200")
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("../a.png", picture)
  refused(lambda: originals.find(path), "leaves its folder by '..'. It must be a .zip of pictures")


def test_names_of_pictures_are_printable_and_their_files_are_found(tmp_path):
  png(tmp_path / "a" / "x\x1b[2J.png")
  png(tmp_path / "a" / "y\n.png")
  found = originals.find(tmp_path / "a")
  assert all(name.isprintable() for name in found.names)
  for i in range(2):
    assert found.picture(i, ())[0].size == (4, 4) and found.stamp(i)
  png(tmp_path / "a" / "y\n.png").write_bytes(b"\x89PNG")
  refused(lambda: [found.picture(i, ()) for i in range(2)], r"Cannot decode y\\n.png")


@pytest.mark.parametrize("split", ["..", ".", "a/b", "../x", "", "a\\b", "a\0"])
def test_a_split_is_a_folder_of_the_set(tmp_path, split):
  png(tmp_path / "a" / "a.png")
  with pytest.raises(ValueError, match="names a folder|is refused"):
    originals.find(tmp_path / "a", split=split)
  with pytest.raises(ValueError, match="is refused|No prepared split"):
    records.records(tmp_path / "a", split=split)


# --- arrays ---


@pytest.mark.parametrize("label", [2**31 - 1, 2**40, 2**63 + 1, 2**20])
def test_labels_of_an_npz_are_counted_before_they_are_believed(tmp_path, label):
  images = np.zeros((3, 2, 2, 1), np.uint8)
  labels = np.array([0, 1, label], np.uint64)
  np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels)
  refused(lambda: sources.npz(tmp_path / "x.npz"), f"of {label + 1} classes: .*classes=1048576")
  np.savez(tmp_path / "y.npz", arr_0=images, arr_1=labels)
  refused(lambda: image_sets.read(tmp_path / "y.npz"), f"of {label + 1} classes: .*classes=10485")


# --- parquet ---


pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def table(path, values, labels=None, **options):
  """A parquet file of Hugging Face's form."""
  image = [None if v is None else {"bytes": v, "path": "x"} for v in values]
  kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  columns = {"image": pa.array(image, kind)}
  columns |= {} if labels is None else {"label": labels}
  path.parent.mkdir(exist_ok=True)
  pq.write_table(pa.table(columns), path, **options)
  return path.parent


PICTURE = bytes(range(256)) * 2


def test_rows_of_parquet_come_back_in_any_order(tmp_path):
  values = [bytes([i]) * (50 + i) for i in range(23)]
  path = table(tmp_path / "a" / "x.parquet", values, [i % 3 for i in range(23)], row_group_size=5)
  found = originals.find(path)
  assert found.labels.tolist() == [i % 3 for i in range(23)]
  for i in [*range(23), 3, 4, 11, 13, 2, 22, 0]:
    assert found.open(i).getvalue() == values[i]


def page_that_lies(path):
  """Changes the page of a file: it says in its header that it unpacks to 4096 bytes."""
  data = path.read_bytes()
  at = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
  # Field 1, the kind, is 0; field 2, the bytes when unpacked, is a number of two bytes.
  assert data[at : at + 3] == b"\x15\0\x15" and data[at + 3] >= 128 > data[at + 4]
  path.write_bytes(data[: at + 3] + b"\x80\x40" + data[at + 5 :])


HOSTILE = {
  "null rows": (
    lambda p: table(p / "a" / "x.parquet", [None] * 50_000), "50000 rows in .*parquet_rows_per_kb"
  ),
  "one picture in all rows": (
    lambda p: table(p / "a" / "x.parquet", [PICTURE] * 20_000), "20000 rows in .*rows_per_kb=32"
  ),
  "a page that is mostly zeros": (
    lambda p: table(p / "a" / "x.parquet", [bytes(2**21)], compression="zstd"), "zip_ratio=200",
  ),
  "a dictionary of zeros": (
    lambda p: table(p / "a" / "x.parquet", [bytes(2**21)] * 2, compression="gzip",
                    dictionary_pagesize_limit=2**24),
    "zip_ratio=200",
  ),
  "pictures that are numbers": (
    lambda p: (p / "a").mkdir() or pq.write_table(
      pa.table({"image": [1, 2]}), p / "a" / "x.parquet") or p / "a",
    "holds no bytes but int64",
  ),
  "pictures that are lists": (
    lambda p: (p / "a").mkdir() or pq.write_table(
      pa.table({"image": [[b"1"]]}), p / "a" / "x.parquet") or p / "a",
    "holds no bytes but list",
  ),
  "labels that are lists": (
    lambda p: table(p / "a" / "x.parquet", [PICTURE] * 2, [[1], [2]]), "not whole numbers or text"
  ),
  "labels that are missing": (
    lambda p: table(p / "a" / "x.parquet", [PICTURE] * 2, pa.array([1, None])), "is None: labels"
  ),
  "labels of 2^40": (
    lambda p: table(p / "a" / "x.parquet", [PICTURE], [2**40]), "1099511627777 classes: .*classes="
  ),
  "labels of a megabyte": (
    lambda p: table(p / "a" / "x.parquet", [PICTURE] * 50, ["x" * 2**20] * 50), "1000 characters"
  ),
  "no file": (
    lambda p: (p / "a").mkdir() or (p / "a" / "x.parquet").write_bytes(b"PAR1" * 9) and p / "a",
    "Cannot read .*x.parquet",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_parquet_that_means_harm_is_refused_before_memory_is_taken(tmp_path, name):
  make, message = HOSTILE[name]
  path = make(tmp_path)
  before = pa.total_allocated_bytes()
  refused(lambda: originals.find(path), message)
  assert pa.default_memory_pool().bytes_allocated() - before < 2**22


def test_a_row_that_is_no_picture_is_one_line(tmp_path):
  path = table(tmp_path / "a" / "x.parquet", [PICTURE, None, PICTURE])
  found = originals.find(path)
  assert found.open(0).getvalue() == PICTURE
  refused(lambda: found.open(1), "row 1: column 'image' holds no bytes but NoneType")
  assert found.open(2).getvalue() == PICTURE


def test_a_page_that_says_more_than_the_footer_is_refused(tmp_path):
  path = table(tmp_path / "a" / "x.parquet", [PICTURE] * 3, use_dictionary=False)
  limits.allow({"parquet_page_bytes": 3000})
  assert len(originals.find(path)) == 3
  page_that_lies(path / "x.parquet")
  refused(lambda: originals.find(path), "unpacks to 4096: 4096 is .*parquet_page_bytes=3000")


def test_names_of_classes_are_names(tmp_path):
  def with_names(names):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    info = {"info": {"features": {"label": {"names": names}}}}
    schema = schema.with_metadata({"huggingface": json.dumps(info)})
    rows = {"image": [{"bytes": PICTURE, "path": "x"}] * 2, "label": [0, 1]}
    (tmp_path / "a").mkdir(exist_ok=True)
    pq.write_table(pa.table(rows, schema), tmp_path / "a" / "x.parquet")
    return originals.find(tmp_path / "a")

  assert with_names(["ant", "bee"]).class_names == ["ant", "bee"]
  for names in ("ab", [1, 2], {"a": 1}, 7, [["a"], ["b"]]):
    refused(lambda names=names: with_names(names), "have no names of classes")


def test_any_changed_byte_of_the_headers_is_read_or_one_line(tmp_path):
  path = table(tmp_path / "a" / "x.parquet", [PICTURE] * 8, list(range(8)), row_group_size=4)
  file = path / "x.parquet"
  whole, rng = file.read_bytes(), np.random.default_rng(0)
  for _ in range(60):
    data = bytearray(whole)
    data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
    file.write_bytes(data)
    try:
      found = originals.find(path)
      for i in range(len(found)):
        found.open(i)
    except ValueError as error:
      assert "\n" not in str(error)


@pytest.mark.parametrize(
  "header",
  [b"", b"\x15", b"\x15" + b"\xff" * 20, b"\x1c" * 20, b"\x15\x02" * 300, b"\x1d\0",
   b"\x19\xf9\xff\x7f", b"\x18\xff\xff\x7f", b"\0", struct.pack("<q", -1)],
  ids=str,
)  # fmt: skip
def test_a_header_of_a_page_that_is_none_is_one_line(tmp_path, header):
  (tmp_path / "x").write_bytes(header)
  with (tmp_path / "x").open("rb") as file:
    refused(lambda: parquet_pages._check_pages(file, 0, max(1, len(header))), "page")


def test_without_pyarrow_nothing_of_it_is_imported():
  assert parquet_files.__name__ in sys.modules  # by originals, with or without pyarrow
