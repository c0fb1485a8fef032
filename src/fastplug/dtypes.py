"""What says a dtype on the wire and in an interface: docs/wire.md, "Dtypes".

A *description* is a string (``float64``, ``<M8[ns]``, ``|S3``) or, of a structured dtype, a dict with its fields. Its *text* is that
string, or the JSON of that dict. Descriptions are checked here, by rules of our own, before numpy sees them: numpy's parser reads far more
than dtypes. numpy is imported where a dtype is made of one, so that interfaces are compared without it.
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
import typing
from typing import Any, Final

__all__ = [
    "FAMILIES",
    "TEXT_BYTES_MAX",
    "Description",
    "UndescribedError",
    "built",
    "checked",
    "declared",
    "describe",
    "laid_out",
    "packed_strings",
    "parsed",
    "shown",
    "text_of",
    "unpacked_strings",
]

Description = str | dict[str, Any]

# Of one dtype: some thousand fields. A descriptor carries it with every array, so more would be a payload of its own.
TEXT_BYTES_MAX: Final = 64 * 1024
# Structures in structures. numpy compares and prints them by recursion.
DEPTH_LIMIT: Final = 32
NAME_LIMIT: Final = 256  # characters of a field's name, as of all names of an interface
# numpy keeps the size of an element in a C int, on some versions.
ITEMSIZE_MAX: Final = 2**31 - 1
NDIM_MAX: Final = 32  # of a field that is an array; the lower of the limits of numpy 1 and 2

# What a declared array may be without saying more: numpy's scalar type alone does not tell the unit, the length or the fields.
FAMILIES: Final = {"datetime64": "M", "timedelta64": "m", "str": "U", "bytes": "S", "void": "V"}

_WORDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_SIZES = {"i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8, 12, 16), "c": (8, 16, 24, 32)}
_NUMBERS = frozenset({"bool", *(f"{_WORDS[kind]}{8 * size}" for kind, sizes in _SIZES.items() for size in sizes)})
_SWAPPED = frozenset(f">{kind}{size}" for kind, sizes in _SIZES.items() for size in sizes if size > 1)
_TIME = re.compile(r"[<>][mM]8(\[([1-9][0-9]{0,9})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?")
_SIZED = re.compile(r"([<>]U|\|[SV])(0|[1-9][0-9]{0,9})")
# numpy's strings of any length; the second and third have missing ones, which are None or NaN.
_STRINGS = frozenset({"StringDType", "StringDType[None]", "StringDType[nan]"})
_LAST_BUILTIN_NUM = 23  # NPY_HALF: numpy numbers dtypes of other packages from 256 on, and its own new ones from 2056


class UndescribedError(ValueError):
    """This dtype does not travel; the text says why, and what to do instead."""


def describe(dtype: Any) -> Description:
    """The description of a dtype. Raises UndescribedError."""
    found = _described(dtype, 0)
    try:
        return checked(found)
    except ValueError as error:  # numpy allows more than travels: fields of 300 characters, dtypes nested 40 deep
        raise UndescribedError(f"dtype {str(dtype)[:200]}, which does not travel: {error}") from None


def _described(dtype: Any, depth: int) -> Description:
    if dtype.kind == "T":
        return _strings(dtype)
    if dtype.hasobject:
        raise UndescribedError(f"dtype {dtype}: Python objects do not travel")
    if dtype.num > _LAST_BUILTIN_NUM:
        raise UndescribedError(f"dtype {dtype}, which is not numpy's own and does not travel: send a view of its bytes (.view(np.uint8))")
    if dtype.names is not None:
        return _structure(dtype, depth)
    if dtype.kind in _WORDS:
        return f"{_WORDS[dtype.kind]}{8 * dtype.itemsize if dtype.kind != 'b' else ''}" if dtype.isnative else str(dtype.str)
    return str(dtype.str)


def _strings(dtype: Any) -> str:
    missing = getattr(dtype, "na_object", "")
    if not dtype.coerce:
        raise UndescribedError("a StringDType with coerce=False, which does not travel: use .astype(np.dtypes.StringDType())")
    if missing == "":
        return "StringDType"
    if missing is None:
        return "StringDType[None]"
    if isinstance(missing, float) and missing != missing:
        return "StringDType[nan]"
    raise UndescribedError(f"a StringDType whose na_object is {str(missing)[:40]!r}: None and NaN travel")


def _structure(dtype: Any, depth: int) -> dict[str, Any]:
    if depth >= DEPTH_LIMIT:
        raise UndescribedError(f"a dtype nested more than {DEPTH_LIMIT} deep")
    fields = []
    for name in dtype.names:
        part, offset, *title = dtype.fields[name]
        if title:
            raise UndescribedError(f"dtype {dtype}, whose field {name!r} has a title: titles do not travel, make the dtype without")
        base, shape = part.subdtype or (part, ())
        fields.append([name, _described(base, depth + 1), offset, *([list(shape)] if shape else [])])
    made: dict[str, Any] = {"itemsize": dtype.itemsize, "fields": fields}
    return made | {"aligned": True} if dtype.isalignedstruct else made


def text_of(description: Description) -> str:
    """The text of a description: ASCII, the same for equal descriptions."""
    return description if isinstance(description, str) else json.dumps(description, separators=(",", ":"))


def parsed(text: str) -> Description:
    """The checked description with this text. Raises ValueError."""
    if len(text) > TEXT_BYTES_MAX:
        raise ValueError(f"the text of a dtype has {len(text)} characters; {TEXT_BYTES_MAX} are allowed")
    if not text.startswith("{"):
        return checked(text)
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("the text of a dtype is nested too deep") from None
    return checked(found)


def checked(obj: object, depth: int = 0) -> Description:
    """A private copy of a description, if it is one. Raises ValueError."""
    if isinstance(obj, str):
        if obj not in _NUMBERS and obj not in _SWAPPED and not (depth == 0 and obj in _STRINGS):
            _flexible(obj)
        return obj
    if not isinstance(obj, dict) or not {"itemsize", "fields"} <= obj.keys() <= {"itemsize", "fields", "aligned"}:
        raise ValueError(f"{_short(obj)} describes no dtype")
    itemsize, fields, aligned = obj["itemsize"], obj["fields"], obj.get("aligned", False)
    if not _is_count(itemsize) or not isinstance(fields, list) or not isinstance(aligned, bool):
        raise ValueError("a structured dtype has a size and a list of fields")
    if depth >= DEPTH_LIMIT:
        raise ValueError(f"a dtype nested more than {DEPTH_LIMIT} deep")
    found = [_field(field, itemsize, depth) for field in fields]
    if len({field[0] for field in found}) != len(found):
        raise ValueError("two fields of a dtype have one name")
    made: dict[str, Any] = {"itemsize": itemsize, "fields": found}
    if depth == 0 and len(text_of(made)) + 64 > TEXT_BYTES_MAX:
        raise ValueError(f"its description is longer than {TEXT_BYTES_MAX} bytes")
    return made | {"aligned": True} if aligned else made


def _short(obj: object) -> str:
    """Of what a peer sent, as much as an error text needs; never all of it, which may be large."""
    return repr(obj[:40]) if isinstance(obj, str) else f"a {type(obj).__name__}"


def _is_count(obj: object, most: int = ITEMSIZE_MAX) -> bool:
    return type(obj) is int and 0 <= obj <= most


def _flexible(text: str) -> None:
    """Dates, texts, bytes. The size of an element is a C int."""
    time, sized = _TIME.fullmatch(text), _SIZED.fullmatch(text)
    if time and (time[2] is None or int(time[2]) <= ITEMSIZE_MAX):
        return
    if sized and int(sized[2]) <= ITEMSIZE_MAX // (4 if sized[1][1] == "U" else 1):
        return
    raise ValueError(f"{_short(text)} describes no dtype that travels")


def _field(obj: object, itemsize: int, depth: int) -> list[Any]:
    """[name, description, offset, shape?]: whole inside the structure; fields may overlap."""
    if not isinstance(obj, list) or len(obj) not in (3, 4):
        raise ValueError("a field of a dtype is [name, dtype, offset] or [name, dtype, offset, shape]")
    name, inner, offset, *shape = obj
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT:
        raise ValueError(f"the name of a field has 1 to {NAME_LIMIT} characters")
    described = checked(inner, depth + 1)
    size = _itemsize(described)
    if shape and (not isinstance(shape[0], list) or not 0 < len(shape[0]) <= NDIM_MAX):
        raise ValueError(f"the shape of a field has 1 to {NDIM_MAX} dimensions")
    for extent in shape[0] if shape else ():
        if not _is_count(extent):
            raise ValueError("the shape of a field has a dimension that is no size")
        size *= extent
    if not _is_count(offset) or offset + size > itemsize:
        raise ValueError(f"the field {name[:40]!r} does not lie inside its structure")
    return [name, described, offset, *([list(shape[0])] if shape else [])]


def _itemsize(description: Description) -> int:
    if isinstance(description, dict):
        return int(description["itemsize"])
    if description == "bool":
        return 1
    if description in _NUMBERS:
        return int(description.strip("abcdefghijklmnopqrstuvwxyz")) // 8
    if description[1] in "mM":
        return 8
    return int(description[2:]) * (4 if description[1] == "U" else 1)


def built(description: Description) -> Any:
    """numpy's dtype. Raises ValueError for one that this numpy does not have, and for what it refuses although it was checked."""
    import numpy as np

    try:
        dtype = np.dtype(_spec(np, description))
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"numpy {np.__version__} makes no dtype of {shown(description)[:200]}: {error}") from error
    if dtype.kind != "T" and dtype.itemsize != _itemsize(description):
        raise ValueError(f"{shown(description)[:200]} has {dtype.itemsize} bytes here: the two sides lay it out differently")
    return dtype


def _spec(np: Any, description: Description) -> Any:
    if isinstance(description, str):
        if description in _STRINGS:
            missing = {"StringDType[None]": {"na_object": None}, "StringDType[nan]": {"na_object": np.nan}}.get(description, {})
            return np.dtypes.StringDType(**missing)
        return description
    fields = description["fields"]
    formats = [(np.dtype(_spec(np, part)), tuple(shape[0])) if shape else np.dtype(_spec(np, part)) for _, part, _, *shape in fields]
    names, offsets = [field[0] for field in fields], [field[2] for field in fields]
    spec = {"names": names, "formats": formats, "offsets": offsets, "itemsize": description["itemsize"]}
    return np.dtype(spec, align=bool(description.get("aligned")))


def laid_out(description: Description) -> Description:
    """Without what does not change where a byte lies: two sides that agree on this agree on the data."""
    if isinstance(description, str):
        return description
    fields = [[name, laid_out(inner), *rest] for name, inner, *rest in description["fields"]]
    return {"itemsize": description["itemsize"], "fields": fields}


def shown(description: Description) -> str:
    """For people: ``datetime64[ns]``, ``{x: float64 @0, tag: |S3 @8; 16 bytes}``."""
    if isinstance(description, str):
        word = {"<M8": "datetime64", "<m8": "timedelta64"}.get(description[:3])
        return description if word is None else word + description[3:]
    fields = ", ".join(
        f"{name}: {shown(inner)}{tuple(shape[0]) if shape else ''} @{offset}" for name, inner, offset, *shape in description["fields"]
    )
    return f"{{{fields}; {description['itemsize']} bytes}}"


def declared(args: tuple[Any, ...]) -> str | None:
    """What the arguments of ``ndarray[shape, dtype[scalar]]`` say: the text of a dtype, the name of a family, or None for any.

    The shape is not looked at. A dtype itself as the last argument is what an ``Annotated`` around the array had. Raises
    UndescribedError.
    """
    import numpy as np

    if args and isinstance(args[-1], np.dtype):
        exact, scalar = args[-1], _scalar(np, args[:-1])
        if isinstance(scalar, type) and scalar is not Any and not issubclass(exact.type, scalar):
            raise UndescribedError(f"{scalar.__name__} and of dtype {exact} at the same time; name one of them")
        return _exact(exact)
    scalar = _scalar(np, args)
    if scalar in (Any, np.generic):
        return None
    if isinstance(scalar, np.dtype):
        return _exact(scalar)
    for family, kind in FAMILIES.items():
        if scalar is np.dtype(kind).type:
            return family
    concrete = any(scalar is known for known in np.sctypeDict.values())  # np.floating and the like are not in it
    if not concrete or np.dtype(scalar).kind not in _WORDS:
        name = getattr(scalar, "__name__", scalar)
        raise UndescribedError(f"{name}, which is no dtype that travels; name np.float64, np.datetime64, np.str_, np.void, ... or Any")
    return _exact(np.dtype(scalar))


def _exact(dtype: Any) -> str:
    if dtype.subdtype is not None:
        raise UndescribedError(f"dtype {dtype}, which no array has; name the dtype of its items")
    text = text_of(describe(dtype))
    if not dtype.itemsize:
        raise UndescribedError(f"dtype {dtype}, whose items have no bytes; say their length")
    return text


def _scalar(np: Any, args: tuple[Any, ...]) -> Any:
    """numpy's scalar type; Any where nothing is said; a dtype where its class is named and has no parameters (np.dtypes.StringDType)."""
    if len(args) < 2:
        return Any
    cls = typing.get_origin(args[1]) or args[1]
    if isinstance(cls, type) and issubclass(cls, np.dtype) and cls is not np.dtype:
        made = cls()
        return made if made.itemsize else made.type
    scalar = next(iter(typing.get_args(args[1])), Any)
    # The bare npt.NDArray holds numpy's own type variable; from numpy 2.5 on it is an alias that cannot be asked for it by module.
    plain = getattr(sys.modules.get("numpy.typing"), "NDArray", None)
    return Any if scalar in getattr(getattr(plain, "__value__", plain), "__parameters__", ()) else scalar


# The items of a StringDType: u32 bytes and UTF-8 each, in C order; numpy keeps them in memory of its own.
_MISSING_ITEM: Final = 0xFFFFFFFF
_ITEM_HEAD: Final = struct.Struct("<I")


def packed_strings(array: Any) -> bytes:
    """The items of an array of StringDType. Raises UnicodeEncodeError."""
    parts: list[bytes] = []
    for item in array.ravel().tolist():
        if isinstance(item, str):
            data = item.encode()
            parts += (_ITEM_HEAD.pack(len(data)), data)
        else:
            parts.append(_ITEM_HEAD.pack(_MISSING_ITEM))
    return b"".join(parts)


def unpacked_strings(data: bytes, shape: tuple[int, ...], dtype: Any) -> Any:
    """The read-only array of this shape and StringDType. Raises ValueError for what ``packed_strings`` cannot have made."""
    import numpy as np

    count = math.prod(shape)
    if count * _ITEM_HEAD.size > len(data):
        raise ValueError(f"{len(data)} bytes for {count} items")
    items: list[Any] = []
    at = 0
    for _ in range(count):
        if at + _ITEM_HEAD.size > len(data):
            raise ValueError("it ends too early")
        (size,) = _ITEM_HEAD.unpack_from(data, at)
        at += _ITEM_HEAD.size
        if size == _MISSING_ITEM and hasattr(dtype, "na_object"):
            items.append(dtype.na_object)
            continue
        if at + size > len(data):
            raise ValueError("it ends too early")
        items.append(data[at : at + size].decode())
        at += size
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left over")
    array = np.array(items, dtype).reshape(shape)
    array.flags.writeable = False
    return array
