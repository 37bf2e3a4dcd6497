"""Launch a kernel without finding out again what the last call of the same kind found out.

At each launch Triton looks at every argument, to tell which of its compiled kernels is meant, and a descriptor is checked
whenever one is made. With a short sequence the GPU is done before that. Both depend on the *kind* of a call alone: on
shapes, strides, types and flags. So the compiled kernel, and all arguments that do not change, are kept by kind.
"""
import torch

MOST = 1024                                              # kinds that are kept; with one more, all are forgotten
_kept = {}


def kind_of(q, k, v) -> tuple:
    """What Triton tells tensors [B, heads, N, D] apart by, if they begin at multiples of 16 bytes."""
    return q.shape, q.stride(), k.shape, k.stride(), v.stride(), q.dtype, q.device


def at_once(*tensors) -> bool:
    """Whether kernels may be launched on these tensors without an operator, which costs the host time.

    Not if the compiler looks on, a mode of PyTorch (a tracer, a counter, a checkpoint's policy), or one of the tensors'
    own types.
    """
    return (not torch.compiler.is_compiling() and not torch._C._len_torch_dispatch_stack()
            and all(type(x) in (torch.Tensor, torch.nn.Parameter) for x in tensors))


def launch(kernel, kind, plan, **changing):
    """Launch a Triton or Gluon kernel on the GPU of the first of the `changing` arguments.

    `changing` are the arguments that differ among calls of one kind: floats, pointers to multiples of 16 bytes, and
    tensors in place of descriptors of them. plan() is asked at the first call of a kind. It returns the grid, and a
    dictionary of all other arguments, of the descriptors, and of options. `kind` holds whatever these depend on.
    """
    with torch.cuda.device_of(next(iter(changing.values()))):          # Triton launches on the current GPU
        kept = _kept.get((id(kernel), kind))
        if kept is None:
            return _first(kernel, kind, plan, changing)
        _, compiled, grid, arguments, places, descriptors = kept
        given = arguments.copy()
        for place, descriptor, value in zip(places, descriptors, changing.values()):
            given[place] = of(descriptor, value) if descriptor else value
        compiled[grid](*given)


def _first(kernel, kind, plan, changing):
    grid, others = plan()
    compiled = kernel[grid](**changing | others)
    names = kernel.arg_names
    if compiled is None or not set(names) <= changing.keys() | others.keys():
        return                                           # interpreted; or tuned, and Triton knows its sizes alone
    if len(_kept) >= MOST:
        _kept.clear()
    descriptors = [of(others[name], None) if name in others else None for name in changing]
    arguments = [None if name in changing else others[name] for name in names]
    places = [names.index(name) for name in changing]
    _kept[id(kernel), kind] = kernel, compiled, (*grid, 1, 1)[:3], arguments, places, descriptors      # the id stays its


def of(descriptor, x):
    """A descriptor like this one, of another tensor x. Nothing is checked."""
    made = object.__new__(type(descriptor))
    made.__dict__ = {**descriptor.__dict__, "base": x}
    return made
