"""Files that mean harm, or are broken: none is executed, none costs much, each is named.

The payloads are real: a test below lets Python's own unpickler run them.
"""

import io
import json
import pathlib
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from typing import Any

import msgpack
import numpy as np
import pytest

from cmjax.program import convert
from helpers import foreign_files as ff
from helpers.foreign_files import Call, Global, New, Pid, Raw, dump

ROOT = pathlib.Path(__file__).parents[2]
SECONDS, MEMORY = 2.0, 512 * 2**20

# id -> (the file, given where its canary is; what the error must say).
CASES: dict[str, tuple[Any, str]] = {}


def case(name, says):
  """Adds the file that a function of the canary's path makes; bytes, or a value to pickle."""

  def add(make):
    CASES[name] = (make, says)
    return make

  return add


def as_file(name, canary):
  """A program as a checkpoint."""
  return in_a_checkpoint(PROGRAMS[name](canary), 2 if "protocol 2" in name else 4)


def in_a_checkpoint(value, protocol=4):
  return dump({"ema": value}, protocol)


def weights(n=9, seed=0):
  draw = np.random.default_rng(seed).normal
  return {f"enc.layer{i}.weight": draw(size=(4, 4)).astype("f4") for i in range(n)}


def edm_file(**kwargs):
  return ff.edm_pickle(weights(), "EDMPrecond", {}, **kwargs)


# --- programs in pickles --------------------------------------------------------------------------

OS = Call(Global("importlib", "import_module"), ("os",))
touch = lambda canary: f"touch {canary}"
code = lambda canary: f"open({str(canary)!r}, 'w').close()"
get_system = Call(Global("builtins", "getattr"), (OS, "system"))
PROGRAMS = {  # run by whoever unpickles them
  "os.system": lambda c: Call(Global("os", "system"), (touch(c),)),
  "posix.system": lambda c: Call(Global("posix", "system"), (touch(c),)),
  "eval": lambda c: Call(Global("builtins", "eval"), (code(c),)),
  "exec": lambda c: Call(Global("builtins", "exec"), (code(c),)),
  "exec of protocol 2": lambda c: Call(Global("__builtin__", "exec"), (code(c),)),
  "getattr": lambda c: Call(get_system, (touch(c),)),
  "__import__": lambda c: Call(
    Call(
      Global("builtins", "getattr"), (Call(Global("builtins", "__import__"), ("os",)), "system")
    ),
    (touch(c),),
  ),
  "subprocess": lambda c: Call(Global("subprocess", "call"), (["touch", str(c)],)),
  "open": lambda c: Call(Global("builtins", "open"), (str(c), "w")),
  "functools.partial": lambda c: Call(
    Call(Global("functools", "partial"), (Global("os", "system"), touch(c))), ()
  ),
  "operator.attrgetter": lambda c: Call(
    Call(Call(Global("operator", "attrgetter"), ("system",)), (OS,)), (touch(c),)
  ),
  "operator.methodcaller": lambda c: Call(
    Call(Global("operator", "methodcaller"), ("system", touch(c))), (OS,)
  ),
  "map": lambda c: Call(
    Global("builtins", "list"), (Call(Global("builtins", "map"), (get_system, [touch(c)])),)
  ),
  "pickle.loads": lambda c: Call(
    Global("pickle", "loads"), (dump(Call(Global("os", "system"), (touch(c),))),)
  ),
  "a dotted name": lambda c: Call(Global("tempfile", "_os.system"), (touch(c),)),
  "INST": lambda c: Raw(b"(" + f"S'{touch(c)}'\nios\nsystem\n".encode()),
  "OBJ": lambda c: Raw(b"(csubprocess\nPopen\n" + dump(["touch", str(c)], 2)[2:-1] + b"o"),
}
for name in PROGRAMS:
  says = {"INST": "opcode (STRING|INST)", "OBJ": "subprocess.Popen"}.get(name, "it names '")
  CASES[f"program: {name}"] = (lambda c, name=name: as_file(name, c), says)

case("program in a torch zip", "it names 'os.system'")(
  lambda c: ff.torch_zip({}, {"ema": PROGRAMS["os.system"](c)})
)
case("program in a legacy torch file", "it names 'os.system'")(
  lambda c: ff.legacy({"ema": PROGRAMS["os.system"](c)}, {})
)
case("program in a stream inside a pickle", "it names 'os.system'")(
  lambda c: in_a_checkpoint(
    Call(Global("torch.storage", "_load_from_bytes"), (ff.legacy(PROGRAMS["os.system"](c), {}),))
  )
)
case("torch.load", "it names 'torch.serialization.load'")(
  lambda c: in_a_checkpoint(Call(Global("torch.serialization", "load"), ("x",)))
)
case("numpy.load", "it names 'numpy.load'")(
  lambda c: in_a_checkpoint(Call(Global("numpy", "load"), ("x", None, True)))
)
case("numpy's runstring", "it names 'numpy.testing")(
  lambda c: in_a_checkpoint(Call(Global("numpy.testing._private.utils", "runstring"), ("x", {})))
)
case("a name that is no string", "it names")(lambda c: in_a_checkpoint(Raw(b"K\x01K\x02\x93")))
case("a name with escapes", r"it names 'os\\x1b\[31m")(
  lambda c: in_a_checkpoint(Global("os\x1b[31m\x00", "x" * 100_000))
)
case("an allowed name with a space", "it names 'collections.OrderedDict '")(
  lambda c: in_a_checkpoint(Call(Global("collections", "OrderedDict "), ()))
)
case("a class of an allowed module", "it names 'torch.nn.modules.module.Module'")(
  lambda c: in_a_checkpoint(New(Global("torch.nn.modules.module", "Module")))
)
case("NEWOBJ of a foreign class", "it names 'subprocess.Popen'")(
  lambda c: in_a_checkpoint(New(Global("subprocess", "Popen")))
)
case("NEWOBJ of a function", "it makes an object of 'torch._utils._rebuild_parameter'")(
  lambda c: in_a_checkpoint(New(Global("torch._utils", "_rebuild_parameter")))
)
case("NEWOBJ_EX with keywords", "it makes an object of 'collections.OrderedDict'")(
  lambda c: in_a_checkpoint(
    Raw(
      dump(Global("collections", "OrderedDict"))[11:-1] + b")" + dump({"a": 1}, 2)[2:-1] + b"\x92"
    )
  )
)
case("copyreg._reconstructor of a foreign class", "_reconstructor of 'builtins.object'")(
  lambda c: in_a_checkpoint(
    Call(Global("copyreg", "_reconstructor"), (Global("builtins", "object"), 1, None))
  )
)
case("a call of a constant", "it calls 'torch.FloatStorage'")(
  lambda c: in_a_checkpoint(Call(Global("torch", "FloatStorage"), (4,)))
)
case("a call of a string", "it calls 'str'")(lambda c: in_a_checkpoint(Call("os.system", ("x",))))
case("a call without a tuple", "for arguments")(
  lambda c: in_a_checkpoint(Call(Global("collections", "OrderedDict"), [1]))
)
case("a call with too many arguments", "calls torch._utils._rebuild_parameter wrongly")(
  lambda c: in_a_checkpoint(Call(Global("torch._utils", "_rebuild_parameter"), tuple(range(9))))
)
case("BUILD on a class", "it sets attributes of Global")(
  lambda c: in_a_checkpoint(
    Raw(dump(Global("collections", "OrderedDict"))[11:-1] + dump({"a": 1}, 2)[2:-1] + b"b")
  )
)
case("BUILD on a dict", "it sets attributes of dict")(
  lambda c: in_a_checkpoint(Raw(b"}" + dump({"__class__": 1}, 2)[2:-1] + b"b"))
)
case("BUILD on a tensor", "it sets attributes of Tensor")(
  lambda c: in_a_checkpoint(
    ff.tensor(ff.loaded(np.ones(4, "f4")), (4,))._replace(state={"__class__": 1})
  )
)
case("APPEND to a dict", "it appends to dict")(lambda c: in_a_checkpoint(Raw(b"}Na")))
case("SETITEM of a list", r"it sets items of \[\]")(lambda c: in_a_checkpoint(Raw(b"]NNs")))
case("EXT1", "opcode EXT1")(lambda c: in_a_checkpoint(Raw(b"\x82\x01")))
case("EXT4", "opcode EXT4")(lambda c: in_a_checkpoint(Raw(b"\x84\x01\x00\x00\x00")))
case("PERSID", "opcode PERSID")(lambda c: in_a_checkpoint(Raw(b"Pos.system\n")))
case("BINPERSID in a plain pickle", "persistent id")(lambda c: in_a_checkpoint(Pid("x")))
case("BINPERSID that is no storage", "the persistent id 'os.system'")(
  lambda c: ff.torch_zip({}, {"ema": Pid("os.system")})
)
case("a stream inside a stream", "another one inside")(
  lambda c: in_a_checkpoint(
    Call(Global("torch.storage", "_load_from_bytes"), (ff.legacy(ff.loaded(np.ones(4, "f4")), {}),))
  )
)
case("a stream of no storage", "holds dict, not a storage")(
  lambda c: in_a_checkpoint(
    Call(Global("torch.storage", "_load_from_bytes"), (ff.legacy({"a": 1}, {}),))
  )
)

# --- bombs ----------------------------------------------------------------------------------------


def laughs(start, wrap, times=60):
  """A thing of two of a thing of two of ...: 2^60 at the bottom, in 60 lines."""
  body = start + b"".join(b"\x94h" + bytes([i]) + wrap for i in range(times))
  return Raw(body)


case("billion laughs of lists", "no network in it")(
  lambda c: in_a_checkpoint(laughs(b"]", b"\x86"))
)
case("billion laughs of tuples", "no network")(lambda c: in_a_checkpoint(laughs(b")", b"\x86")))
case("billion laughs as a key", r"a key is \(tuple, tuple\)")(
  lambda c: dump(Raw(b"}" + laughs(b")", b"\x86").code + b"Ns"))
)
case("billion laughs in a set", r"a key is \(tuple, tuple\)")(
  lambda c: in_a_checkpoint(Raw(b"\x8f(" + laughs(b")", b"\x86").code + b"\x90"))
)
case("billion laughs as a shape", "a tensor's shape")(
  lambda c: in_a_checkpoint(
    ff.tensor(ff.loaded(np.ones(4, "f4")), ())._replace(
      args=(ff.loaded(np.ones(4, "f4")), 0, laughs(b")", b"\x86"), (1,))
    )
  )
)
case("nan as a key", "a key is nan")(lambda c: in_a_checkpoint({float("nan"): 1}))
case("a memo index of 2^31", "remembers an object under number 2147483647")(
  lambda c: in_a_checkpoint(Raw(b"Nr\xff\xff\xff\x7f"))
)
case("an unknown memo index", "recalls object 7")(lambda c: in_a_checkpoint(Raw(b"h\x07")))
case("bytes longer than the file", "expected 4611686018427387904 bytes")(
  lambda c: in_a_checkpoint(Raw(b"\x8e" + struct.pack("<Q", 2**62)))
)
case("a text longer than the file", "expected 1152921504606846976 bytes")(
  lambda c: in_a_checkpoint(Raw(b"\x8d" + struct.pack("<Q", 2**60)))
)
case("a number longer than the file", "not enough data")(
  lambda c: in_a_checkpoint(Raw(b"\x8b\xff\xff\xff\x7f"))
)
case("a number of a megabyte", "more than 128 bits")(
  lambda c: in_a_checkpoint(Raw(b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20))
)
case("a frame longer than the file", "a frame is")(
  lambda c: b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N."
)
case("lists 10^5 deep", "it is nested too deep")(
  lambda c: in_a_checkpoint(Raw(b"]" * 10**5 + b"a" * (10**5 - 1)))
)
case("tuples 10^5 deep", "nested more than 200 deep")(
  lambda c: in_a_checkpoint(Raw(b")" + b"\x85" * 10**5))
)
case("a million marks", "nested too deep")(lambda c: in_a_checkpoint(Raw(b"(" * 10**6)))
case("two million opcodes", "more than 500000 steps")(
  lambda c: in_a_checkpoint(Raw(b"N0" * 10**6 + b"N"))
)
case("text encoded a thousand times", "expands to more than 4 times")(
  lambda c: in_a_checkpoint(
    Raw(
      b"(X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x000c_codecs\nencode\nq\x010("
      + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 1000 + b"ee"
    )
  )
)  # fmt: skip
case("a set of one list a thousand times", "steps to read")(
  lambda c: in_a_checkpoint(
    Raw(b"](" + b"N" * 10**4 + b"eq\x00" + b"cbuiltins\nset\nq\x010" + b"h\x01h\x00\x85R0" * 1000)
  )
)
case("one storage in 500 tensors", "bytes of tensors, in a file of")(
  lambda c: ff.torch_zip(
    {"a": np.ones(10**5, "f4")},
    {f"w{i}": ff.tensor(ff.storage_id(np.ones(10**5, "f4"), "0"), (10**5,)) for i in range(500)},
  )
)
case("a number that is repeated by stride 0", "its storage has 1")(
  lambda c: in_a_checkpoint(ff.tensor(ff.loaded(np.ones(1, "f4")), (10**6, 10**6), stride=(0, 0)))
)


def module_of(inside):
  """A persistent module around opcodes that leave the dict of its `_modules`."""
  state = {"_parameters": {}, "_buffers": {}, "_modules": inside}
  return ff.persistent("EDMPrecond", state, "raise SystemExit")


def modules(count=30):
  """A module that is twice in a module that is twice in ...; a memo keeps each."""
  make = lambda inside: dump(module_of(inside))[11:-1]
  twice = lambda i: Raw(b"}(X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%cu" % (i, i))
  return make({}) + b"".join(b"q%c0" % i + make(twice(i)) for i in range(count))


case("modules in modules, 2^30 of them", "modules are nested")(
  lambda c: in_a_checkpoint(Raw(modules()))
)

# --- broken ---------------------------------------------------------------------------------------

for what, make in {
  "pickle": edm_file,
  "zip": lambda: ff.torch_zip(weights()),
  "legacy file": lambda: ff.torch_legacy(weights()),
}.items():
  for share in (0.05, 0.5, 0.95, 0.999):
    CASES[f"{what}, {share:.1%} of it"] = (
      lambda c, make=make, share=share: make()[: int(len(make()) * share)],
      "pickle|zip|magic|its own length|bytes are left|empty stack",
    )
case("empty", "it is empty")(lambda c: b"")
case("text", "no known kind")(lambda c: b"Dear reader, these are no weights at all.\n" * 10)
case("noise", "no known kind")(lambda c: bytes([0xFE, *range(1, 200)]) * 10)
case("a web page", "it is a web page")(lambda c: b"\n<!DOCTYPE html><html>Sign in</html>")
case("a git-lfs pointer", "git lfs pull")(
  lambda c: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
)
case("a pickle of protocol 9 inside", "pickle protocol 9")(lambda c: b"\x80\x04\x80\x09N.")
case("a pickle without an end", "pickle exhausted")(lambda c: b"\x80\x04N")
case("a pickle of nothing", "no network in it")(lambda c: dump(None))
case("a list in place of a network", "no network in it")(lambda c: in_a_checkpoint([1, 2, 3]))
case("a pickle that ends too early", "empty stack")(lambda c: b"\x80\x04.")
case("a wrong magic number", "magic number 17, not")(
  lambda c: in_a_checkpoint(
    Call(Global("torch.storage", "_load_from_bytes"), (dump(17, 2) + dump(1001, 2),))
  )
)
case("a persistent object of another type", "no type 'class'")(
  lambda c: in_a_checkpoint(
    Call(Global("torch_utils.persistence", "_reconstruct_persistent_obj"), ({"type": "function"},))
  )
)
case("a key twice", "the key 'a' twice")(
  lambda c: in_a_checkpoint(Raw(b"}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu"))
)
case("a parameter and a buffer of one name", "two tensors are named 'w'")(
  lambda c: in_a_checkpoint(
    ff.persistent(
      "EDMPrecond",
      {
        "_parameters": {"w": ff.tensor(ff.loaded(np.ones(4, "f4")), (4,))},
        "_buffers": {"w": ff.tensor(ff.loaded(np.ones(4, "f4")), (4,))},
        "_modules": {},
      },
      "",
    )
  )
)
case("a name with an escape", r"a tensor is named 'w\\x1b\[2J'")(
  lambda c: ff.torch_legacy(weights() | {"w\x1b[2J": np.ones(4, "f4")})
)
case("a number in place of a tensor", "is a number|is 3, not a tensor")(
  lambda c: in_a_checkpoint(
    ff.persistent("EDMPrecond", {"_parameters": {"w": 3}, "_modules": {}}, "")
  )
)
case("a preconditioning that is not known", "VPPrecond.*knows: EDMPrecond")(
  lambda c: ff.edm_pickle(weights(), "VPPrecond", {})
)
case("another network's tensors", "no network of EDM")(lambda c: ff.torch_zip(weights()))

# --- tensors that lie -----------------------------------------------------------------------------


def lying(shape=(4,), offset=0, stride=None, array=None, protocol=4):
  array = np.ones(4, "f4") if array is None else array
  made = ff.tensor(ff.loaded(array), shape, offset, stride if stride else None)
  return in_a_checkpoint(made, protocol)


case("a shape of more than is there", "needs 5 numbers, its storage has 4")(lambda c: lying((5,)))
case("a shape of 2^80", "a tensor's shape")(lambda c: lying((2**40, 2**40)))
case("a shape of 2^100", "more than 20 digits")(lambda c: lying((2**100,)))
case("a negative shape", "sizes >= 0")(lambda c: lying((-1,)))
case("a shape of truths", "sizes >= 0")(lambda c: lying((True, 4)))
case("100 axes", "up to 16 sizes")(lambda c: lying((1,) * 100))
case("a negative stride", "one number >= 0 per axis")(lambda c: lying((4,), 3, (-1,)))
case("a stride beyond the end", "needs 3073 numbers")(lambda c: lying((4,), 0, (1024,)))
case("a stride that overflows", "one number >= 0")(lambda c: lying((4,), 0, (2**63,)))
case("a negative offset", "one number >= 0")(lambda c: lying((4,), -4))
case("an offset beyond the end", "needs 8 numbers")(lambda c: lying((4,), 4))
case("more strides than axes", "one number >= 0 per axis")(lambda c: lying((4,), 0, (1, 1)))
case("a storage of another length", "its own length says 9")(
  lambda c: in_a_checkpoint(ff.tensor(ff.loaded(np.ones(4, "f4"), numel=9), (4,)))
)
case("a storage of 2^62 numbers", "a storage '0' of")(
  lambda c: ff.torch_zip({}, {"w": ff.tensor(ff.storage_id(np.ones(4, "f4"), "0", 2**62), (4,))})
)
case("a storage shorter than it says", "1000 float32, but 16 bytes")(
  lambda c: ff.torch_zip(
    {"w": np.ones(4, "f4")}, {"w": ff.tensor(ff.storage_id(np.ones(4, "f4"), "0", 1000), (4,))}
  )
)
case("a storage that is not there", "storage '7' is not in the zip")(
  lambda c: ff.torch_zip({}, {"w": ff.tensor(ff.storage_id(np.ones(4, "f4"), "7"), (4,))})
)
case("a storage described twice", "described twice")(
  lambda c: ff.legacy(
    [ff.storage_id(np.ones(4, "f4"), "0"), ff.storage_id(np.ones(2, "f8"), "0")],
    {"0": np.ones(4, "f4")},
  )
)
case("a storage of an unknown type", "it names 'torch.QInt8Storage'")(
  lambda c: ff.torch_zip({}, {"w": ff.storage_id(np.ones(4, "f4"), "0", kind="QInt8Storage")})
)
case("a storage of a type that is none", "unknown type 'torch.float32'")(
  lambda c: ff.torch_zip({}, {"w": ff.storage_id(np.ones(4, "f4"), "0", kind="float32")})
)
case("an array of objects", "the dtype object")(
  lambda c: pickle.dumps({"w": np.array([1, "a"], dtype=object)})
)
case("an array of records", "the dtype |V8")(
  lambda c: pickle.dumps({"w": np.zeros(3, [("a", "f4"), ("b", "i4")])})
)
case("an array of another length", "needs 400 bytes, but has 16")(
  lambda c: dump(
    Call(
      Global("numpy._core.multiarray", "_reconstruct"),
      (Global("numpy", "ndarray"), (0,), b"b"),
      (1, (100,), Call(Global("numpy", "dtype"), ("f4", False, True)), False, b"a" * 16),
    )
  )
)

# --- zips -----------------------------------------------------------------------------------------


def patched(raw, old, new, count=1):
  assert old in raw and len(old) == len(new)
  return raw.replace(old, new, count)


case("a zip without data.pkl", "a zip with 0 data.pkl")(lambda c: ff.zip_of({"a/b": b"x"}))
case("a zip with two data.pkl", "a zip with 2 data.pkl")(
  lambda c: ff.zip_of({"a/data.pkl": b"x", "b/data.pkl": b"x"})
)
case("an .npz", "a zip with 0 data.pkl.*'w.npy'")(lambda c: npz())
case("a zip with a path above", "leaves its folder by '..'")(
  lambda c: ff.torch_zip({}, {}, **{"..__..__etc__passwd": b"x"})
)
case("a zip with an absolute path", "begins at the root")(
  lambda c: ff.zip_of({"/etc/data.pkl": dump({})})
)
case("a zip bomb", "a bomb")(
  lambda c: ff.zip_of({"a/data.pkl": b"\0" * 2**22}, zipfile.ZIP_DEFLATED)
)
case("a compressed zip", "compressed or encrypted")(
  lambda c: ff.zip_of(
    {"a/data.pkl": dump({}) + bytes(50), "a/x": np.random.default_rng(0).bytes(200)},
    zipfile.ZIP_DEFLATED,
  )
)
case("a zip that says it is larger", "they overlap")(
  lambda c: patched(
    ff.zip_of({"a/data.pkl": b"x" * 1000}), struct.pack("<II", 1000, 1000) + b"\x0a\0\0\0\0\0",
    struct.pack("<II", 10**9, 10**9) + b"\x0a\0\0\0\0\0",
  )
)  # fmt: skip
case("a zip with a damaged member", "checksum")(
  lambda c: patched(ff.torch_zip(weights()), weights()["enc.layer0.weight"].tobytes(), b"a" * 64)
)
case("a zip with an unknown byteorder", "its byteorder is 'middle'")(
  lambda c: ff.torch_zip(weights(), byteorder=b"middle")
)


def npz():
  buffer = io.BytesIO()
  np.savez(buffer, w=np.ones(4))
  return buffer.getvalue()


# --- safetensors and msgpack ----------------------------------------------------------------------


def safetensors_of(header, data=b"", length=None):
  raw = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape=(1,), start=0, end=4, dtype="F32"):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


for name, says, raw in (
  ("a header longer than the file", "at most", safetensors_of({"a": entry()}, length=10**6)),
  ("a header of 2^63 bytes", "at most", safetensors_of({"a": entry()}, length=2**63)),
  ("a header that is no JSON", "invalid JSON", safetensors_of(b"{not json", b"1234")),
  ("a header 10^5 deep", "recursion limit", safetensors_of(b'{"a":' * 10**5)),
  ("offsets that overlap", "invalid offset", safetensors_of(
    {"a": entry(), "b": entry(start=2, end=6)}, b"123456")),
  ("offsets beyond the end", "sound safetensors", safetensors_of({"a": entry(end=400)}, b"1234")),
  ("a dtype of another size", "invalid shape, data type", safetensors_of(
    {"a": entry(dtype="F64")}, b"1234")),
  ("an unknown dtype", "unknown variant", safetensors_of({"a": entry(dtype="F99")}, b"1234")),
  ("a shape that overflows", "overflow", safetensors_of({"a": entry((2**40, 2**40))}, b"1234")),
  ("a negative shape", "expected usize", safetensors_of({"a": entry((-1,))}, b"1234")),
  ("a name twice", "it has 'a' twice", safetensors_of(
    b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), b"1234")),
  ("nothing in it", "no network in it", safetensors_of({})),
):  # fmt: skip
  CASES[f"safetensors: {name}"] = (lambda c, raw=raw: raw, says)


def described(text=None, **net):
  """A file that says of itself that cmjax exported it, of such a network."""
  said = (
    json.dumps({"net": net | {"dtype": "float32"}, "sigma_data": 0.5}) if text is None else text
  )
  return safetensors_of({"__metadata__": {"cmjax": said}, "a": entry()}, b"1234")


MLP = dict(name="mlp", dim=2, width=8, depth=1)
for name, says, raw in (
  (
    "of a stranger's package",
    "is not loaded: to import nobodys_nets",
    described(name="nobodys_nets.mine:Net", dim=2),
  ),
  ("of Python's library", "of Python's own library", described(name="os:system", dim=2)),
  ("of what is not marked", "did not mark it", described(name="numpy:load", dim=2)),
  (
    "of 10^9 layers",
    "it says depth=1000000000, and has 1 tensors",
    described(**MLP | dict(depth=10**9)),
  ),
  ("of 2^40 channels", "it says width=1099511627776", described(**MLP | dict(width=2**40))),
  (
    "of 1000 levels",
    "it says channel_mult=",
    described(name="dit", dim=2, channel_mult=[1] * 1000),
  ),
  ("of text for a number", "must be a whole number", described(**MLP | dict(width="many"))),
  ("of a list for a number", "must be a whole number", described(**MLP | dict(width=[1, 2]))),
  ("of no width", "", described(**MLP | dict(width=0))),
  ("of less than no width", "", described(**MLP | dict(width=-8))),
  ("10^4 deep", "none of ours", described("[" * 10**4)),
  ("a number", "none of ours", described("3")),
  ("of no network", "none of ours", described('{"net": 3, "sigma_data": 1}')),
  ("of no std", "none of ours", described('{"net": {}, "sigma_data": "x"}')),
  ("without a name", "", described(dim=2)),
):
  CASES[f"metadata: {name}"] = (lambda c, raw=raw: raw, says)

packed = lambda shape, dtype, raw: msgpack.ExtType(1, msgpack.packb((shape, dtype, raw)))
for name, says, raw in (
  ("10^5 deep", "nested too deep", b"\x81\xa1a" * 10**5 + b"\xc0"),
  ("60 deep", "nested more than 50 deep", b"\x81\xa1a" * 60 + b"\xc0"),
  ("a list of 2^31", "exceeds max_array_len", b"\x81\xa1a\xdd\x7f\xff\xff\xff"),
  ("500 lists as long as the file", "exceeds max_array_len",
   b"\x81\xa1a" + b"\xdd\x00\x0f\x42\x40" * 500 + bytes(10**6)),
  ("a text of 2^31", "sound msgpack", b"\x81\xa1a\xdb\x7f\xff\xff\xff"),
  ("an unknown extension", "extension type 42", msgpack.packb({"a": msgpack.ExtType(42, b"x")})),
  ("arrays in arrays", "values are ExtType, not bytes", msgpack.packb(
    {"a": msgpack.ExtType(1, msgpack.packb(([1], "f4", packed([1], "f4", b"1234"))))})),
  ("a shape of more", "needs 400 bytes", msgpack.packb({"a": packed([100], "float32", b"1234")})),
  ("a dtype of objects", "the dtype object", msgpack.packb({"a": packed([1], "O", b"1" * 8)})),
  ("no weights", "no network", msgpack.packb({"params": {"a": packed([1], "float32", b"1234")}})),
):  # fmt: skip
  CASES[f"msgpack: {name}"] = (lambda c, raw=raw: raw, says)


# --- the tests ------------------------------------------------------------------------------------


CONVERT_ALL = """
import json, resource, signal, sys, time
from pathlib import Path
from cmjax.program import convert

page = resource.getpagesize()
now = int(open("/proc/self/statm").read().split()[0]) * page
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[2]), resource.RLIM_INFINITY))
signal.signal(signal.SIGALRM, lambda *args: (_ for _ in ()).throw(TimeoutError()))
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
  start = time.process_time()
  signal.alarm(20)
  try:
    error = ["none", convert.convert(path / "weights.pkl", path / "run")]
  except BaseException as caught:
    error = [type(caught).__name__, str(caught)]
  signal.alarm(0)
  found[path.name] = [*error, time.process_time() - start]
print(json.dumps(found))
"""


@pytest.fixture(scope="module", name="outcomes")
def _outcomes(tmp_path_factory):
  """name -> (folder, error, message, seconds): all in one process, without the checks of types.

  It may take `MEMORY` more than it has when it starts; whoever asks for more gets a MemoryError.
  """
  root = tmp_path_factory.mktemp("hostile")
  folders = {name: root / f"{i:03}" for i, name in enumerate(CASES)}
  for name, folder in folders.items():
    folder.mkdir()
    (folder / "weights.pkl").write_bytes(CASES[name][0](folder / "canary"))
  command = [sys.executable, "-c", CONVERT_ALL, str(root), str(MEMORY)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert not done.returncode, done.stderr
  found = json.loads(done.stdout)
  return {name: (folder, *found[folder.name]) for name, folder in folders.items()}


def test_there_are_many():
  assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_or_broken_file_is_one_line_that_names_the_offence(name, outcomes):
  folder, error, message, seconds = outcomes[name]
  assert error == "ValueError", message
  assert re.search(CASES[name][1], message), message
  assert message.startswith(f"{folder / 'weights.pkl'}: ") and len(message) < 700
  assert message.isprintable()  # one line, and no escapes for the terminal
  assert [path.name for path in folder.iterdir()] == ["weights.pkl"]  # no canary, no run
  assert seconds < SECONDS


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_would_run_if_it_were_unpickled(name, tmp_path):
  canary = tmp_path / "canary"
  found = pickle.loads(as_file(name, canary))["ema"]
  if isinstance(found, subprocess.Popen):
    found.wait()
  if isinstance(found, io.IOBase):
    found.close()
  assert canary.exists()


def test_the_source_text_of_a_sound_file_is_not_run(tmp_path):
  canary, path = tmp_path / "canary", tmp_path / "edm.pkl"
  path.write_bytes(ff.edm_pickle(weights(), "EDMPrecond", {}, source=code(canary)))
  with pytest.raises(ValueError, match="no network of EDM"):
    convert.convert(path, tmp_path / "run")
  assert not canary.exists()


@pytest.mark.parametrize("path", ["", "nowhere.pkl"])
def test_what_is_no_file_is_named(path, tmp_path):
  with pytest.raises(ValueError, match="is a folder|does not exist"):
    convert.convert(tmp_path / path, tmp_path / "run")
