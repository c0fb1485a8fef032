from fastplug._wire_buffer import Codec
from fastplug.annotation import TypeNode

__all__ = ["compile_node", "has_arrays"]

def compile_node(node: TypeNode) -> Codec: ...
def has_arrays(codec: Codec) -> bool: ...
