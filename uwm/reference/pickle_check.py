"""What a pickle would do, told without doing it: the bounds that torch's restricted unpickler lacks.

`torch.load(weights_only=True)` runs nothing that it doesn't know, but what it knows can still be told to use all of
the memory or all of the time: storages larger than the file, tensors of 2^40 numbers that are one number repeated,
nested tuples as keys of a dict, whose hash takes for ever, one long string encoded a million times. This check reads
the opcodes with the standard library (`pickletools`), follows them with stand-ins instead of objects, and refuses
those. It also names the classes of other code, for which the reader has to put something.
"""

import math
import pickletools
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

MAX_OPCODES = 2_000_000
MAX_ENCODED_BYTES = 64 << 20
"""Bytes in all that a pickle's arrays may have."""
MAX_FOREIGN = 100
"""Classes of other code; torch walks their list at every object."""
MAX_NUMBERS = 1 << 48

STORAGES: Mapping[str, int] = {
    "torch.FloatStorage": 4,
    "torch.DoubleStorage": 8,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
}
"""Bytes of a number, by the storage's class."""
NUMPY = frozenset(
    {"numpy.ndarray", "numpy.dtype"}
    | {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")}
)
_TENSORS = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
_MAKERS = {"torch._utils._rebuild_parameter", "torch.Size", "torch.device", "collections.OrderedDict", "_codecs.encode"}
_CALLED = _TENSORS | _MAKERS | NUMPY - {"numpy.ndarray"}
_NAMES = _CALLED | NUMPY | {*STORAGES}
_OWN_MODULES = frozenset({"torch", "numpy", "__builtin__", "copy_reg", "commands", "cPickle", "UserDict"})
_DICTS = frozenset({"dict", "collections.OrderedDict"})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"})
_KEYS = (str, int, float, bytes, type(None))


class Refused(Exception):  # noqa: N818 - a verdict, not a mistake of the program
    """The pickle asks for something that data don't need, or is no whole pickle; says what in one line."""


@dataclass(frozen=True, eq=False)
class _Name:
    """A global that a pickle names."""

    path: str


@dataclass(frozen=True, eq=False)
class _Object:
    """What a call or a new instance leaves; a dict is one of the kind `dict`."""

    kind: str


@dataclass(frozen=True, eq=False)
class _Storage:
    """The numbers of a tensor, somewhere in the file."""

    count: int


class PickleCheck:
    """Follows one file's pickles and collects what they ask for.

    Attributes:
        storages: bytes of every storage that a tensor asked for, by key.
        foreign: dotted paths of the classes of other code.
    """

    def __init__(self) -> None:
        self.storages: dict[str, int] = {}
        self.foreign: set[str] = set()
        self._encoded = 0
        self._stack: list[object] = []
        self._marked: list[list[object]] = []
        self._memo: dict[int, object] = {}

    def check(self, file: BinaryIO) -> object:
        """Follow the pickle at the file's position, which is left behind it; returns the stand-in of its object.

        Raises:
            Refused: when it is cut short or asks for more than data.
        """
        self._stack, self._marked, self._memo = [], [], {}
        try:
            with warnings.catch_warnings(action="ignore"):  # pickletools warns of escapes in texts, refused or not
                for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                    if count >= MAX_OPCODES:
                        raise Refused(f"a pickle of more than {MAX_OPCODES} opcodes")
                    self._step(opcode.name, argument)
            if len(self._stack) != 1 or self._marked:
                raise Refused("no whole pickle: it ends with an unfinished object")
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise Refused(f"no whole pickle: {' '.join(str(error).split())[:120]}") from error
        return self._stack[0]

    def _step(self, name: str, argument: object) -> None:  # noqa: C901 - one line per opcode
        stack = self._stack
        match name:
            case "PROTO" if argument != 2:
                raise Refused(f"a pickle of protocol {argument}: torch reads protocol 2, which torch.save writes")
            case "PROTO" | "STOP":
                pass
            case "MARK":
                self._marked.append(stack)
                self._stack = []
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE":
                stack.append([] if name == "EMPTY_LIST" else () if name == "EMPTY_TUPLE" else _Object("dict"))
            case "TUPLE":
                self._tuple(self._unmark())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._tuple(self._pop(int(name[-1])))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[int(str(argument))] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[int(str(argument))])
            case "APPEND" | "APPENDS":
                self._append(self._pop(1) if name == "APPEND" else self._unmark())
            case "SETITEM" | "SETITEMS":
                self._set_items(self._pop(2) if name == "SETITEM" else self._unmark())
            case "GLOBAL":
                self._global(str(argument).replace(" ", "."))
            case "REDUCE":
                self._call(*self._pop(2))
            case "NEWOBJ":
                self._new(*self._pop(2))
            case "BUILD":
                self._build(*self._pop(1))
            case "BINPERSID":
                self._persistent(*self._pop(1))
            case _ if name in _CONSTANTS or name in _LITERALS:
                stack.append(_CONSTANTS.get(name, argument))
            case _:
                raise Refused(f"the opcode {name}{_about(argument, stack)}")

    def _pop(self, count: int) -> list[object]:
        if len(self._stack) < count:
            raise Refused("no whole pickle: its stack is too short")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _unmark(self) -> list[object]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _tuple(self, items: list[object]) -> None:
        self._stack.append(tuple(items))

    def _append(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise Refused(f"items for {_describe(target)}, which is no list")
        target.extend(items)

    def _set_items(self, items: list[object]) -> None:
        if not self._is_dict(self._stack[-1]) or len(items) % 2:
            raise Refused(f"items for {_describe(self._stack[-1])}, which is no dict")
        for key in items[::2]:
            if not isinstance(key, _KEYS):
                raise Refused(f"{_describe(key)} as the key of a dict")

    def _is_dict(self, value: object) -> bool:
        return isinstance(value, _Object) and (value.kind in _DICTS or value.kind in self.foreign)

    def _global(self, path: str) -> None:
        if path not in _NAMES:
            parts = path.split(".")
            own = parts[0] in _OWN_MODULES or parts[0] in sys.stdlib_module_names
            if own or len(parts) < 2 or not all(part.isidentifier() for part in parts):
                raise Refused(f"{_printable(path)}: a checkpoint has no use for it")
            self.foreign.add(path)
            if len(self.foreign) > MAX_FOREIGN:
                raise Refused(f"more than {MAX_FOREIGN} classes of other code")
        self._stack.append(_Name(path))

    def _call(self, function: object, arguments: object) -> None:
        if not isinstance(function, _Name) or function.path not in _CALLED or not isinstance(arguments, tuple):
            raise Refused(f"a call of {_describe(function)}")
        if function.path in _TENSORS:
            _check_tensor(*arguments)
        elif function.path == "collections.OrderedDict" and arguments:
            raise Refused("a call of collections.OrderedDict with arguments")
        elif function.path == "_codecs.encode":
            self._encode(*arguments)
        self._stack.append(_Object(function.path))

    def _encode(self, text: object = None, encoding: object = None) -> None:
        """Count the bytes of an array: protocol 2 writes them as an encoded text."""
        if not isinstance(text, str) or encoding != "latin1":
            raise Refused("a call of _codecs.encode for other than bytes")
        self._encoded += len(text)
        if self._encoded > MAX_ENCODED_BYTES:
            raise Refused(f"more than {MAX_ENCODED_BYTES} bytes of arrays")

    def _new(self, kind: object, arguments: object) -> None:
        if not isinstance(kind, _Name) or kind.path not in self.foreign or arguments != ():
            raise Refused(f"a new {_describe(kind)} with arguments")
        self._stack.append(_Object(kind.path))

    def _build(self, state: object) -> None:
        target = self._stack[-1]
        if not self._is_dict(target) and not (isinstance(target, _Object) and target.kind in NUMPY):
            raise Refused(f"a state for {_describe(target)}")
        if not isinstance(state, tuple) and not self._is_dict(state):
            raise Refused(f"{_describe(state)} as a state")

    def _persistent(self, reference: object) -> None:
        """A storage: ("storage", class, key, place, count), in the legacy format with a view, which is None."""
        if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
            raise Refused("a persistent id that is no storage")
        _, kind, key, _, count, *view = reference
        if not isinstance(kind, _Name) or kind.path not in STORAGES:
            raise Refused("a storage of an unknown type")
        if not isinstance(key, str) or not key.isdecimal() or view not in ([], [None]):
            raise Refused("a storage without key or size")
        if not isinstance(count, int) or not 0 <= count < MAX_NUMBERS:
            raise Refused("a storage without key or size")
        size = count * STORAGES[kind.path]
        if self.storages.setdefault(key, size) != size:
            raise Refused("one storage under two sizes")
        self._stack.append(_Storage(count))


def _check_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> None:
    """That a tensor lies inside its storage and has no more numbers than it, as a stride of 0 would give it."""
    if not isinstance(storage, _Storage):
        raise Refused("a tensor without storage")
    (start,), sizes, steps = _sizes((offset,)), _sizes(shape), _sizes(stride)
    count = math.prod(sizes)
    last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    if count and (last >= storage.count or count > storage.count):
        raise Refused(f"a tensor of {count} numbers that reaches beyond its storage of {storage.count}")


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 16:
        raise Refused("sizes that are no sizes")
    if not all(type(size) is int and 0 <= size < MAX_NUMBERS for size in value):
        raise Refused("sizes that are no sizes")
    return value


def _about(argument: object, stack: list[object]) -> str:
    """The global that a refused opcode is about, where there is one."""
    names = [item.path for item in stack if isinstance(item, _Name)]
    texts = [item for item in stack[-2:] if isinstance(item, str)]
    about = argument.replace(" ", ".") if isinstance(argument, str) else ".".join(names[-1:] or texts)
    return f" of {_printable(about)}" if about else ""


def _describe(value: object) -> str:
    """A value in a few words; never its content, which may be endless."""
    if isinstance(value, _Name | _Object):
        return _printable(value.path if isinstance(value, _Name) else value.kind)
    return f"a value of type {type(value).__name__}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:80])
