"""Published files come whole or not at all: interrupted, damaged, cut off, from two at once."""

import contextlib
import gzip
import io
import logging
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest

from cmjax.base import tar_files
from cmjax.data import downloads, idx_files, published_sets, sources
from helpers import loopback_files as loopback

CONTENT = np.random.default_rng(0).bytes(200_000)
NAME = "set.bin"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
  monkeypatch.setattr(downloads, "PAUSE", 0.0)


@pytest.fixture
def server():
  with loopback.serving({NAME: CONTENT}) as server:
    yield server


def fetch(server, folder, content=CONTENT, urls=None):
  file = loopback.file_of(NAME, content, *(urls or (server.url,)))
  return downloads.fetch(file, folder, key="data.set.cache")


def refusal(server, folder, **options):
  with pytest.raises(ValueError) as raised:
    fetch(server, folder, **options)
  assert "\n" not in str(raised.value)
  return str(raised.value)


def test_a_file_comes_once_and_whole(server, tmp_path):
  path = fetch(server, tmp_path / "a")
  assert path == tmp_path / "a" / NAME and path.read_bytes() == CONTENT
  assert fetch(server, tmp_path / "a") == path and server.asked == [(NAME, None)]
  assert sorted(p.name for p in path.parent.iterdir()) == ["lock", NAME]


def test_a_connection_that_is_lost_is_taken_up_where_it_ended(server, tmp_path):
  server.cut, server.cuts = 50_000, 3
  assert fetch(server, tmp_path).read_bytes() == CONTENT
  assert server.asked == [
    (NAME, None),
    *((NAME, f"bytes={i}-") for i in (50_000, 100_000, 150_000)),
  ]


def test_a_stopped_download_goes_on_in_the_next_process(server, tmp_path):
  server.cut, server.cuts = 30_000, 1
  with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
    patch.setattr(downloads.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    fetch(server, tmp_path)
  assert (tmp_path / f"{NAME}.part").stat().st_size == 30_000
  assert not (tmp_path / NAME).exists()
  assert fetch(server, tmp_path).read_bytes() == CONTENT
  assert server.asked[1:] == [(NAME, "bytes=30000-")]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
  server.cut, server.cuts, server.ranges = 70_000, 1, False
  assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_damaged_part_is_not_believed(server, tmp_path):
  (tmp_path / f"{NAME}.part").write_bytes(b"x" * 40_000)
  assert fetch(server, tmp_path).read_bytes() == CONTENT
  (tmp_path / NAME).unlink()
  (tmp_path / f"{NAME}.part").write_bytes(b"x" * 300_000)  # longer than the file
  assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_damaged_file_is_downloaded_again_with_a_word(server, tmp_path, caplog):
  path = fetch(server, tmp_path)
  path.write_bytes(CONTENT[:-1] + b"x")
  with caplog.at_level(logging.WARNING, "cmjax"):
    assert fetch(server, tmp_path).read_bytes() == CONTENT
  assert "is damaged: it is downloaded again" in caplog.text


@pytest.mark.parametrize(
  "served", [CONTENT[:-1] + b"x", CONTENT + b"x", CONTENT[:-1], b""], ids=len
)
def test_other_bytes_than_the_published_are_refused(server, tmp_path, served):
  server.files[NAME] = served
  said = refusal(server, tmp_path)
  assert f"curl -L -o {NAME} {server.url}{NAME}" in said and str(tmp_path / NAME) in said
  assert not (tmp_path / NAME).exists()
  assert len(server.asked) <= 2 * downloads.TRIES


def test_the_next_address_is_asked_where_one_has_it_not(server, tmp_path):
  urls = (f"{server.url}elsewhere/", server.url)
  assert fetch(server, tmp_path, urls=urls).read_bytes() == CONTENT
  assert [name for name, _ in server.asked] == [f"elsewhere/{NAME}", NAME]


@pytest.mark.parametrize("status, tries", [(404, 1), (403, 1), (503, downloads.TRIES)])
def test_what_a_server_answers_is_said(server, tmp_path, status, tries):
  server.status = status
  assert f"the server answers {status} " in refusal(server, tmp_path)
  assert len(server.asked) == tries


def test_a_part_from_another_place_is_refused(server, tmp_path):
  server.cut, server.cuts, server.begins_at = 1_000, 1, 7
  assert "the bytes from '7' on, not from 1000" in refusal(server, tmp_path)


def test_without_a_network_one_line_says_what_to_do(server, tmp_path):
  server.close()
  said = refusal(server, tmp_path)
  assert "Connection refused" in said and f"put the file at {tmp_path / NAME}." in said
  (tmp_path / NAME).write_bytes(CONTENT)
  assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_told(server, tmp_path, monkeypatch):
  (tmp_path / "file").write_bytes(b"")
  assert "Set data.set.cache" in refusal(server, tmp_path / "file" / "a")
  monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("", (), dict(free=10)))
  assert "0.2 MB more" in refusal(server, tmp_path)


def test_of_two_at_once_one_downloads(server, tmp_path):
  server.cut, server.cuts = 20_000, 5
  threads = [threading.Thread(target=fetch, args=(server, tmp_path)) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert [asked for asked in server.asked if asked[1] is None] == [(NAME, None)]
  assert (tmp_path / NAME).read_bytes() == CONTENT


ONE = """
import sys
from cmjax.data import downloads
name, url, num_bytes, sha256, folder = sys.argv[1:]
downloads.fetch(downloads.File(name, (url,), int(num_bytes), sha256), folder, key="k")
"""


def test_of_two_processes_one_downloads(server, tmp_path):
  server.cut, server.cuts = 60_000, 2  # with a second between them
  file = loopback.file_of(NAME, CONTENT, server.url)
  arguments = [NAME, *file.urls, str(file.num_bytes), file.sha256, str(tmp_path)]
  both = [subprocess.Popen([sys.executable, "-c", ONE, *arguments]) for _ in range(2)]
  assert [one.wait(60) for one in both] == [0, 0]
  assert [asked for asked in server.asked if asked[1] is None] == [(NAME, None)]
  assert (tmp_path / NAME).read_bytes() == CONTENT


# --- what is in the files ---


def test_cifar10_is_read_from_its_archive(monkeypatch, tmp_path):
  archive, told = loopback.cifar10()
  with loopback.serving({"cifar-10-binary.tar.gz": archive}) as server:
    loopback.publish(monkeypatch, "cifar10", server)
    for split in sources.SPLITS:
      data = published_sets.cifar10(split=split, cache=str(tmp_path))
      images, labels = sources.as_array(data)
      np.testing.assert_array_equal(images, told[split][0])
      np.testing.assert_array_equal(labels, told[split][1])
      assert data.num_classes == 10 and data.class_names[3] == "cat"
    assert len(server.asked) == 1
  with pytest.raises(ValueError, match="Unknown split 'valid'"):
    published_sets.cifar10(split="valid", cache=str(tmp_path))


def test_a_mirror_is_asked_instead(monkeypatch, tmp_path):
  archive, _ = loopback.cifar10(num=2)
  with loopback.serving({"cifar-10-binary.tar.gz": archive}) as server:
    loopback.publish(monkeypatch, "cifar10", server)
    (file,) = published_sets.FILES["cifar10"]
    unreachable = file._replace(urls=("http://127.0.0.1:9/none",))
    monkeypatch.setitem(published_sets.FILES, "cifar10", (unreachable,))
    assert len(published_sets.cifar10(cache=str(tmp_path), url=server.url)) == 10
  with pytest.raises(ValueError, match="must begin with http"):
    published_sets.cifar10(cache=str(tmp_path), url="file:///etc")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_and_its_kin_are_read_from_their_files(monkeypatch, tmp_path, name):
  rng = np.random.default_rng(0)
  arrays = {}
  for split, num in (("train", 30), ("t10k", 20)):
    arrays[f"{split}-images-idx3-ubyte.gz"] = rng.integers(0, 256, (num, 28, 28), np.uint8)
    arrays[f"{split}-labels-idx1-ubyte.gz"] = rng.integers(0, 10, num, np.uint8)
  with loopback.serving({key: loopback.idx(a) for key, a in arrays.items()}) as server:
    loopback.publish(monkeypatch, name, server)
    images, labels = sources.as_array(
      published_sets.SOURCES[name](split="test", cache=str(tmp_path))
    )
  np.testing.assert_array_equal(images[..., 0], arrays["t10k-images-idx3-ubyte.gz"])
  np.testing.assert_array_equal(labels, arrays["t10k-labels-idx1-ubyte.gz"])
  assert images.shape == (20, 28, 28, 1)


def test_the_files_are_those_that_tfds_knows():
  import tensorflow_datasets as tfds

  folder = tfds.core.tfds_path() / "url_checksums"
  for name, files in published_sets.FILES.items():
    rows = [line.split("\t") for line in (folder / f"{name}.txt").read_text().splitlines()]
    known = {(url, int(size), sha256) for url, size, sha256, *_ in rows}
    for file in files:
      assert (file.urls[0], file.num_bytes, file.sha256) in known


def tar_gz(path, write):
  with tarfile.open(path, "w:gz") as archive:
    write(archive)
  return path


def test_hostile_archives_are_refused(tmp_path):
  link = tarfile.TarInfo("a/link")
  link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
  twice = lambda archive: [loopback.add(archive, "b", b"1") for _ in range(2)]
  for write, message in (
    (lambda archive: archive.addfile(link), "is a link"),
    (lambda archive: loopback.add(archive, "../b", b""), "leaves its folder"),
    (lambda archive: loopback.add(archive, "/b", b""), "begins at the root"),
    (lambda archive: loopback.add(archive, "c", b""), "it has no a, b"),
    (twice, "it has 'b' twice"),
  ):
    path = tar_gz(tmp_path / "a.tar.gz", write)
    with pytest.raises(ValueError, match=message):
      tar_files.read(path, ["a", "b"])
  path = tar_gz(tmp_path / "zeros.tar.gz", lambda a: loopback.add(a, "z", bytes(2**27)))
  with pytest.raises(ValueError, match="the limit zip_ratio=200"):
    tar_files.read(path, ["a"])


@pytest.mark.parametrize("size", [0, 10, 100, 400])
def test_a_part_of_an_archive_is_refused(tmp_path, size):
  whole = tar_gz(tmp_path / "a.tar.gz", lambda a: loopback.add(a, "a", CONTENT)).read_bytes()
  (tmp_path / "a.tar.gz").write_bytes(whole[:size])
  with pytest.raises(ValueError):
    tar_files.read(tmp_path / "a.tar.gz", ["a"])


@pytest.mark.parametrize(
  "content, message",
  [
    (b"", "no IDX file"),
    (b"\0\0\x0d\1", "begins with 00000d01"),
    (b"\0\0\x08\x09", "no IDX file"),
    (b"\0\0\x08\1\0\0\0\5abc", "its header speaks of 5 bytes"),
    (b"\0\0\x08\1\0\0\0\2abc", "its header speaks of 2 bytes"),
    (b"\0\0\x08\2\xff\xff\xff\xff\xff\xff\xff\xff", "the limit zip_ratio=200"),
    (b"\0\0\x08\2\0\0", "Cannot read"),
  ],
)
def test_hostile_idx_files_are_refused(tmp_path, content, message):
  path = tmp_path / "a.idx.gz"
  path.write_bytes(gzip.compress(content))
  with pytest.raises(ValueError, match=message):
    idx_files.read(path)
  path.write_bytes(content)
  with pytest.raises(ValueError, match="Cannot read .*a.idx.gz"):
    idx_files.read(path)


def test_an_archive_of_other_records_is_refused(monkeypatch, tmp_path):
  packed = io.BytesIO()
  with tarfile.open(fileobj=packed, mode="w:gz") as archive:
    loopback.add(archive, "cifar-10-batches-bin/test_batch.bin", b"x" * 100)
  with loopback.serving({"cifar-10-binary.tar.gz": packed.getvalue()}) as server:
    loopback.publish(monkeypatch, "cifar10", server)
    with contextlib.closing(server), pytest.raises(ValueError, match="has 100 bytes, not a number"):
      published_sets.cifar10(split="test", cache=str(tmp_path))
