"""Object stores on the loopback: servers of others that speak for gs:// and s3://, and a wire.

  python tests/helpers/object_stores.py gs 8000      serves the bucket `bucket` until it is killed

Each server is a process of its own. Programs reach it over a wire, which can be cut and mended.
"""

import contextlib
import http.server
import importlib.util
import os
import pathlib
import select
import socket
import subprocess
import sys
import threading
import time

import fsspec
import pytest
from etils.epath import backend

from cmjax.base import place

ROOT = pathlib.Path(__file__).parents[2]
BUCKET = "bucket"
PACKAGES = {"gs": ("gcsfs", "gcp_storage_emulator"), "s3": ("s3fs", "moto")}


class Wire:
  """Passes what comes to its port on to another, until it is cut."""

  def __init__(self, target):
    self._target, self.port, self._open = target, free_port(), set()
    self.mend()

  def mend(self):
    self._listener = socket.create_server(("127.0.0.1", self.port))
    threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

  def cut(self):
    """Whoever calls is refused, and whoever is connected is cut off."""
    self._listener.shutdown(socket.SHUT_RDWR)
    self._listener.close()
    for connection in list(self._open):
      _shut(connection)

  def _accept(self, listener):
    with contextlib.suppress(OSError):
      while True:
        near, _ = listener.accept()
        threading.Thread(target=self._pass_on, args=(near,), daemon=True).start()

  def _pass_on(self, near):
    with contextlib.suppress(OSError), contextlib.ExitStack() as both:
      far = both.enter_context(socket.create_connection(("127.0.0.1", self._target)))
      both.enter_context(near)
      self._open |= {near, far}
      both.callback(lambda: self._open.difference_update({near, far}))
      other = {near: far, far: near}
      while True:
        for one in select.select([near, far], [], [])[0]:
          if not (data := one.recv(2**16)):
            return
          other[one].sendall(data)


class Server:
  """A store: `url` is its bucket, `environment` has programs find it, `wire` can be cut."""

  def __init__(self, scheme):
    port = free_port()
    command = [sys.executable, __file__, scheme, str(port)]
    self._process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert self._process.stdout is not None and self._process.stdout.readline() == "serving\n"
    self.wire, self.url = Wire(port), f"{scheme}://{BUCKET}"
    address = f"http://127.0.0.1:{self.wire.port}"
    self.environment = {
      "gs": {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_CLOUD_PROJECT": "test",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
      },
      "s3": {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
      },
    }[scheme]

  def close(self):
    self._process.kill()
    self._process.wait()
    self._process.stdout.close()


@contextlib.contextmanager
def served(scheme):
  """A store of this scheme, for this process and those that it starts; skips without packages."""
  for package in PACKAGES[scheme]:
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"{package} is not installed: pip install -e '.[stores]'")
  server, before = Server(scheme), dict(os.environ)
  os.environ.update(server.environment)
  _forget()
  try:
    yield server
  finally:
    os.environ.clear()
    os.environ.update(before)
    _forget()
    server.close()


def _forget():
  """The next use of a store in this process asks the environment where it is."""
  backend._FileSystemSpecBackend._get_filesystem.cache_clear()
  place._tried.cache_clear()
  for protocol in ("gs", "gcs", "s3"):
    with contextlib.suppress(ImportError):
      fsspec.get_filesystem_class(protocol).clear_instance_cache()


def free_port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def _shut(connection):
  with contextlib.suppress(OSError):
    connection.shutdown(socket.SHUT_RDWR)


def _as_google(server, objects):
  """Adds to the emulator what Google's store has: conditional writes, generations when read.

  TensorStore writes a manifest on the condition that it is still the one that was read, and gcsfs
  creates on the condition that there is none.
  """
  turn = threading.Lock()

  def generation(storage, bucket, name):
    with contextlib.suppress(objects.NotFound):
      return storage.get_file_obj(bucket, name)["generation"]
    return "0"

  def download(request, response, storage, *args, original=objects.download):
    bucket, name = request.params["bucket_name"], request.params["object_id"]
    response["x-goog-generation"] = generation(storage, bucket, name)
    original(request, response, storage)

  def conditional(upload):
    def uploading(request, response, storage):
      wanted = request.query.get("ifGenerationMatch")
      named = request.query.get("name") or [request.data["meta"]["name"]]
      with turn:
        if wanted and generation(storage, request.params["bucket_name"], named[0]) != wanted[0]:
          response.status = http.HTTPStatus.PRECONDITION_FAILED
          return None
        return upload(request, response, storage)

    return uploading

  for _, handlers in server.HANDLERS:
    handlers.update({m: download for m, f in handlers.items() if f is objects.download})
  objects.download = download
  objects._media_upload = conditional(objects._media_upload)
  objects._multipart_upload = conditional(objects._multipart_upload)


def _serve(scheme, port):
  if scheme == "gs":
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects

    _as_google(server, objects)
    # Several connections at once, as a store has: a client that keeps one open blocks no other.
    server.server.HTTPServer = http.server.ThreadingHTTPServer
    server.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET).start()
  else:
    import boto3
    from moto.server import ThreadedMotoServer

    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False).start()
    address = f"http://127.0.0.1:{port}"
    boto3.client("s3", "us-east-1", endpoint_url=address).create_bucket(Bucket=BUCKET)
  sys.stdout.write("serving\n")
  sys.stdout.flush()
  while True:
    time.sleep(3600)


if __name__ == "__main__":
  _serve(sys.argv[1], int(sys.argv[2]))
