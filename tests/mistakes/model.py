"""Right and wrong versions of attention inside a model: operators, layers, dropout, decoding with a cache."""
import torch

from helpers import check, lessons, reference
from mistakes.ways import mistaken

lesson = lessons.attention_in_a_model
standard, flash = lesson.StandardAttention, lesson.TritonFlashAttention


def layer(x, w_q, w_k, w_v, w_o, heads, pick=lambda k: k, is_causal=True, dealt=False):
    q, k, v = ((x @ w.T).unflatten(2, (-1, heads) if dealt else (heads, -1)) for w in (w_q, w_k, w_v))
    q, k, v = (x.permute(0, 3, 1, 2) if dealt else x.transpose(1, 2) for x in (q, k, v))
    return reference.torch_attention(q, pick(k), v, is_causal=is_causal).transpose(1, 2).flatten(2) @ w_o.T


layers = mistaken(layer)


def one_after_another(x, w_q, w_k, w_v, w_o, heads):
    """Cuts heads out of tokens: right for one head, and for one token."""
    q, k, v = ((x @ w.T).reshape(len(x), heads, x.shape[1], -1) for w in (w_q, w_k, w_v))
    return reference.torch_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ w_o.T


LAYER = dict(right=[layer], wrong={
    "one head": lambda x, w_q, *a: layer(x, 1.1 * w_q, *a),
    "several heads of a single token": layers(dealt=True),
    "several heads": [layers(dealt=True), one_after_another, layers(pick=lambda k: k[:, :1].expand(k.shape))],
    "several batches": layers(pick=lambda k: k[:1].expand(k.shape)),
    "several batches of several heads": layers(pick=lambda k: k[:1].expand(k.shape) if k.shape[1] > 1 else k),
    "earlier tokens do not see later ones": layers(is_causal=False)})


# ---------------------------------------------------------------- an operator

def make_softmax(name, compute=lessons.softmax_triton.softmax, fake=torch.empty_like,
                 setup=lambda ctx, inputs, output: ctx.save_for_backward(output),
                 saved=lambda ctx: ctx.saved_tensors[0],
                 backward=lambda z, dz: z * (dz - (z * dz).sum(1, keepdim=True))):
    op = torch.library.custom_op(name, compute, mutates_args=(), schema="(Tensor x) -> Tensor")
    if fake:
        op.register_fake(fake)
    if backward:
        op.register_autograd(lambda ctx, dz: backward(saved(ctx), dz), setup_context=setup)
    return op


operators = mistaken(make_softmax)


def by_functions(name):
    """The same, said another way: functions of torch.library that take the operator's name."""
    torch.library.custom_op(name, mutates_args=())(_annotated)
    torch.library.register_fake(name, lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device))
    torch.library.register_autograd(name, lambda ctx, dz: ctx.z * dz - ctx.z * (ctx.z * dz).sum(1)[:, None],
                                    setup_context=lambda ctx, inputs, output: setattr(ctx, "z", output))
    space, op = name.split("::")
    return getattr(getattr(torch.ops, space), op).default


def _annotated(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x).copy_(torch.softmax(x, 1))


def in_place(x):
    return torch.empty_like(x).copy_(x.copy_(torch.softmax(x, 1)))


last = []                                                # what the backward pass of a wrong operator finds
WIDE = operators(backward=lambda z, dz: z * (dz - (z * dz).sum(1)))              # a row where a column is meant
LAST = dict(setup=lambda ctx, inputs, output: last.append(output), saved=lambda ctx: last[-1])
OPERATOR = dict(right=[make_softmax, by_functions], wrong={
    "the numbers": [operators(compute=lambda x: 2 * lessons.softmax_triton.softmax(x)),
                    operators(compute=lambda x: torch.empty_like(x).copy_(torch.softmax(x, 0)))],
    "the input stays as it was": operators(compute=in_place),
    "the fake's shape": [operators(fake=lambda x: x.new_empty(x.shape[0])), operators(fake=None),
                         operators(fake=lambda x: x.new_empty(x.shape[::-1]))],
    "the fake's type": operators(fake=lambda x: torch.empty_like(x, dtype=torch.float32)),
    "the fake's strides": operators(fake=lambda x: x.new_empty(x.shape)),
    "the gradient": [operators(backward=lambda z, dz: z * dz), operators(backward=None), WIDE,
                     operators(setup=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)),
                     operators(setup=lambda ctx, inputs, output: None)],
    "two calls, then their gradients": operators(**LAST),
    "forward and backward in one graph": [operators(fake=None), operators(backward=lambda z, dz: (
        z * (dz - torch.tensor((z * dz).sum(1, keepdim=True).cpu().numpy()).to(z.device))))],
    "one graph for all lengths": operators(fake=lambda x: torch.empty_like(x).expand(x.shape[0], int(x.shape[1])))})


# ---------------------------------------------------------------- dropout

def attending(attend):
    """An attention layer with this in the place of its attend(q, k, v, dropout_p)."""
    return type("Wrong", (standard,), dict(attend=attend, usual=standard.attend))


def weighing(weigh):
    """… whose weights are weigh(s, keep)."""
    def attend(self, q, k, v, dropout_p):
        s = q @ k.mT / q.shape[3]**0.5
        return weigh(s, torch.rand(s.shape).to(s.device) >= dropout_p) @ v
    return attending(attend)


def seeded(seed):
    """… that draws from the seed that seed(layer) says, whatever torch's seed is."""
    def attend(self, *tensors_and_dropout_p):
        with torch.random.fork_rng():
            torch.manual_seed(seed(self))
            return self.usual(*tensors_and_dropout_p)
    return attending(attend)


def calls(layer):
    layer.calls = getattr(layer, "calls", 0) + 1
    return layer.calls


def stub(self, *args):
    raise NotImplementedError


SUM_TO_ONE = [weighing(lambda s, keep: (p := torch.softmax(s, -1) * keep) / p.sum(-1, keepdim=True)),
              weighing(lambda s, keep: torch.softmax(s.masked_fill(~keep, -torch.inf), -1))]
DROPOUT = dict(right=[flash, standard], stub=attending(stub), wrong={
    "without dropout it is attention": attending(lambda self, q, *a: self.usual(1.1 * q, *a)),
    "in evaluation nothing is dropped": attending(lambda self, q, k, v, _: self.usual(q, k, v, self.dropout)),
    "the same torch seed drops the same weights": seeded(calls),
    "every call drops others": seeded(lambda layer: 7),
    "what is left grows, so that the mean stays": attending(lambda self, *a: (1 - a[-1]) * self.usual(*a)),
    "weights are dropped, not outputs": attending(lambda self, q, k, v, dropout_p: torch.nn.functional.dropout(
        self.usual(q, k, v, 0.0), dropout_p)),
    "what is left is not made to sum to 1": SUM_TO_ONE})


# ---------------------------------------------------------------- decoding

def decode(layer, x, cache, kept=lambda x: x, remember=lambda x, n: x,
           expand=lambda x, group: x.repeat_interleave(group, 1),
           attend=lambda q, k, v: reference.torch_attention(q, k, v, is_causal=True)):
    q = layer.split(layer.q_proj(x), layer.num_heads)
    k, v = (layer.split(project(x), layer.kv_heads) for project in (layer.k_proj, layer.v_proj))
    if cache is not None:
        k, v = (torch.cat((kept(old), new), 2) for old, new in zip(cache, (k, v)))
    group = layer.num_heads // layer.kv_heads
    y = layer.merge(attend(q, expand(k, group), expand(v, group)))
    return y, (remember(k, x.shape[1]), remember(v, x.shape[1]))


decoding = mistaken(decode)


def top_left(q, k, v):
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return torch.softmax((q @ k.mT / q.shape[3]**0.5).masked_fill(~seen, -torch.inf), -1) @ v


def through_the_layer(dropout_p):
    def fn(layer, x, cache):
        return decode(layer, x, cache, expand=lambda x, group: x,
                      attend=lambda q, k, v: layer.attend(q, k, v, dropout_p(layer)))
    return fn


def decoding_of(fn):
    return check.decoding(fn, standard)


DECODING = dict(right=[decode, through_the_layer(lambda layer: 0.0)], wrong={
    "the first tokens": [lambda layer, x, cache: decode(layer, 1.1 * x, cache),
                         lambda layer, x, cache: decode(layer, x, cache, attend=lambda q, k, v: v)],
    "one token at a time": [decoding(kept=lambda x: x[:, :, :0]), decoding(remember=lambda x, n: x[:, :, -n:]),
                            decoding(attend=top_left)],
    "several tokens at a time": [decoding(attend=top_left), decoding(kept=lambda x: x[:, :, 1:])],
    "shared key heads": decoding(expand=lambda x, group: x.repeat(1, group, 1, 1)),
    "every token sees a long past": [decoding(kept=lambda x: x[:, :, -16:]),
                                     decoding(remember=lambda x, n: x[:, :, -64:])],
    "a layer with dropout drops nothing": through_the_layer(lambda layer: layer.dropout),
    "the cache holds the keys and values of all tokens": [decoding(remember=lambda x, n: x[:, :, 1:]),
                                                          lambda *a: (decode(*a)[0], decode(*a)[1][::-1])]})

CASES = {check.operator: OPERATOR, check.attention_layer: LAYER, check.attention_dropout: DROPOUT, decoding_of: DECODING}
