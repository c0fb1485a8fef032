from typing_extensions import disjoint_base

from fastplug._wire import MethodCodec
from fastplug.protocols._turn import Pending

@disjoint_base
class Flight(Pending):
    def __init__(self, codec: MethodCodec, size: int, ordered: bool) -> None: ...
