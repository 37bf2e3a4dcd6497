"""What the tests of several processes do on each of them."""
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from helpers import reference
from helpers.lessons import attention_in_a_model
from helpers.lessons.many_gpus import ring_attention, shard, unshard


def standard(q, k, v, is_causal, scale):
    """o and lse by the formulas, in the type of q."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    s = (q.shape[3]**-0.5 if scale is None else scale) * q @ k.mT
    if is_causal:
        s = s.masked_fill(~torch.ones(s.shape[2:], dtype=torch.bool).tril(), -torch.inf)
    return torch.softmax(s, -1) @ v, torch.logsumexp(s, -1)


def compares(size, B, heads, kv_heads, N, D, is_causal, zigzag, dtype, scale):
    """The largest errors of o, lse, dq, dk, dv of the whole sequence, on the first `size` ranks; None on the others."""
    group = dist.new_group(list(range(size)))
    if dist.get_rank() >= size:
        return None
    generator = torch.Generator().manual_seed(N)
    *whole, do = (torch.randn(B, h, N, D, generator=generator).to(getattr(torch, dtype))
                  for h in (heads, kv_heads, kv_heads, heads))
    dlse = torch.randn(B, heads, N, generator=generator)
    leaves = [shard(x, group, zigzag=zigzag).transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in whole]
    o, lse = ring_attention(*leaves, group=group, is_causal=is_causal, scale=scale, enable_gqa=heads != kv_heads,
                            return_lse=True, zigzag=zigzag)
    found = [o, lse, *torch.autograd.grad((o, lse), leaves, (shard(do, group, zigzag=zigzag),
                                                             shard(dlse, group, dim=2, zigzag=zigzag)))]
    assert [x.dtype for x in found] == [o.dtype, torch.float32, *(x.dtype for x in leaves)]
    exact = [x.double().requires_grad_() for x in whole]
    wanted = standard(*exact, is_causal, scale)
    wanted += torch.autograd.grad(wanted, exact, (do.double(), dlse.double()))
    return [(unshard(x.detach(), group, dim=2, zigzag=zigzag).double() - y).abs().max().item() for x, y in zip(found, wanted)]


def repeats():
    """Whether two runs of three ranks give the same bits."""
    group = dist.new_group([0, 1, 2])
    if dist.get_rank() == 3:
        return True
    leaves = torch.randn(3, 1, 1, 4, 8, generator=torch.Generator().manual_seed(dist.get_rank())).requires_grad_()
    runs = [torch.autograd.grad(ring_attention(*leaves, group=group, is_causal=True).square().sum(), leaves)[0]
            for _ in range(2)]
    return runs[0].equal(runs[1])


def cuts():
    x = torch.arange(2 * 24).reshape(24, 2)
    found = [shard(x)[:, 0].tolist(), shard(x, zigzag=False)[:, 0].tolist(), shard(torch.arange(8), dim=0).tolist()]
    whole = [unshard(shard(x, zigzag=zigzag), zigzag=zigzag).equal(x) for zigzag in (True, False)]
    said = []
    for wrong in (lambda: shard(torch.zeros(12, 2)), lambda: unshard(torch.zeros(2, 2, requires_grad=True)),
                  lambda: unshard(torch.zeros(2, 2 + dist.get_rank() // 3)),
                  lambda: ring_attention(*torch.zeros(3, 1, 1, 3, 8), is_causal=True),
                  lambda: ring_attention(torch.zeros(1, 1, 2, 8), *torch.zeros(2, 1, 1, 4, 8), is_causal=True),
                  lambda: ring_attention(*torch.zeros(3, 1, 1, 2, 8), scale=0.5 + dist.get_rank()),
                  lambda: ring_attention(*torch.zeros(3, 1, 1, 2, 8, requires_grad=dist.get_rank() > 1))):
        try:
            said.append(repr(wrong()))
        except ValueError as problem:
            said.append(str(problem))
    empty = torch.zeros(1, 1, 0, 8, requires_grad=True)
    ring_attention(empty, empty, empty).sum().backward()
    return found, whole, said, list(empty.grad.shape)


def attends_elsewhere():
    """N_q != N_k without a mask; then second derivatives, and a group that this process is not in."""
    generator = torch.Generator().manual_seed(3)
    q, (k, v) = torch.randn(1, 1, 8, 8, generator=generator), torch.randn(2, 1, 1, 16, 8, generator=generator)
    mine = [shard(x, zigzag=False) for x in (q, k, v)]
    o = unshard(ring_attention(*mine), zigzag=False)
    error = float(abs(o.numpy() - reference.attention(q, k, v)).max())
    leaf = mine[0].requires_grad_()
    dq, = torch.autograd.grad(ring_attention(leaf, *mine[1:]).sum(), leaf, create_graph=True)
    said = []
    for wrong in (lambda: dq.sum().backward(), lambda: ring_attention(*mine, group=dist.new_group([0]))):
        try:
            said.append(repr(wrong()))
        except (NotImplementedError, ValueError) as problem:
            said.append(str(problem))
    return error, said


class Layer(torch.nn.Module):
    """Causal attention of 2 heads of 8 over x [B, N, 16] by a function of q, k, v -> [B, N, 3]."""
    def __init__(self, attend):
        super().__init__()
        self.attend, self.qkv, self.out = attend, torch.nn.Linear(16, 48), torch.nn.Linear(16, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


def gradients(make, x, wrapped=lambda model: model):
    """Of all parameters of a model, after one step on x."""
    torch.manual_seed(0)
    model = make()
    parallel = wrapped(model)                            # as long as it lives, it averages
    parallel(x).square().mean().backward()
    return [p.grad for p in model.parameters()]


def trains():
    """2 sequences on 2 rings of 2 ranks, DDP over all: how far gradients are from one process's, and their largest."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "ring"))
    group, row = mesh["ring"].get_group(), mesh["data"].get_local_rank()
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(5))
    found = gradients(lambda: Layer(lambda *tensors: ring_attention(*tensors, group=group, is_causal=True)),
                      shard(x[row:row + 1], group), DistributedDataParallel)
    want = gradients(lambda: Layer(lambda *tensors: standard(*tensors, True, None)[0]), x)
    return max((a - b).abs().max().item() for a, b in zip(found, want)), max(x.abs().max().item() for x in want)


def trains_a_gpt():
    """A row of tokens on each rank, DDP over all: the gradients, and whether they are one process's of all rows."""
    def make():
        return attention_in_a_model.GPT(attention_in_a_model.TritonFlashAttention, 5, 16, 16, 2, 1)
    tokens = torch.randint(5, (4, 12), generator=torch.Generator().manual_seed(1))
    found, want = gradients(make, tokens[dist.get_rank(), None], DistributedDataParallel), gradients(make, tokens)
    return [x.tolist() for x in found], all(torch.allclose(*pair, rtol=1e-3, atol=1e-6) for pair in zip(found, want))


def dies():
    q = torch.zeros(1, 1, 4, 8)
    ring_attention(q, q, q)
    if dist.get_rank() == 1:
        raise SystemExit("enough")
    ring_attention(q, q, q)
