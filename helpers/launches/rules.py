"""Functions by name. An operator of PyTorch takes tensors, numbers and strings: a name tells it which kernels to build."""
import torch

_rules = {"": ((None, None), ())}                        # {name: (functions, what they are handed but for the tensors)}


def remember(functions: tuple, extra=()) -> tuple:
    """The name of these functions with the numbers in extra, the same for the same ones; and the tensors in extra."""
    numbers = tuple(None if isinstance(x, torch.Tensor) else x for x in extra)
    known = [name for name, rule in _rules.items() if rule[0] == functions and repr(rule[1]) == repr(numbers)]
    name = known[0] if known else str(len(_rules))
    _rules[name] = functions, numbers
    return name, [x for x in extra if isinstance(x, torch.Tensor)]


def recall(name: str, tensors) -> tuple:
    """The functions of a name, and extra again, with these tensors in their places. "" is a name of two that are None."""
    functions, numbers = _rules[name]
    tensors = iter(tensors)
    return functions, tuple(next(tensors) if x is None else x for x in numbers)


RULE = "Tensor[] tensors, Tensor[] learning, str mask, str score, int BLOCK, float scale"


def operator(name: str, forward, fake, backward, second):
    """forward(q, k, v, *rule) -> o, lse as an operator of PyTorch, and as a function that costs the host less time.

    fake makes the results without numbers, o in memory like q, as each gradient lies like its tensor.
    backward(q, k, v, o, lse, do, dlse, *rule) -> dq, dk, dv, and float32 gradients of the tensors that may learn, is an
    operator as well: torch.compile looks into neither. `second` is its derivative. A rule is what RULE says.
    """
    def opaque(name, run, tensors, results):
        schema = f"({', '.join(f'Tensor {x}' for x in tensors.split())}, {RULE}) -> ({results})"
        return torch.library.custom_op(name, run, mutates_args=(), schema=schema)

    def save(ctx, inputs, output):
        q, k, v, tensors, learning, *ctx.rest = inputs
        ctx.number = len(tensors)
        ctx.save_for_backward(q, k, v, *output, *tensors, *learning)

    def found(ctx, do, dlse, run):
        saved, n = ctx.saved_tensors, 5 + ctx.number
        return run(*saved[:5], do, dlse, saved[5:n], saved[n:], *ctx.rest)

    def differentiate(ctx, do, dlse):
        *of_three, learned = found(ctx, do, dlse, gradients)
        return *of_three, [None] * ctx.number, learned, *[None] * len(ctx.rest)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, number, rest, q, k, v, *tensors):
            given = q, k, v, tensors[:number], tensors[number:], *rest
            output = forward(*given)
            save(ctx, given, output)
            return output

        @staticmethod
        def backward(ctx, do, dlse):                     # create_graph=True needs an operator, for its derivative
            *of_three, learned = found(ctx, do, dlse, gradients if torch.is_grad_enabled() else backward)
            return None, None, *of_three, *[None] * ctx.number, *learned

    made = opaque(name, forward, "q k v", "Tensor, Tensor")
    gradients = opaque(f"{name}_backward", backward, "q k v o lse do dlse", "Tensor, Tensor, Tensor, Tensor[]")
    made.register_fake(fake)
    gradients.register_fake(lambda q, k, v, o, lse, do, dlse, tensors, learning, *rest: (
        *(fake(x, k, v)[0] for x in (q, k, v)), [torch.empty_like(x, dtype=torch.float32) for x in learning]))
    made.register_autograd(differentiate, setup_context=save)
    gradients.register_autograd(second)
    return made, lambda q, k, v, tensors, learning, *rest: Function.apply(
        len(tensors), rest, q, k, v, *tensors, *learning)
