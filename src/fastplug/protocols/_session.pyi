from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort, Link

@disjoint_base
class Session:
    def __init__(self, link: Link, port: ArrayPort) -> None: ...
    version: int
    @property
    def link(self) -> Link: ...
    @property
    def port(self) -> ArrayPort: ...
