"""The checks of rows and of matrix products: right answers pass, and each property catches its mistake, alone."""
import pytest
import torch

from helpers import check


# ---------------------------------------------------------------- rows

def row_mistakes(right):
    """A wrong version of softmax, or of its logarithm, for every property that they share."""
    def where(applies, spoil):
        return lambda x: spoil(right(x), x) if applies(x) else right(x)

    def complete_blocks(x, block=64):                    # what a grid over whole blocks of columns would see
        whole = x.shape[1] // block * block
        return torch.cat([right(x[:, :whole]), torch.zeros_like(x[:, whole:])], 1) if whole < x.shape[1] > 1 else right(x)

    def subtracting(limit):
        """The formula with another number in the place of the maximum."""
        def wrong(x):
            s = x - limit(x.max(1, keepdim=True).values)
            l = torch.exp(s).sum(1, keepdim=True)
            return s - torch.log(l) if right is log_softmax else torch.exp(s) / l
        return wrong

    def unwritten(z, x):
        out = torch.empty_like(z)
        out[1:] = z[1:]
        return out

    def in_place(x):
        x += 1
        return right(x)

    as_if_contiguous = lambda x: right(x.as_strided(x.shape, (x.shape[1], 1)))
    return {
        "the values are right": where(lambda x: x.shape == (3, 1024), lambda z, x: z * 1.01),
        "a length that is no power of two": complete_blocks,
        "a single column": where(lambda x: x.shape[1] == 1, lambda z, x: x),
        "scores of 1e4": subtracting(lambda m: m.clamp(max=0)),
        "scores of -1e4 and less": subtracting(lambda m: m.clamp(min=0)),
        "rows that lie apart in memory": as_if_contiguous,
        "every output element is written": where(lambda x: x.shape[0] > 1, unwritten),
        "the inputs are left as they were": lambda x: in_place(x) if x.shape == (6, 256) else right(x),
    }


def softmax(x):
    return torch.softmax(x, dim=1)


def log_softmax(x):
    return torch.log_softmax(x, dim=1)


def masked_as_zero(x):
    return softmax(torch.where(x == -float("inf"), 0.0, x))


# ---------------------------------------------------------------- products

def product_mistakes(right):
    """A wrong version of an operation with one matrix product inside, for every property that they share.

    The first tensor is [M, K], a result is [M, N].
    """
    def where(applies, spoil):
        return lambda *t: spoil(right(*t)) if applies(t[0].shape, right(*t).shape[1]) else right(*t)

    def whole_steps(*t):                                 # a loop of K // 16 steps
        whole = t[0].shape[1] // 16 * 16
        return right(t[0][:, :whole], t[1].narrow(1 if right is linear else 0, 0, whole), *t[2:])

    def last_row_is_zero(z):
        z[-1] = 0
        return z

    def in_float16(*t):
        if t[0].dtype != torch.float16:
            return right(*t)
        total = torch.zeros_like(right(*t))
        b = t[1].T if right is linear else t[1]
        for k in range(len(b)):
            total += t[0][:, k:k + 1] * b[k:k + 1]
        return total

    def unwritten(z):
        out = torch.empty_like(z)
        out[:-1] = z[:-1]
        return out

    def in_place(*t):
        z = right(*t)
        if t[0].shape == (192, 64):
            t[1].mul_(2)
        return z

    return {
        "the values are right": where(lambda s, N: s == (128, 192), lambda z: z + 1),
        "rows or columns that are no multiple of the block": where(lambda s, N: s[0] == 50 or N == 77, last_row_is_zero),
        "an inner length that is no multiple of the block": whole_steps,
        "a single row and a single column": where(lambda s, N: s[0] == 1, lambda z: z + 1),
        "float16 is summed in float32": in_float16,
        "every output element is written": where(lambda s, N: s[0] in (33, 64) and s[1] == 64, unwritten),
        "the inputs are left as they were": in_place,
    }


def matmul(a, b):
    return a @ b


def linear(x, w, bias):
    return x @ w.T + bias


def as_if_contiguous(a, b):
    return a.as_strided(a.shape, (a.shape[1], 1)) @ b.as_strided(b.shape, (b.shape[1], 1))


# each operation: its check, a right version, and a wrong version for every property
OPERATIONS = {
    "softmax": (check.softmax, softmax, row_mistakes(softmax) | {"scores of -inf weigh nothing": masked_as_zero}),
    "log_softmax": (check.log_softmax, log_softmax, row_mistakes(log_softmax)),
    "matmul": (check.matmul, matmul, product_mistakes(matmul) | {"views that are not contiguous": as_if_contiguous}),
    "linear": (check.linear, linear, product_mistakes(linear)),
}
every = pytest.mark.parametrize("operation", OPERATIONS)


def report(operation, fn, capsys):
    """What the check prints: {property: "ok" or the problem}."""
    OPERATIONS[operation][0](fn)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == operation
    return {line[8:].split(": ")[0]: "ok" if line.startswith("  ok") else line.split(": ", 1)[1] for line in lines[1:]}


@every
def test_a_right_version_passes(operation, capsys):
    found = report(operation, OPERATIONS[operation][1], capsys)
    assert set(found.values()) == {"ok"} and set(found) == set(OPERATIONS[operation][2])


@pytest.mark.parametrize("operation,name", [(o, name) for o, (_, _, mistakes) in OPERATIONS.items() for name in mistakes])
def test_a_wrong_version_fails_its_property_alone(operation, name, capsys):
    found = report(operation, OPERATIONS[operation][2][name], capsys)
    assert [n for n, result in found.items() if result != "ok"] == [name], found


@every
def test_a_stub_is_not_attempted(operation, capsys):
    def stub(*tensors):
        raise NotImplementedError
    OPERATIONS[operation][0](stub)
    assert capsys.readouterr().out.strip() == f"{operation}: not attempted yet"


@every
def test_an_exception_is_a_failed_property(operation, capsys):
    def broken(*tensors):
        raise ZeroDivisionError("by zero")
    assert all("ZeroDivisionError: by zero" in problem for problem in report(operation, broken, capsys).values())


def test_the_logarithm_of_a_softmax_is_found_out(capsys):
    found = report("log_softmax", lambda x: torch.log(softmax(x)), capsys)
    assert [n for n, result in found.items() if result != "ok"] == ["scores of 1e4", "scores of -1e4 and less"]
