from typing_extensions import disjoint_base

from fastplug._wire import ArrayPort

@disjoint_base
class Description: ...

@disjoint_base
class Described(ArrayPort): ...

class InlineArrays(Described): ...
