"""Right and wrong versions of attention inside a model: layers, dropout, decoding with a cache."""
import torch

from helpers import check, lessons, reference

lesson = lessons.attention_in_a_model
standard, flash = lesson.StandardAttention, lesson.TritonFlashAttention


def layer(x, w_q, w_k, w_v, w_o, heads, pick=lambda k: k, is_causal=True, dealt=False):
    q, k, v = ((x @ w.T).unflatten(2, (-1, heads) if dealt else (heads, -1)) for w in (w_q, w_k, w_v))
    q, k, v = (x.permute(0, 3, 1, 2) if dealt else x.transpose(1, 2) for x in (q, k, v))
    return reference.torch_attention(q, pick(k), v, is_causal=is_causal).transpose(1, 2).flatten(2) @ w_o.T


def layers(**mistake):
    return lambda *a: layer(*a, **mistake)


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


# ---------------------------------------------------------------- dropout

def attending(attend):
    """An attention layer with this in the place of its attend(q, k, v, dropout_p, seed)."""
    return type("Wrong", (standard,), dict(attend=attend, usual=standard.attend))


def weighing(weigh):
    """… whose weights are weigh(s, keep), and drawn anew from the seed."""
    def attend(self, q, k, v, dropout_p, seed):
        s = q @ k.mT / q.shape[3]**0.5
        keep = torch.rand(s.shape, generator=torch.Generator(s.device).manual_seed(seed or 0),
                          device=s.device) >= dropout_p
        return weigh(s, keep) @ v
    return attending(attend)


def of_its_own(self, q, k, v, dropout_p, seed):
    self.calls = getattr(self, "calls", 0) + 1
    return self.usual(q, k, v, dropout_p, seed and self.calls)


def stub(self, *args):
    raise NotImplementedError


SUM_TO_ONE = [weighing(lambda s, keep: (p := torch.softmax(s, -1) * keep) / p.sum(-1, keepdim=True)),
              weighing(lambda s, keep: torch.softmax(s.masked_fill(~keep, -torch.inf), -1))]
DROPOUT = dict(right=[flash, standard], stub=attending(stub), wrong={
    "without dropout it is attention": attending(lambda self, q, *a: self.usual(1.1 * q, *a)),
    "in evaluation nothing is dropped": attending(lambda self, q, k, v, *_: self.usual(q, k, v, self.dropout, 7)),
    "the same torch seed drops the same weights": attending(of_its_own),
    "every call drops others": attending(lambda self, *a: self.usual(*a[:-1], a[-1] and 7)),
    "what is left grows, so that the mean stays": attending(lambda self, *a: (1 - a[-2]) * self.usual(*a)),
    "weights are dropped, not outputs": attending(lambda self, q, k, v, dropout_p, seed: torch.nn.functional.dropout(
        self.usual(q, k, v, 0.0, None), dropout_p)),
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


def decoding(**mistake):
    return lambda *a: decode(*a, **mistake)


def top_left(q, k, v):
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return torch.softmax((q @ k.mT / q.shape[3]**0.5).masked_fill(~seen, -torch.inf), -1) @ v


def through_the_layer(dropout_p, seed):
    def fn(layer, x, cache):
        return decode(layer, x, cache, expand=lambda x, group: x,
                      attend=lambda q, k, v: layer.attend(q, k, v, dropout_p(layer), seed))
    return fn


def decoding_of(fn):
    return check.decoding(fn, standard)


DECODING = dict(right=[decode, through_the_layer(lambda layer: 0.0, None)], wrong={
    "the first tokens": [lambda layer, x, cache: decode(layer, 1.1 * x, cache),
                         lambda layer, x, cache: decode(layer, x, cache, attend=lambda q, k, v: v)],
    "one token at a time": [decoding(kept=lambda x: x[:, :, :0]), decoding(remember=lambda x, n: x[:, :, -n:]),
                            decoding(attend=top_left)],
    "several tokens at a time": [decoding(attend=top_left), decoding(kept=lambda x: x[:, :, 1:])],
    "shared key heads": decoding(expand=lambda x, group: x.repeat(1, group, 1, 1)),
    "every token sees a long past": [decoding(kept=lambda x: x[:, :, -16:]),
                                     decoding(remember=lambda x, n: x[:, :, -64:])],
    "a layer with dropout drops nothing": through_the_layer(lambda layer: layer.dropout, 7),
    "the cache holds the keys and values of all tokens": [decoding(remember=lambda x, n: x[:, :, 1:]),
                                                          lambda *a: (decode(*a)[0], decode(*a)[1][::-1])]})

CASES = {check.attention_layer: LAYER, check.attention_dropout: DROPOUT, decoding_of: DECODING}
