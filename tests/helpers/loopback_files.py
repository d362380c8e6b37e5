"""A server of files on the loopback that can be made to fail, and small archives to serve."""

import contextlib
import gzip
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np

from cmjax.data import downloads, published_sets


class Server:
  """Serves `files`, {name: bytes}, at `url`.

  Attributes:
    cut: how many bytes of an answer are sent before the connection is closed; None: all.
    cuts: how many answers are cut so, and then none.
    ranges: whether a part may be asked for.
    status: of all answers, where it is not None.
    asked: (name, Range header or None) of each request.
  """

  def __init__(self, files):
    self.files, self.asked = dict(files), []
    self.cut, self.cuts, self.ranges, self.status = None, 0, True, None
    self.begins_at = None  # of the Content-Range of a part, where that is to be wrong
    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
    self.url = f"http://127.0.0.1:{self._server.server_port}/"
    threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

  def close(self):
    self._server.shutdown()
    self._server.server_close()

  def _handler(self):
    of = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def log_message(self, *args):
        pass

      def do_GET(self):
        name, part = self.path.lstrip("/"), self.headers.get("Range")
        of.asked.append((name, part))
        content = of.files.get(name)
        if of.status or content is None:
          self.send_error(of.status or 404)
          return
        start = int(part.removeprefix("bytes=").rstrip("-")) if part and of.ranges else 0
        if start and start >= len(content):
          self.send_error(416)
          return
        self.send_response(206 if start else 200)
        if start:
          begins = start if of.begins_at is None else of.begins_at
          self.send_header("Content-Range", f"bytes {begins}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if of.cut is not None and of.cuts:
          of.cuts -= 1
          end = start + of.cut
        with contextlib.suppress(OSError):
          self.wfile.write(content[start:end])
        self.close_connection = True

    return Handler


@contextlib.contextmanager
def serving(files):
  """A `Server` of files."""
  server = Server(files)
  try:
    yield server
  finally:
    server.close()


def cifar10(num=40, seed=0):
  """The bytes of a cifar-10-binary.tar.gz with `num` images a batch; images and labels by split."""
  rng, packed, told = np.random.default_rng(seed), io.BytesIO(), {}
  with tarfile.open(fileobj=packed, mode="w:gz") as archive:
    for name in (
      "batches.meta.txt",
      *(f"data_batch_{i}.bin" for i in range(1, 6)),
      "test_batch.bin",
    ):
      labels = rng.integers(0, 10, num, np.uint8)
      planes = rng.integers(0, 256, (num, 3, 32, 32), np.uint8)
      records = np.concatenate([labels[:, None], planes.reshape(num, -1)], axis=1)
      add(archive, f"cifar-10-batches-bin/{name}", records.tobytes())
      if name.endswith(".bin"):
        split = told.setdefault("test" if "test" in name else "train", ([], []))
        split[0].append(planes.transpose(0, 2, 3, 1))
        split[1].append(labels)
  return packed.getvalue(), {k: tuple(map(np.concatenate, v)) for k, v in told.items()}


def add(archive, name, content):
  """A file in an open tar."""
  entry = tarfile.TarInfo(name)
  entry.size = len(content)
  archive.addfile(entry, io.BytesIO(content))


def idx(array):
  """The bytes of an .idx.gz."""
  head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
  return gzip.compress(head + array.astype(np.uint8).tobytes())


def file_of(name, content, *urls):
  """The description of a file with these bytes."""
  urls = tuple(f"{url}{name}" for url in urls)
  return downloads.File(name, urls, len(content), hashlib.sha256(content).hexdigest())


def publish(monkeypatch, name, server):
  """Has a set of `published_sets` come from a server, with the bytes that are there now."""
  files = [
    file_of(file.name, server.files[file.name], server.url) for file in published_sets.FILES[name]
  ]
  monkeypatch.setitem(published_sets.FILES, name, tuple(files))
