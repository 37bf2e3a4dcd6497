"""Checks of attention inside a model: layers, dropout, decoding with a cache."""
import functools

import torch

from helpers import reference
from helpers.check.core import difference, differences, over, properties
from helpers.device import DEVICE


def attention_layer(fn):
    """fn(x, w_q, w_k, w_v, w_o, heads) returns causal self-attention of x [B, N, E] by weights [E, E], [B, N, E].

    q = x @ w_q.T and so on; features h * D to (h + 1) * D belong to head h.
    """
    on = over("{} batches of {} tokens, {} heads", _layer_inputs)
    properties("attention layer", [
        ("one head", on(_layer, (1, 12, 1))),
        ("several heads of a single token", on(_layer, (1, 1, 4))),
        ("several heads", on(_layer, (1, 12, 4), (1, 33, 2))),
        ("several batches", on(_layer, (3, 12, 1))),
        ("several batches of several heads", on(_layer, (2, 5, 2))),
        ("earlier tokens do not see later ones", on(_no_leak, (1, 16, 4)))], fn)


def _layer_inputs(B, N, heads):
    """x [B, N, 32], four weights [32, 32] and the number of heads."""
    torch.manual_seed(N)
    return torch.randn(B, N, 32).to(DEVICE), *[(torch.randn(32, 32) / 32**0.5).to(DEVICE) for _ in range(4)], heads


def _layer(fn, x, *rest):
    *weights, heads = rest
    return difference(fn(x, *rest), _attention(x, [(w, None) for w in weights], heads, heads, True))


def _no_leak(fn, x, *rest):
    before, x = fn(x, *rest), x.clone()
    x[:, 8:] += 1
    changed = (fn(x, *rest) - before)[0, :8].abs().amax(1) > 1e-4
    return f"token {int(changed.nonzero()[0])} changed with tokens 8 to 15" if changed.any() else ""


# ---------------------------------------------------------------- dropout

def attention_dropout(fn):
    """fn(embed_dim, num_heads, dropout=...) returns a layer with q_proj, k_proj, v_proj and out_proj."""
    properties("attention dropout", [
        ("without dropout it is attention", functools.partial(_exact, 0.0, True)),
        ("in evaluation nothing is dropped", functools.partial(_exact, 0.5, False)),
        ("the same torch seed drops the same weights",
         functools.partial(_second_call, True, "two calls after torch.manual_seed(1) differ")),
        ("every call drops others",
         functools.partial(_second_call, False, "two calls in training gave the same output")),
        ("what is left grows, so that the mean stays", _mean_stays),
        ("weights are dropped, not outputs", _whole_rows),
        ("what is left is not made to sum to 1", _sums_vary)], fn)


def _exact(dropout, training, module):
    torch.manual_seed(0)
    layer = module(32, 2, dropout=dropout).to(DEVICE).train(training)
    x = torch.randn(2, 12, 32, device=DEVICE)
    return difference(layer(x), _full(layer, x))


def _second_call(same_seed, problem, module):
    """Of one layer in training: is its second output the first one if, and only if, the torch seed is set anew?"""
    layer, x = module(32, 2, dropout=0.5).to(DEVICE), torch.randn(2, 24, 32, device=DEVICE)
    torch.manual_seed(1)
    first = layer(x)
    if same_seed:
        torch.manual_seed(1)
    return "" if torch.equal(first, layer(x)) == same_seed else problem


def summing(layer):
    """The layer, changed to return the sum of the weights that dropout left: equal scores, values of 1."""
    with torch.no_grad():
        for projection in (layer.q_proj, layer.v_proj, layer.out_proj):
            projection.weight.zero_()
            projection.bias.zero_()
        layer.v_proj.bias.fill_(1)
        torch.nn.init.eye_(layer.out_proj.weight)
    return layer


@torch.no_grad()
def _kept(module, dropout):
    """Per token and feature the sum of the weights that dropout left. [48, 32]"""
    layer = summing(module(32, 2, dropout=dropout).to(DEVICE))
    torch.manual_seed(2)
    return layer(torch.randn(2, 24, 32, device=DEVICE)).flatten(0, 1)


def _mean_stays(module):
    mean = _kept(module, 0.25).mean().item()           # of 2304 weights: the standard deviation is 0.012
    return "" if abs(mean - 1) < 0.06 else f"the weights of a query sum to {mean:.2f} on average, expected 1"


def _whole_rows(module):
    spread = _kept(module, 0.25).unflatten(1, (2, 16)).std(2).max().item()
    return "" if spread < 1e-5 else "features of one head differ where every value is 1"


def _sums_vary(module):
    sums = _kept(module, 0.25)                         # from 24 weights each: the standard deviation is 0.12
    return "" if sums.std(0).min() > 0.02 else f"the weights that are left sum to {sums.mean():.2f} for every query"


# ---------------------------------------------------------------- decoding

def decoding(fn, module):
    """fn(layer, x, cache) returns (y, cache): causal self-attention of new tokens x [B, n, E] that sees earlier ones.

    layer is a causal `module` in evaluation, which may have dropout. cache is None, or what fn returned before: (k, v),
    each [B, kv_heads, N, D]. All calls together give what the layer gives for all tokens at once.
    """
    def on(problem, *pieces, **options):
        return lambda fn: problem(fn, *_causal_layer(module, sum(pieces), **options), pieces)

    properties("decoding with a cache", [
        ("the first tokens", on(_decode, 7)),
        ("one token at a time", on(_decode, 1, 1, 1)),
        ("several tokens at a time", on(_decode, 5, 4, 3)),
        ("shared key heads", on(_decode, 4, 1, kv_heads=2)),
        ("every token sees a long past", on(_decode, 70, 1)),
        ("a layer with dropout drops nothing", on(_decode, 4, 1, dropout=0.5)),
        ("the cache holds the keys and values of all tokens", on(_cache, 4, 2, kv_heads=2))], fn)


def _decode(fn, layer, x, pieces):
    cache, want, end = None, _full(layer, x), 0
    for n in pieces:
        y, cache = fn(layer, x[:, end:end + n], cache)
        if problem := difference(y, want[:, end:end + n]):
            return f"tokens {end} to {end + n - 1}: {problem}"
        end += n
    return ""


def _cache(fn, layer, x, pieces):
    cache = None
    for part in x.split(pieces, dim=1):
        _, cache = fn(layer, part, cache)
    want = [_split(_array(projection(x)), layer.kv_heads) for projection in (layer.k_proj, layer.v_proj)]
    return differences("k v", cache, want)


def _causal_layer(module, N, kv_heads=4, dropout=0.0):
    torch.manual_seed(N)
    layer = module(32, 4, kv_heads=kv_heads, causal=True, dropout=dropout).to(DEVICE).eval()
    return layer, torch.randn(2, N, 32, device=DEVICE)


# ---------------------------------------------------------------- the formula

def _full(layer, x):
    """What a layer without dropout gives for x, from its parameters in float64."""
    linears = [(linear.weight, linear.bias) for linear in (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj)]
    return _attention(x, linears, layer.num_heads, layer.kv_heads, layer.causal)


def _attention(x, linears, heads, kv_heads, is_causal):
    """Self-attention in float64 from four (weight, bias or None): those of q, k and v, and the one behind."""
    maps = [lambda y, w=w, b=b: y @ _array(w).T + (0 if b is None else _array(b)) for w, b in linears]
    q, k, v = (_split(to(_array(x)), h) for to, h in zip(maps, (heads, kv_heads, kv_heads)))
    o = reference.attention(q, k, v, is_causal=is_causal).swapaxes(1, 2)
    return maps[3](o.reshape(*o.shape[:2], -1))


def _split(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _array(x):
    return x.detach().double().cpu().numpy()
