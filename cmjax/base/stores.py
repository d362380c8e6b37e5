"""Object stores: gs:// and s3://, which `etils.epath` reads and writes through fsspec.

An object is put whole or not at all, and is listed at once. There are no folders: a name may have
slashes, no folder can be renamed, and nothing can be appended to. A connection that is lost is
waited for, `PATIENCE` seconds at most, and one line says so.
"""

import asyncio
import datetime
import errno
import functools
import importlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import fsspec
import fsspec.config
from etils.epath import gpath

logger = logging.getLogger("cmjax")
PATIENCE = 600  # seconds without a connection, after which a request fails
LONGEST_PAUSE = 15.0  # seconds between two tries
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}


def is_remote(path: Any) -> bool:
  """Whether a path is in an object store."""
  return "://" in os.fspath(path)


@functools.cache
def serve(scheme: str) -> None:
  """Makes `epath.Path` read and write the URLs of a scheme, each time afresh and with patience.

  Raises:
    ValueError: the package is not installed.
  """
  package = PACKAGES[scheme]
  try:
    importlib.import_module(package)
  except ImportError as error:
    raise ValueError(
      f"{scheme}:// is read and written with {package}, which cannot be imported ({error}). "
      "Install it: pip install 'cmjax[stores]', or mount the bucket and give the folder."
    ) from error
  # TensorFlow, where it is installed, would be taken instead: it takes seconds to import.
  gpath._is_tf_installed = lambda: False  # pyright: ignore[reportPrivateImportUsage]
  protocols, system = {"gs": (("gs", "gcs"), _patient_gcs), "s3": (("s3",), _patient_s3)}[scheme]
  for protocol in protocols:
    # What another process has written is to be seen.
    fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    fsspec.register_implementation(protocol, system(), clobber=True)


def system(path: Any) -> tuple[Any, str]:
  """The fsspec file system that a URL is in, and its name there."""
  url = os.fspath(path)
  scheme = url.partition("://")[0]
  serve(scheme)
  # With the options of epath, so that there is one with its connections.
  options = {"finalize_on_close": True} if scheme == "gs" else {}
  found = fsspec.filesystem({"gs": "gcs"}.get(scheme, scheme), **options)
  return found, found._strip_protocol(url)


def files(folder: Any) -> dict[str, int]:
  """{name: bytes} of all files below a folder of a disk or of a store, in order."""
  if is_remote(folder):
    store, name = system(folder)
    found = store.find(name, detail=True)
    # A placeholder that other programs make for a folder ends in a slash.
    sizes = {key[len(name) + 1 :]: info["size"] for key, info in found.items()}
    return {key: sizes[key] for key in sorted(sizes) if key and not key.endswith("/")}
  sizes = {}
  for top, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(top, name)
      if os.path.isfile(path):
        sizes[os.path.relpath(path, folder).replace(os.sep, "/")] = os.path.getsize(path)
  return dict(sorted(sizes.items()))


def size(path: Any) -> int:
  """The bytes of a file of a disk or of a store."""
  if is_remote(path):
    store, name = system(path)
    return store.size(name)
  return os.path.getsize(path)


def has_bucket(path: Any) -> bool:
  """Whether the bucket of a URL is there, as far as one may ask."""
  store, name = system(path)
  return store.exists(name.partition("/")[0])


def put(file: str, path: Any) -> None:
  """A file of a disk as an object, in the place of the one that is there."""
  store, name = system(path)
  store.put_file(file, name)


def create(path: Any, content: bytes) -> None:
  """An object that was not there.

  Raises:
    FileExistsError: it is there. Not every store looks: see `place.Capabilities`.
  """
  store, name = system(path)
  try:
    store.pipe_file(name, content, mode="create")
  except OSError as error:
    if "precondition" in str(error).lower() and not isinstance(error, FileExistsError):
      raise FileExistsError(os.fspath(path)) from error
    raise


def age(path: Any, now: Any) -> float:
  """Seconds from when an object was written to when another, `now`, was, by the store's clock."""
  (store, old), (_, new) = system(path), system(now)
  difference: datetime.timedelta = store.modified(new) - store.modified(old)
  return difference.total_seconds()


def copy_folder(source: Any, target: Any) -> None:
  """Copies the objects of a folder, within the store."""
  store, _ = system(source)
  for name in files(source):
    store.cp_file(system(source / name)[1], system(target / name)[1])


async def _patiently(
  request: Callable[[], Awaitable[Any]], lost: Callable[[Any], bool], refused: Callable[[Any], bool]
) -> Any:
  """The answer to a request, which is repeated while the connection is lost.

  Raises:
    OSError: there is no connection for long, or the credentials are not taken.
  """
  began, pause, tries = time.monotonic(), 0.5, 0
  while True:
    try:
      answer = await request()
    except Exception as error:
      if refused(error):
        said = f"the credentials here do not open this bucket: {_short(error)}"
        raise PermissionError(errno.EACCES, said) from error
      if not lost(error):
        raise
      if time.monotonic() - began + pause > PATIENCE:
        said = f"the object store has not answered for {PATIENCE} s: {_short(error)}"
        raise OSError(errno.EIO, said) from error
      tries += 1
      if tries == 3:
        _say_lost(error)
      await asyncio.sleep(pause)
      pause = min(2 * pause, LONGEST_PAUSE)
      continue
    _say_back()
    return answer


_lost_since: list[float] = []  # one entry while the connection is known to be lost


def _say_lost(error: Exception) -> None:
  if not _lost_since:
    _lost_since.append(time.monotonic())
    logger.warning(
      "The object store does not answer (%s). Waiting for it, %d s at most.",
      *(_short(error), PATIENCE),
    )


def _short(error: Exception) -> str:
  return " ".join(str(error).split())[:200] or type(error).__name__


def _say_back() -> None:
  if _lost_since:
    logger.info("The object store answers again, after %.0f s.", time.monotonic() - _lost_since[0])
    _lost_since.clear()


def _patient_gcs() -> type:
  import aiohttp  # pyright: ignore[reportMissingImports]
  import gcsfs  # pyright: ignore[reportMissingImports]
  from gcsfs import retry  # pyright: ignore[reportMissingImports]
  from google.auth import exceptions  # pyright: ignore[reportMissingImports]

  def lost(error: Any) -> bool:
    return retry.is_retriable(error) or isinstance(error, (aiohttp.ClientError, TimeoutError))

  def refused(error: Any) -> bool:
    unknown = isinstance(error, retry.HttpError) and str(error.code) == "401"
    return (unknown or isinstance(error, exceptions.GoogleAuthError)) and not lost(error)

  class PatientGCS(gcsfs.GCSFileSystem):
    """Google's object store."""

    async def _request(self, *args: Any, **options: Any) -> Any:
      once = gcsfs.core.GCSFileSystem._request.__wrapped__  # without the library's own tries
      return await _patiently(lambda: once(self, *args, **options), lost, refused)

  return PatientGCS


def _patient_s3() -> type:
  import s3fs  # pyright: ignore[reportMissingImports]
  from botocore import exceptions  # pyright: ignore[reportMissingImports]

  kinds = (exceptions.ConnectionError, exceptions.HTTPClientError, TimeoutError)

  def lost(error: Any) -> bool:
    return isinstance(error, (*kinds, ConnectionError)) or "SlowDown" in str(error)

  def refused(error: Any) -> bool:
    return isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError))

  class PatientS3(s3fs.S3FileSystem):
    """Amazon's object store, and what speaks its language."""

    async def _call_s3(self, *args: Any, **options: Any) -> Any:
      return await _patiently(
        lambda: super(PatientS3, self)._call_s3(*args, **options), lost, refused
      )

  return PatientS3


def endpoint(path: Any) -> str:
  """The address of an s3:// URL's store, where it is not Amazon's; "" for that."""
  store, _ = system(path)
  url = store.connect().meta.endpoint_url
  return "" if ".amazonaws.com" in url else url
