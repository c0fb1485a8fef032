from typing import final

from fastplug._wire import MethodCodec
from fastplug.protocols._turn import Pending

@final
class Flight(Pending):
    def __init__(self, codec: MethodCodec, size: int, ordered: bool) -> None: ...
