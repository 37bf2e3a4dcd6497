"""Triton's interpreter, made strict: installed by helpers.device wherever kernels are interpreted.

- Lanes that were masked off in a load without `other` are NaN, as undefined as they are on a GPU.
- An access to what is no element of the tensor that the pointer came from, and a race of two programs of one launch
  raise MemoryFault, a sentence that names the kernel's line (accesses.py).
- bfloat16 and float8 are computed and rounded as a GPU does it (small_floats.py).
- Launches from several threads wait for each other, and each takes half the time (quick.py).

Triton 3.6 and 3.7: whatever a kernel uses (pointers, block pointers, tensor descriptors, atomics), its accesses end in
four functions of the interpreter's C++ module. A stand-in for that module tells which argument of which kernel each of
them belongs to. `watched` and `looking` see them all.
"""
import contextlib
import inspect
import threading

from helpers import device  # (before triton: helpers.device says why)

import numpy as np
from triton.runtime import interpreter

from helpers.interpreter import quick, small_floats
from helpers.interpreter.accesses import MemoryFault
from helpers.interpreter.memory import Launch, Memory

_looks = []                                       # what is called at each access, of every `with` that we are inside of


@contextlib.contextmanager
def watched(seen):
    """Call seen(kernel, argument, operation, elements, bytes, masked) at each access made inside the `with`.

    kernel and argument are names, operation is "load", "store" or "atomic"; `masked` lanes are not among the elements.
    A pointer inside a tuple argument is "name[place]".
    """
    def look(kernel, number, operation, addresses, masked, size):
        seen(kernel.__name__, kernel.names[number], operation, addresses.size, addresses.size * size, masked)

    with looking(look):
        yield


@contextlib.contextmanager
def looking(look):
    """look(kernel, number of an argument, operation, addresses, masked, bytes of an element) is called at each access.

    `addresses` [elements] has no masked lanes; `masked` is how many there were.
    """
    _looks.append(look)
    try:
        yield
    finally:
        _looks.remove(look)


def _install():
    """Once a process: Triton's interpreter becomes what the top of this file says."""
    memory, executor, builder = Memory(interpreter._interpreter, _looks), interpreter.GridExecutor, interpreter.InterpreterBuilder
    call, arguments, patch_tensor = executor.__call__, executor._init_args_hst, interpreter._patch_lang_tensor
    patch, one_at_a_time = interpreter._patch_lang, threading.RLock()

    def launch(self, *args, **kwargs):
        with one_at_a_time:
            fn, outer = self.fn, memory.launch
            self.fn = memory.launch = Launch(fn)
            try:
                return call(self, *args, **kwargs)
            except Exception as error:
                cause = error
                while cause.__cause__ is not None:       # the interpreter wraps what a kernel raises
                    cause = cause.__cause__
                if isinstance(cause, MemoryFault):
                    raise cause.with_traceback(None) from None
                raise
            finally:
                self.fn, memory.launch = fn, outer

    def to_host(self, *given):
        args, kwargs = arguments(self, *given)
        self.fn.tensors = inspect.getcallargs(self.fn, *args, **kwargs)
        return args, kwargs

    def patch_once(fn):                                  # Triton does it at every call of a function within a kernel
        done, key = memory.launch.patched if memory.launch else set(), id(fn.__globals__)
        if key in done:
            return interpreter._LangPatchScope()
        done.add(key)
        return patch(fn)

    def patch_index(tensor, scope):                      # Triton 3.6 takes int() of an array, which NumPy 2.4 refuses
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    small_floats.install()
    quick.install()
    load = builder.create_masked_load

    def load_undefined(self, ptrs, mask, other, *args, **kwargs):
        value = load(self, ptrs, mask, other, *args, **kwargs)
        if other is None and np.issubdtype(value.data.dtype, np.floating) and not mask.data.all():
            value.data = np.where(mask.data, value.data, value.data.dtype.type(np.nan))
        return value

    executor.__call__, executor._init_args_hst, builder.create_masked_load = launch, to_host, load_undefined
    interpreter._interpreter, interpreter._patch_lang, interpreter._patch_lang_tensor = memory, patch_once, patch_index


if device.INTERPRETED:
    _install()
