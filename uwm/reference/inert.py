"""Pickles as plain data: a stack machine that imports nothing and calls nothing that a file names.

A pickle is a program. Python's own unpickler runs it: it imports what it names and calls it. This machine knows
the opcodes that describe data, a table of names that the reader of a format gives a meaning to, and instances of
classes that it has never heard of, whose state it keeps as data. Every other name or opcode is refused.

The standard library parses the opcodes (`pickletools.genops`), so nothing here reads bytes.
"""

import pickletools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, runtime_checkable

MAX_OPCODES = 2_000_000
MAX_STRING = 64 << 20
"""Bytes of a single string; the files of a format bound the rest."""

_OWN_NAMES = frozenset({"torch", "numpy", "builtins", "__builtin__", "copy_reg", "commands", "cPickle", "UserDict"})
_LITERALS = {
    *("NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Mapping[str, Callable[[], object]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_KEYS = (str, int, float, bytes, bool, type(None))


class Refused(Exception):  # noqa: N818 - a verdict, not a mistake of the program
    """The pickle asks for something that data don't need, or is no whole pickle; says what in one line."""


@dataclass(frozen=True)
class Name:
    """A global that a pickle names. It stands for nothing but itself."""

    path: str


@dataclass(eq=False)
class Instance:
    """An object of a class that was never imported: what the pickle says of it, as data."""

    kind: str
    """Dotted path of the class."""
    state: object = None
    """What its `__setstate__` or `__dict__` would have been given."""
    items: dict[object, object] = field(default_factory=dict)
    """What a subclass of dict holds."""


@runtime_checkable
class Built(Protocol):
    """What a reducer returns when the pickle goes on to give it a state."""

    def build(self, state: object) -> None:
        """Take the state; raises Refused when it is not what it should be."""
        ...


Reducer = Callable[..., object]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a format's reader understands.

    Attributes:
        reducers: functions of the reader, by the name that they answer to in the pickle. They get the pickle's
            arguments and must check them.
        names: names that may stand alone, as arguments.
        persistent: makes the object of a persistent id.
    """

    reducers: Mapping[str, Reducer]
    names: frozenset[str] = frozenset()
    persistent: Callable[[object], object]


def read_pickle(file: BinaryIO, vocabulary: Vocabulary) -> object:
    """The object of the pickle at the file's position, which is left behind it.

    Raises:
        Refused: when the pickle is cut short, is too large, or asks for more than data.
    """
    machine = _Machine(vocabulary)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MAX_OPCODES:
                raise Refused(f"a pickle of more than {MAX_OPCODES} opcodes")
            machine.step(opcode.name, argument)
        return machine.result()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, EOFError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise Refused(f"no whole pickle: {reason}") from error


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._stack: list[object] = []
        self._marked: list[list[object]] = []
        self._memo: dict[int, object] = {}

    def result(self) -> object:
        """What STOP leaves."""
        if len(self._stack) != 1 or self._marked:
            raise Refused("no whole pickle: it ends with an unfinished object")
        return self._stack[0]

    def step(self, name: str, argument: object) -> None:
        """Carry out one opcode."""
        if name in _LITERALS:
            self._literal(name, argument)
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self._stack[-_TUPLES[name] :] = [tuple(self._top(_TUPLES[name]))]
        elif name in _PUTS:
            self._memo[_index(argument)] = self._stack[-1]
        elif name in _GETS:
            self._stack.append(self._memo[_index(argument)])
        elif name not in _STEPS:
            raise Refused(f"the opcode {name}{_named(argument, self._stack)}")
        else:
            _STEPS[name](self, argument)

    def _top(self, count: int) -> list[object]:
        if len(self._stack) < count:
            raise Refused("no whole pickle: its stack is too short")
        return self._stack[-count:]

    def _literal(self, name: str, argument: object) -> None:
        if isinstance(argument, str | bytes | bytearray) and len(argument) > MAX_STRING:
            raise Refused(f"a string of {len(argument)} bytes")
        self._stack.append(_CONSTANTS.get(name, argument))

    def _pass(self, _: object) -> None:
        """PROTO, FRAME and STOP say nothing about the object."""

    def _memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _mark(self, _: object) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _unmark(self) -> list[object]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _pop(self, _: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._unmark()

    def _list(self, _: object) -> None:
        items = self._unmark()
        self._stack.append(items)

    def _tuple(self, _: object) -> None:
        items = self._unmark()
        self._stack.append(tuple(items))

    def _dict(self, _: object) -> None:
        items = self._unmark()
        self._stack.append({})
        self._put_items(items)

    def _append(self, _: object) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _: object) -> None:
        self._extend(self._unmark())

    def _extend(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise Refused(f"items for {_describe(target)}, which is no list")
        target.extend(items)

    def _setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._put_items([key, value])

    def _setitems(self, _: object) -> None:
        self._put_items(self._unmark())

    def _put_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        found = target.items if isinstance(target, Instance) else target
        if not isinstance(found, dict):
            raise Refused(f"items for {_describe(target)}, which is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):  # the hash of nested tuples can take for ever
                raise Refused(f"{_describe(key)} as the key of a dict")
            found[key] = value

    def _global(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self._name(module, name)

    def _stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("the name of a global that is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        path = f"{module}.{name}"
        known = path in self._vocabulary.reducers or path in self._vocabulary.names
        if not known and not _foreign(module, name):
            raise Refused(f"{_printable(path)}: a checkpoint has no use for it")
        self._stack.append(Name(path))

    def _reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        reducer = self._vocabulary.reducers.get(function.path) if isinstance(function, Name) else None
        if reducer is None or not isinstance(arguments, tuple):
            raise Refused(f"a call of {_describe(function)}")
        self._stack.append(reducer(*arguments))

    def _newobj(self, _: object) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, Name) or arguments != () or not _foreign(*kind.path.rsplit(".", 1)):
            raise Refused(f"a new {_describe(kind)} with arguments")
        self._stack.append(Instance(kind.path))

    def _build(self, _: object) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Instance):
            target.state = state
        elif isinstance(target, Built):
            target.build(state)
        elif not isinstance(target, dict):  # a state dict's attributes, such as its _metadata, are left out
            raise Refused(f"a state for {_describe(target)}")

    def _persistent(self, _: object) -> None:
        self._stack.append(self._vocabulary.persistent(self._stack.pop()))


_STEPS: Mapping[str, Callable[[_Machine, object], None]] = {
    "PROTO": _Machine._pass,
    "FRAME": _Machine._pass,
    "STOP": _Machine._pass,
    "MEMOIZE": _Machine._memoize,
    "MARK": _Machine._mark,
    "POP": _Machine._pop,
    "LIST": _Machine._list,
    "TUPLE": _Machine._tuple,
    "DICT": _Machine._dict,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._setitem,
    "SETITEMS": _Machine._setitems,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._newobj,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}


def _foreign(module: str, name: str) -> bool:
    """Whether a global belongs to none of the packages whose names have a meaning here."""
    parts = [*module.split("."), *name.split(".")]
    return all(part.isidentifier() for part in parts) and parts[0] not in _OWN_NAMES | sys.stdlib_module_names


def _index(argument: object) -> int:
    if not isinstance(argument, int) or argument < 0:
        raise Refused("a memo entry that is no number")
    return argument


def _named(argument: object, stack: list[object]) -> str:
    """The global that a refused opcode is about, where there is one."""
    if isinstance(argument, str):
        return f" of {_printable(argument.replace(' ', '.'))}"
    return next((f" of {_printable(item.path)}" for item in reversed(stack) if isinstance(item, Name)), "")


def _describe(value: object) -> str:
    """A value in a few words; never its content, which may be endless."""
    return _printable(value.path) if isinstance(value, Name) else f"a value of type {type(value).__name__}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:80])
