"""Arrays out of pickles, and nothing else.

A pickle is a program that may call anything. Here every name that it asks for is looked up in one short table of stand-ins that
only remember what they were given; arrays and sparse matrices are rebuilt afterwards from plain bytes, with every size checked.
Whatever else the file names (os.system, builtins.eval, a torch storage …) either ends the reading or, for the few harmless
leftovers of known files, becomes `Opaque`. No class of numpy, scipy, chumpy or torch is constructed by the unpickler.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from render.files import InputError

LARGEST = 2**31  # bytes; the largest of these models is a quarter of it
DENSE = 10**8  # entries of a sparse matrix made dense


class _Sealed(type):
    """Classes whose attributes a pickle cannot change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a pickle tried to change a class")


class _StandIn(metaclass=_Sealed):
    """Remembers how it was made; knows nothing else."""

    def __new__(cls, *args: Any, **_: Any) -> Any:
        self = object.__new__(cls)
        self.args, self.state = args, None
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        """Arguments are kept by __new__."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Opaque(_StandIn):
    """Something that a known file carries and nobody needs (a torch tensor, a hook table)."""


class _Array(_StandIn):
    """numpy.ndarray, with the state (version, shape, dtype, fortran order, bytes or list)."""


class _FromBuffer(_StandIn):
    """numpy._frombuffer (buffer, dtype, shape, order)."""


class _Scalar(_StandIn):
    """numpy scalar (dtype, bytes)."""


class _DType(_StandIn):
    """numpy.dtype ('f8', align, copy), with the state (version, '<', …)."""


class _Sparse(_StandIn):
    """A compressed sparse matrix, with a dict as its state."""


class _SparseRows(_Sparse):
    """The same, compressed by rows."""


class _Chumpy(_StandIn):
    """chumpy.ch.Ch: its value is the entry 'x' of its state."""


class _Encode(_StandIn):
    """_codecs.encode (text, 'latin1'): how Python 3 pickles bytes under protocol 2."""


class _Bytes(_StandIn):
    """bytes(): how Python 3 pickles empty bytes under old protocols."""


class _Class(_StandIn):
    """A class named as an argument of a reconstructor."""


class _Reconstruct(_StandIn):
    """copyreg._reconstructor (class, object, None) → an instance of the class's stand-in."""

    def __new__(cls, *args: Any, **_: Any) -> Any:
        if not args or not isinstance(args[0], _Sealed):
            raise pickle.UnpicklingError("an object of an unknown class")
        return args[0].__new__(args[0])


def _known(module: str, name: str) -> type | None:
    """The stand-in of a name, None when the name has none."""
    module = {"copy_reg": "copyreg", "__builtin__": "builtins"}.get(module, module).replace("numpy._core", "numpy.core")
    if module.startswith("scipy.sparse") and name in ("csc_matrix", "csr_matrix", "csc_array", "csr_array"):
        return _SparseRows if name.startswith("csr") else _Sparse
    if module in ("chumpy.ch", "chumpy") and name == "Ch":
        return _Chumpy
    return {
        ("numpy.core.multiarray", "_reconstruct"): _Array, ("numpy", "ndarray"): _Class, ("numpy", "dtype"): _DType,
        ("numpy.core.multiarray", "scalar"): _Scalar, ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
        ("_codecs", "encode"): _Encode, ("copyreg", "_reconstructor"): _Reconstruct, ("builtins", "object"): _Class, ("builtins", "bytes"): _Bytes,
        ("torch._utils", "_rebuild_tensor_v2"): Opaque, ("torch.storage", "_load_from_bytes"): Opaque,
        ("collections", "OrderedDict"): Opaque,
    }.get((module, name))


class _Restricted(pickle._Unpickler):  # type: ignore[name-defined]
    """The pure Python unpickler: its memo is a dict, so that no index in the file can make it allocate."""

    def find_class(self, module: str, name: str) -> Any:
        """Only stand-ins. Raises UnpicklingError for every other name."""
        found = _known(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays and sparse matrices are allowed")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Never."""
        raise pickle.UnpicklingError("it refers to things outside itself")

    def get_extension(self, code: int) -> None:
        """Never."""
        raise pickle.UnpicklingError("it uses registered extensions")


def read_pickle(path: Path) -> Any:
    """The content of a pickle: dicts, lists, tuples, text, numbers, arrays; sparse matrices as dense arrays, chumpy's as their value.

    Raises InputError when the file is missing, damaged, or asks for anything else. Nothing in it is executed.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than any known face model; give another file")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give another file") from None
    return _load(data, path)


def _load(data: bytes, path: Path) -> Any:
    if not data:
        raise InputError(f"{path} is empty (0 bytes); get the file from its publisher again")
    try:
        return _Resolver().value(_Restricted(io.BytesIO(data), encoding="latin1").load())
    except Exception as error:  # a hostile or damaged pickle makes the machine raise nearly anything
        if isinstance(error, (EOFError, struct.error)) or "exhausted" in str(error) or "truncated" in str(error):
            raise InputError(f"{path} is damaged: it ends too early; get the file from its publisher again") from None
        raise InputError(f"{path} is not a pickle that can be trusted: {str(error)[:150] or type(error).__name__}; get the file from its publisher again") from None


class _Resolver:
    """Turns stand-ins into values; shared parts are turned once, so that nested sharing cannot explode."""

    def __init__(self) -> None:
        self.done: dict[int, Any] = {}

    def value(self, x: Any, depth: int = 0) -> Any:
        """The value of anything a restricted pickle can hold."""
        if isinstance(x, (str, bytes, bytearray, int, float, complex, bool, type(None))):
            return x
        if depth > 50:
            raise ValueError("nested too deeply")
        if id(x) not in self.done:
            self.done[id(x)] = self._make(x, depth + 1)
        return self.done[id(x)]

    def _make(self, x: Any, depth: int) -> Any:
        if isinstance(x, dict):
            return {self.value(k, depth): self.value(v, depth) for k, v in x.items()}
        if isinstance(x, (list, tuple)):
            return type(x)(self.value(v, depth) for v in x)
        if isinstance(x, _Array):
            _, shape, dtype, fortran, data = x.state
            return self._array(data, dtype, shape, "F" if fortran else "C", depth)
        if isinstance(x, _FromBuffer):
            data, dtype, shape, order = x.args
            return self._array(data, dtype, shape, order, depth)
        if isinstance(x, _Scalar):
            return self._array(x.args[1], x.args[0], (), "C", depth)[()]
        if isinstance(x, _Encode):
            return x.args[0].encode("latin1")
        if isinstance(x, _Bytes) and not x.args:
            return b""
        if isinstance(x, _Sparse):
            return self._dense(self.value(x.state, depth), isinstance(x, _SparseRows))
        if isinstance(x, _Chumpy):
            if not isinstance(x.state, dict) or "x" not in x.state:
                raise ValueError("a chumpy expression without a value")
            return np.asarray(self.value(x.state["x"], depth))
        if isinstance(x, Opaque):
            return x
        raise ValueError(f"a {type(x).__name__.strip('_')} where data should be")

    def _array(self, data: Any, dtype: Any, shape: Any, order: str, depth: int) -> np.ndarray:
        if not isinstance(dtype, _DType) or not re.fullmatch(r"[biufSUO]\d+", code := str(dtype.args[0])):
            raise ValueError("an array of an unusual type")
        shape = tuple(int(n) for n in shape)
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if isinstance(data, list):
            if code[0] != "O" or len(data) != count:
                raise ValueError("an array of objects of the wrong size")
            out = np.empty(count, object)
            for i, item in enumerate(data):
                out[i] = self.value(item, depth)
            return out.reshape(shape, order=order)
        raw = self.value(data, depth)
        raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        sign = dtype.state[1] if dtype.state else "<"
        kind = np.dtype((sign if sign in "<>|=" else "<") + code)
        if kind.hasobject or min(shape, default=0) < 0 or len(raw) != count * kind.itemsize:
            raise ValueError("an array whose bytes do not fill its shape")
        return np.frombuffer(raw, kind).reshape(shape, order=order).astype(kind.newbyteorder("="))

    @staticmethod
    def _dense(state: dict[str, Any], by_rows: bool) -> np.ndarray:
        rows, columns = (int(n) for n in state.get("_shape", state.get("shape")))
        data, indices, starts = (np.asarray(state[n]) for n in ("data", "indices", "indptr"))
        major, minor = (rows, columns) if by_rows else (columns, rows)
        counts = np.diff(starts)
        bad = (rows < 0 or columns < 0 or rows * columns > DENSE or len(starts) != major + 1 or (counts < 0).any() or starts[0] != 0
               or counts.sum() != len(data) or len(indices) != len(data) or (len(indices) and (indices.min() < 0 or indices.max() >= minor)))
        if bad:
            raise ValueError("a sparse matrix that does not fit together")
        out = np.zeros((major, minor), data.dtype)
        np.add.at(out, (np.repeat(np.arange(major), counts), indices), data)
        return out if by_rows else out.T


def _read_npy(stream: io.BytesIO, path: Path) -> Any:
    start = stream.tell()
    version = np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream) if version == (1, 0) else np.lib.format.read_array_header_2_0(stream)
    if not dtype.hasobject:
        stream.seek(start)
        return np.load(stream, allow_pickle=False)
    value = _load(stream.read(), path)
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 and not shape else value


def read_npy(path: Path) -> Any:
    """The content of an .npy: an array, or what a pickled object holds (a dict, usually), read by the same rules as `read_pickle`.

    Raises InputError when the file is missing, damaged or hostile.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than any known face model; give another file")
        return _read_npy(io.BytesIO(path.read_bytes()), path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; put it there") from None
    except InputError:
        raise
    except Exception as error:  # numpy raises its own kinds on damaged headers
        raise InputError(f"{path} is not a readable .npy file ({error}); get it again") from None


def read_npz(path: Path) -> dict[str, Any]:
    """All members of an .npz, objects in them read by the same rules as `read_pickle`. Raises InputError as `read_npy` does."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise InputError(f"{path} unpacks to more than any known face model; give another file")
            return {m.removesuffix(".npy"): _read_npy(io.BytesIO(archive.read(m)), path) for m in archive.namelist() if m.endswith(".npy")}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; put it there") from None
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds
        raise InputError(f"{path} is not a readable .npz file ({error}); get it again") from None
