"""How much a file may ask for before it gets it: each limit by its name.

A file of a few bytes can say that it holds terabytes. What it says is compared with these limits
before memory is taken for it. They are far above what sound files of cmjax's kinds need. Whoever
knows a file to be sound raises one: --limits=json_bytes=1e9 on the command line, or `allow` here.
"""

from collections.abc import Mapping

from cmjax.base.printable import shown

DEFAULTS = {
  "json_bytes": 2**27,  # of a file of JSON; ImageNet's dataset.json has 4e7
  "json_values": 2**23,  # in it; ImageNet's has 4e6
  "json_depth": 64,  # objects and lists in each other
  "zip_entries": 2**21,  # files in an archive; ImageNet has 1.3e6
  "zip_ratio": 200,  # bytes that one packed byte may become, of a file above `FREE`
  "zip_member_bytes": 2**28,  # of one picture in an archive, or of its dataset.json
  "parquet_rows_per_kb": 32,  # a picture of 32 bytes is smaller than any
  "parquet_page_bytes": 2**28,  # of a page of a column, which is unpacked as one
  "classes": 2**20,  # that labels may speak of
  "record_bytes": 2**28,  # of one example of a prepared set
  "safetensors_header_bytes": 10_000_000,  # that of a network of a thousand tensors has 1e5
  "pickle_steps": 500_000,  # opcodes and copied elements; a network of 850 tensors takes 1.5e5
}
# What may always be unpacked: small files of few colours are packed well.
FREE = 2**26
_raised: dict[str, int] = {}


def get(name: str) -> int:
  """The limit of that name, as it was raised if it was."""
  return _raised.get(name, DEFAULTS[name])


def allow(limits: Mapping[str, int | float]) -> None:
  """Sets limits, for this process and the workers that it starts.

  Raises:
    ValueError: there is no limit of a name, or a value is no whole number from 1 up.
  """
  for name, value in limits.items():
    if name not in DEFAULTS:
      raise ValueError(f"Unknown limit {name!r}. Choose from: {', '.join(sorted(DEFAULTS))}.")
    if not 1 <= value < 2**62 or value != int(value):
      raise ValueError(f"The limit {name}={value} must be a whole number from 1 up.")
  _raised.update({name: int(value) for name, value in limits.items()})


def raised() -> dict[str, int]:
  """The limits that were set, for a process that is started: `allow` takes them there."""
  return dict(_raised)


def parse(text: str) -> dict[str, int | float]:
  """The limits of a flag: "json_bytes=1e9,classes=2000000".

  >>> parse("json_bytes=1e9,classes=5")
  {'json_bytes': 1000000000.0, 'classes': 5.0}

  Raises:
    ValueError: it is of another form.
  """
  found = {}
  for part in filter(None, text.split(",")):
    name, _, value = part.partition("=")
    try:
      found[name.strip()] = float(value)
    except ValueError:
      raise ValueError(
        f"--limits={text!r}: {part!r} is not name=number, such as json_bytes=1e9."
      ) from None
  return found


def check_ratio(packed: int, unpacked: int, what: str) -> None:
  """Raises ValueError where packed bytes become far more than they are; small files may.

  Args:
    packed: bytes.
    unpacked: bytes that they become.
    what: of both, as the beginning of the message: "it would unpack 9 bytes to 90".
  """
  if unpacked > FREE:
    check("zip_ratio", unpacked // max(1, packed), what)


def check(name: str, amount: int, what: str) -> None:
  """Raises if a file asks for more than the limit of that name.

  Args:
    name: of the limit.
    amount: that the file asks for.
    what: it asks for, as the beginning of the message: "it says that it has 5 classes".

  Raises:
    ValueError: with the limit, and how to raise it.
  """
  if amount > get(name):
    raise ValueError(
      f"{what}: {shown(amount)} is above the limit {name}={get(name)}. If you know the file to be "
      f"sound, raise it: --limits={name}=NUMBER, or cmjax.base.limits.allow."
    )
