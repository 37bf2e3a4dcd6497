"""Functions by name. An operator of PyTorch takes tensors, numbers and strings: a name tells it which kernels to build."""
import torch

_rules = {}                                              # {name: (functions, what they are handed but for the tensors)}


def remember(functions: tuple, extra=()) -> tuple:
    """The name of these functions with the numbers in extra, the same for the same ones; and the tensors in extra."""
    numbers = tuple(None if isinstance(x, torch.Tensor) else x for x in extra)
    known = [name for name, rule in _rules.items() if rule[0] == functions and repr(rule[1]) == repr(numbers)]
    name = known[0] if known else str(len(_rules))
    _rules[name] = functions, numbers
    return name, [x for x in extra if isinstance(x, torch.Tensor)]


def recall(name: str, tensors) -> tuple:
    """The functions of a name, and extra again, with these tensors in their places."""
    functions, numbers = _rules[name]
    tensors = iter(tensors)
    return functions, tuple(next(tensors) if x is None else x for x in numbers)
