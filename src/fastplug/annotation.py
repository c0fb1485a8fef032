"""What a parameter, a result or a field may be: an annotation becomes a tree of ``TypeNode``.

The table of what is understood is docs/wire.md, "Annotations". Everything else is refused with ConfigError when the interface
is declared, because a value that nobody can carry is better found there than in the middle of a pipeline.

numpy, msgspec, decimal, uuid and datetime are never imported here: an annotation that names one of their classes proves that
whoever wrote it has imported them, so ``sys.modules`` is enough.
"""

from __future__ import annotations

import collections.abc
import enum
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fastplug import dtypes
from fastplug.errors import ConfigError
from fastplug.structs import MISSING, Missing, fields_of, is_struct

__all__ = ["INTERFACE_ATTRIBUTE", "MISSING", "FieldNode", "Kind", "Missing", "Role", "TypeNode", "has_references", "resolve"]

# The codec refuses a value nested deeper than this (docs/wire.md, "Values"); a type that only such values have is a mistake.
DEPTH_LIMIT = 64
# Where ``@interface`` leaves what it made of a class; interfaces.py writes it.
INTERFACE_ATTRIBUTE = "__fastplug_interface__"

# Where an annotation stands: streams and callbacks are allowed as parameters, streams as results, neither inside of values.
Role = Literal["value", "parameter", "result"]


class Kind(enum.IntEnum):
    """What a value is. The numbers are shared with the compiled codec; they never travel."""

    NONE = 0
    BOOL = 1
    INT = 2
    FLOAT = 3
    COMPLEX = 4
    STR = 5
    BYTES = 6
    LIST = 7
    TUPLE = 8  # of fixed length
    SEQUENCE = 9  # tuple[T, ...]
    DICT = 10
    DATETIME = 11
    DATE = 12
    TIMEDELTA = 13
    DECIMAL = 14
    UUID = 15
    ENUM = 16
    OPTIONAL = 17
    STRUCT = 18  # a dataclass or a msgspec.Struct
    ARRAY = 19
    BUFFER = 20  # whatever has a buffer, as bytes
    ARROW = 21  # a table of Arrow, or a part of one
    STREAM = 22  # an iterator: a result, or a parameter
    CALLBACK = 23  # a function or an object with an interface that stays where it is: a parameter


class FieldNode:
    """One field of a struct: its ``name``, its type ``node``, and ``default``: MISSING, or a callable that makes the default."""

    __slots__ = ("default", "name", "node")

    def __init__(self, name: str, node: TypeNode, default: Callable[[], Any] | Missing = MISSING) -> None:
        self.name = name
        self.node = node
        self.default = default


class TypeNode:
    """One resolved type. Compared by identity; a recursive dataclass is a cycle of nodes.

    ``args``: element (LIST, SEQUENCE), elements (TUPLE), key and value (DICT), what is optional (OPTIONAL). ``cls``: the class
    of an ENUM, STRUCT or ARROW. ``fields``: of a STRUCT, in order of declaration. ``dtype``: of an ARRAY, its text (``dtypes.text_of``) or
    the name of a family ("datetime64": of any unit); None stands for every dtype that travels. Of a CALLBACK: ``args`` are what it
    takes and, last, what it returns; or ``interface`` is the record of the interface that it has (``interfaces.Interface``).
    """

    __slots__ = ("args", "cls", "dtype", "fields", "interface", "kind")

    def __init__(self, kind: Kind, args: tuple[TypeNode, ...] = (), *, cls: type | None = None, dtype: str | None = None) -> None:
        self.kind = kind
        self.args = args
        self.cls = cls
        self.fields: tuple[FieldNode, ...] = ()
        self.dtype = dtype
        self.interface: Any = None

    def __repr__(self) -> str:
        told = self.cls.__name__ if self.cls else self.dtype or ", ".join(map(repr, self.args))
        return f"<{self.kind.name}{' ' + told if told else ''}>"


# (module, qualified name) of the classes that stand for themselves.
_PLAIN = {
    ("builtins", "NoneType"): Kind.NONE,
    ("builtins", "bool"): Kind.BOOL,
    ("builtins", "int"): Kind.INT,
    ("builtins", "float"): Kind.FLOAT,
    ("builtins", "complex"): Kind.COMPLEX,
    ("builtins", "str"): Kind.STR,
    ("builtins", "bytes"): Kind.BYTES,
    ("builtins", "memoryview"): Kind.BUFFER,
    ("collections.abc", "Buffer"): Kind.BUFFER,
    ("typing_extensions", "Buffer"): Kind.BUFFER,
    ("datetime", "datetime"): Kind.DATETIME,
    ("datetime", "date"): Kind.DATE,
    ("datetime", "timedelta"): Kind.TIMEDELTA,
    ("decimal", "Decimal"): Kind.DECIMAL,
    ("uuid", "UUID"): Kind.UUID,
}

# A key must be hashable whatever its value; a dataclass can only tell once it has one.
_KEY_KINDS = frozenset(
    {
        Kind.NONE,
        Kind.BOOL,
        Kind.INT,
        Kind.FLOAT,
        Kind.COMPLEX,
        Kind.STR,
        Kind.BYTES,
        Kind.DATETIME,
        Kind.DATE,
        Kind.TIMEDELTA,
        Kind.DECIMAL,
        Kind.UUID,
        Kind.ENUM,
    }
)

# Of pyarrow. Any library with the Arrow PyCapsule interface is accepted for them.
ARROW_CLASSES = ("Array", "ChunkedArray", "RecordBatch", "Table")

_STREAM = "a stream is a whole result or a whole parameter, never part of one; write list[...] here"
_CALLBACK = "a callback is a whole parameter (or an Optional one), never part of a value and never a result"
_MORE_THAN_NONE = "write Generator[T, None, None] or Iterator[T]: a stream has no way back, and ends without a value"
_USE_LIST = "write list[...] (or tuple[T, ...]) instead"
_USE_DICT = "write dict[K, V] instead"
_USE_DATACLASS = "write a dataclass instead"
_CONCRETE = "write a dataclass whose fields have their own types"

# What to write instead, by the name of the class or special form; the first that fits in the MRO counts.
_INSTEAD = {
    "list": "say what it holds: list[int], list[float], ...",
    "tuple": "say what it holds: tuple[int, str] or tuple[int, ...]",
    "dict": "say what it holds: dict[str, int], ...",
    "Callable": _CALLBACK,
    "Iterator": _STREAM,
    "Generator": _STREAM,
    "AsyncIterator": _STREAM,
    "AsyncIterable": _STREAM,
    "AsyncGenerator": _STREAM,
    "Awaitable": "declare the method with `async def` and its plain result",
    "Coroutine": "declare the method with `async def` and its plain result",
    "Mapping": _USE_DICT,
    "MutableMapping": _USE_DICT,
    "Sequence": _USE_LIST,
    "MutableSequence": _USE_LIST,
    "Iterable": _USE_LIST,
    "Collection": _USE_LIST,
    "Set": _USE_LIST,
    "MutableSet": _USE_LIST,
    "set": _USE_LIST,
    "frozenset": _USE_LIST,
    "deque": _USE_LIST,
    "bytearray": "write bytes, or memoryview, instead",
    "array": "write memoryview, or an array of numpy, instead",
    "ByteString": "write bytes, or memoryview, instead",
    "Literal": "write an Enum, or the plain type of the values, instead",
    "Any": "name one type: values are checked and carried by their declared type",
    "object": "name one type: values are checked and carried by their declared type",
    "MaskedArray": "send the data and the mask as two arrays",
    "ndarray": "write npt.NDArray[...] instead",
}

# One canonical form; a Generator that sends or returns something is more than that.
# Which side iterates with `async for` is its own business.
_STREAMS = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)

_FALLBACK = "use a type of the table in docs/wire.md; for a structure of your own, a dataclass"


def resolve(
    annotation: Any,
    *,
    where: str,
    globalns: dict[str, Any] | None = None,
    localns: Mapping[str, Any] | None = None,
    memo: dict[type, TypeNode] | None = None,
    role: Role = "value",
) -> TypeNode:
    """The type that ``annotation`` stands for.

    Args: ``where`` names interface, method and parameter, for error texts; ``globalns`` and ``localns`` give meaning to names
    in quotes; ``memo`` keeps one node per dataclass, Struct and Enum over several calls; ``role``: where it stands. Raises
    ConfigError. Thread-safe unless ``memo`` is shared.
    """
    resolver = _Resolver(globalns or {}, localns or {}, {} if memo is None else memo)
    if role != "value":
        found = resolver.reference(annotation, where, role)
        if found is not None:
            return found
    return resolver.node(annotation, where, 0)


def has_references(node: TypeNode) -> bool:
    """Whether this is a stream or a callback: something that stays where it is, and is spoken to while or after the call."""
    return node.kind in (Kind.STREAM, Kind.CALLBACK) or (node.kind is Kind.OPTIONAL and node.args[0].kind is Kind.CALLBACK)


class _Resolver:
    """One run of ``resolve``: the names in reach, and the classes that have been met."""

    __slots__ = ("globalns", "localns", "memo")

    def __init__(self, globalns: dict[str, Any], localns: Mapping[str, Any], memo: dict[type, TypeNode]) -> None:
        self.globalns = globalns
        self.localns = localns
        self.memo = memo

    def reference(self, annotation: Any, where: str, role: Role) -> TypeNode | None:
        """A stream or a callback, where they are allowed; None: it is something else."""
        annotation = self._unwrapped(annotation, where)
        origin = typing.get_origin(annotation)
        if origin in _STREAMS:
            return self._stream(annotation, origin, where)
        if role != "parameter":
            return None
        if origin is Callable:
            return self._callable(annotation, where)
        if isinstance(annotation, type) and INTERFACE_ATTRIBUTE in vars(annotation):
            node = TypeNode(Kind.CALLBACK, cls=annotation)
            node.interface = vars(annotation)[INTERFACE_ATTRIBUTE]
            self._check_callback_interface(node.interface, where)
            return node
        if origin is typing.Union or origin is types.UnionType:
            members = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
            inner = self.reference(members[0], where, role) if len(members) == 1 else None
            if inner is not None and inner.kind is Kind.CALLBACK:
                return TypeNode(Kind.OPTIONAL, (inner,))
        return None

    def _stream(self, annotation: Any, origin: Any, where: str) -> TypeNode:
        args = typing.get_args(annotation)
        if any(arg not in (None, type(None)) for arg in args[1:]):
            raise _refusal(annotation, where, "is more than a stream", _MORE_THAN_NONE)
        return TypeNode(Kind.STREAM, (self.node(args[0], f"{where}, item", 1),))

    def _callable(self, annotation: Any, where: str) -> TypeNode:
        args = typing.get_args(annotation)
        if len(args) != 2 or not isinstance(args[0], list):
            raise _refusal(annotation, where, "does not say what it takes", "write Callable[[A, B], R]")
        takes = [self.node(arg, f"{where}, argument {number} of the callback", 1) for number, arg in enumerate(args[0])]
        return TypeNode(Kind.CALLBACK, (*takes, self.node(args[1], f"{where}, result of the callback", 1)))

    def _check_callback_interface(self, interface: Any, where: str) -> None:
        for method in interface.methods:
            if any(has_references(one) for one in (method.returns, *(parameter.node for parameter in method.parameters))):
                raise ConfigError(
                    f"{where}: {interface.name} cannot be called back: its method {method.name} has a stream or a callback itself; "
                    "name an interface with plain methods"
                )

    def node(self, annotation: Any, where: str, depth: int) -> TypeNode:
        if depth > DEPTH_LIMIT:
            raise ConfigError(f"{where}: types nested more than {DEPTH_LIMIT} deep; flatten them, or make a recursive alias a dataclass")
        annotation = self._unwrapped(annotation, where)
        origin = typing.get_origin(annotation)
        if origin is typing.Union or origin is types.UnionType:
            return self._optional(annotation, where, depth)
        if origin is not None:
            return self._generic(annotation, origin, where, depth)
        if isinstance(annotation, type):
            return self._class(annotation, where, depth)
        raise _refusal(annotation, where)

    def _unwrapped(self, annotation: Any, where: str) -> Any:
        """Without what only gives a type another name: quotes, Annotated, NewType, aliases. None is its type. A dtype in an Annotated
        around an array moves into the array's own arguments."""
        exact: Any = None
        for _ in range(DEPTH_LIMIT):
            if annotation is None:
                return type(None)
            if isinstance(annotation, typing.ForwardRef):
                annotation = annotation.__forward_arg__
            if isinstance(annotation, str):
                annotation = self._evaluated(annotation, where)
            elif typing.get_origin(annotation) is typing.Annotated:
                said = [one for one in annotation.__metadata__ if isinstance(one, _loaded_class("numpy", "dtype"))]
                exact = said[-1] if said and exact is None else exact  # as everywhere in typing, the outer one is nearer
                annotation = annotation.__origin__
            elif isinstance(annotation, typing.NewType):
                annotation = annotation.__supertype__
            elif _is_alias(annotation):
                annotation = annotation.__value__
            elif _is_alias(typing.get_origin(annotation)):
                annotation = _substituted(annotation)
            elif exact is not None and (typing.get_origin(annotation) or annotation) is _loaded("numpy", "ndarray"):
                return types.GenericAlias(_loaded_class("numpy", "ndarray"), (*typing.get_args(annotation), exact))
            else:
                return annotation
        raise ConfigError(f"{where}: {annotation!r} is an alias of itself; name a type")

    def _evaluated(self, text: str, where: str) -> Any:
        try:
            return eval(text, self.globalns, self.localns)  # as typing.get_type_hints does: it is the author's own source
        except NameError as error:
            raise ConfigError(
                f"{where}: {text!r} cannot be resolved: {error}. Define or import it before the interface, not only under TYPE_CHECKING"
            ) from error
        except Exception as error:
            raise ConfigError(f"{where}: {text!r} is no type: {type(error).__name__}: {error}") from error

    def _optional(self, annotation: Any, where: str, depth: int) -> TypeNode:
        members = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        if any(_is_buffer(member) for member in members) and all(_is_buffer(member) or member in (bytes, bytearray) for member in members):
            inner = TypeNode(Kind.BUFFER)  # several types with one meaning: what arrives is a memoryview
            return TypeNode(Kind.OPTIONAL, (inner,)) if type(None) in typing.get_args(annotation) else inner
        if len(members) != 1 or len(typing.get_args(annotation)) == 1:
            raise _refusal(annotation, where, "is a choice of several types", "name one, or a dataclass with an optional field each")
        inner = self.node(members[0], where, depth + 1)
        return inner if inner.kind in (Kind.OPTIONAL, Kind.NONE) else TypeNode(Kind.OPTIONAL, (inner,))

    def _generic(self, annotation: Any, origin: Any, where: str, depth: int) -> TypeNode:
        args = typing.get_args(annotation)
        if origin is list and len(args) == 1:
            return TypeNode(Kind.LIST, (self.node(args[0], where, depth + 1),))
        # typing.Tuple without arguments has the same origin and no arguments as tuple[()]; only the latter is a GenericAlias of its own
        if origin is tuple and annotation is not typing.Tuple:  # noqa: UP006
            if len(args) == 2 and args[1] is Ellipsis:
                return TypeNode(Kind.SEQUENCE, (self.node(args[0], where, depth + 1),))
            return TypeNode(Kind.TUPLE, tuple(self.node(arg, where, depth + 1) for arg in args))
        if origin is dict and len(args) == 2:
            return self._dict(annotation, args, where, depth)
        if origin is _loaded("numpy", "ndarray"):
            return _array(annotation, args, where)
        if is_struct(origin):
            raise _refusal(annotation, where, "is generic", _CONCRETE)
        raise _refusal(annotation, where)

    def _dict(self, annotation: Any, args: tuple[Any, ...], where: str, depth: int) -> TypeNode:
        key, value = (self.node(arg, where, depth + 1) for arg in args)
        if not _is_key(key):
            raise _refusal(annotation, where, "has keys that may not be hashable", "use str, int, an Enum or a tuple of such as key")
        return TypeNode(Kind.DICT, (key, value))

    def _class(self, cls: type, where: str, depth: int) -> TypeNode:
        if cls in self.memo:
            return self.memo[cls]
        place = (cls.__module__, cls.__qualname__)
        kind = _PLAIN.get(place)
        if kind is not None and (cls is type(None) or cls is _loaded(*place)):
            return TypeNode(kind)
        if issubclass(cls, enum.Enum):
            if not cls.__members__:
                raise _refusal(cls, where, "has no members", "name an Enum that has some")
            return self.memo.setdefault(cls, TypeNode(Kind.ENUM, cls=cls))
        if cls is _loaded("numpy", "ndarray"):
            return TypeNode(Kind.ARRAY)
        if cls.__name__ in ARROW_CLASSES and cls is _loaded("pyarrow.lib", cls.__name__):
            return TypeNode(Kind.ARROW, cls=cls)
        if is_struct(cls):
            return self._struct(cls, where, depth)
        raise _refusal(cls, where)

    def _struct(self, cls: type, where: str, depth: int) -> TypeNode:
        import inspect  # dataclasses and msgspec have imported it already

        if getattr(cls, "__parameters__", ()):
            raise _refusal(cls, where, "is generic", _CONCRETE)
        node = self.memo[cls] = TypeNode(Kind.STRUCT, cls=cls)
        fields = []
        for name, default in fields_of(cls, where):
            owner = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
            inside = f"{where}, field {cls.__name__}.{name}"
            fields.append(
                FieldNode(name, self._names_of(owner, cls).node(inspect.get_annotations(owner)[name], inside, depth + 1), default)
            )
        node.fields = tuple(fields)
        return node

    def _names_of(self, owner: type, cls: type) -> _Resolver:
        """The names that quotes in the body of class ``owner`` may mean: its own, its module's, and ours if we are in that module."""
        globalns = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
        nearby = self.localns if globalns is self.globalns else {}
        return _Resolver(globalns, {**nearby, cls.__name__: cls, owner.__name__: owner}, self.memo)


def _loaded(module: str, name: str) -> Any:
    """``module.name`` if somebody has imported the module, else a fresh object that nothing is identical to."""
    return getattr(sys.modules.get(module), name, object())


def _loaded_class(module: str, name: str) -> type:
    """``_loaded`` for isinstance: a class without instances where there is none."""
    cls = _loaded(module, name)
    return cls if isinstance(cls, type) else Missing


def _is_buffer(annotation: Any) -> bool:
    return annotation is memoryview or annotation in (_loaded("collections.abc", "Buffer"), _loaded("typing_extensions", "Buffer"))


def _is_alias(annotation: Any) -> bool:
    """Made by the ``type`` statement (3.12), or by typing_extensions.TypeAliasType before."""
    kinds = (_loaded("typing", "TypeAliasType"), _loaded("typing_extensions", "TypeAliasType"))
    return any(isinstance(kind, type) and isinstance(annotation, kind) for kind in kinds)


def _substituted(annotation: Any) -> Any:
    """``Pair[int]`` for ``type Pair[T] = tuple[T, T]``."""
    alias = typing.get_origin(annotation)
    given = dict(zip(alias.__type_params__, typing.get_args(annotation), strict=False))
    free = getattr(alias.__value__, "__parameters__", ())
    return alias.__value__[tuple(given.get(name, name) for name in free)] if free else alias.__value__


def _is_key(node: TypeNode) -> bool:
    if node.kind in (Kind.TUPLE, Kind.SEQUENCE, Kind.OPTIONAL):
        return all(map(_is_key, node.args))
    return node.kind in _KEY_KINDS


def _array(annotation: Any, args: tuple[Any, ...], where: str) -> TypeNode:
    try:
        return TypeNode(Kind.ARRAY, dtype=dtypes.declared(args))
    except dtypes.UndescribedError as error:
        raise ConfigError(f"{where}: {_shown(annotation)} is an array of {error}") from None


def _shown(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)


def _refusal(annotation: Any, where: str, why: str = "cannot be carried to a plugin", instead: str | None = None) -> ConfigError:
    return ConfigError(f"{where}: {_shown(annotation)} {why}; {instead or _instead(annotation)}")


def _instead(annotation: Any) -> str:
    if isinstance(annotation, typing.TypeVar | typing.ParamSpec):
        return "an interface has no type parameters; name the type itself"
    origin = typing.get_origin(annotation) or annotation
    if not isinstance(origin, type):
        return _INSTEAD.get(getattr(origin, "__name__", None) or str(origin).rpartition(".")[2], _FALLBACK)
    if typing.is_typeddict(origin) or hasattr(origin, "_fields"):
        return _USE_DATACLASS
    numpy_scalar = _loaded("numpy", "generic")
    if isinstance(numpy_scalar, type) and issubclass(origin, numpy_scalar):
        return "write bool, int, float or complex instead (numpy scalars are accepted for them)"
    if INTERFACE_ATTRIBUTE in vars(origin):
        return _CALLBACK
    for base in origin.__mro__[:-1]:
        if base is not origin and (base.__module__, base.__qualname__) in _PLAIN:
            return f"a subclass would not arrive as itself; write {base.__name__} instead"
        if base.__name__ in _INSTEAD:
            return _INSTEAD[base.__name__]
    return _INSTEAD["object"] if origin is object else _FALLBACK
