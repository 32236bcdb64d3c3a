"""A program that ends when it is done: Python looks through all that was ever imported for garbage, for two seconds.

torch, torchvision and nerfstudio import some million objects. Only for programs that close their files themselves: one
that is left open in garbage is not written to its end. What is registered to be done at the end is done all the same.
"""

import atexit
import gc


def end_quickly() -> None:
    """Let this program end without a last search for garbage; asked again, it is the same."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
