"""The checks of lesson 12: right versions pass, and each property catches its mistake, alone."""
import pytest
import torch

from helpers import check, lessons, reference
from helpers.device import DEVICE
from reports import failed, report, stub

lesson = lessons.attention_in_a_model
flash = lesson.TritonFlashAttention


def layer(kind=None):
    def fn(x, w_q, w_k, w_v, w_o, heads):
        B, N, E = x.shape
        q, k, v = ((x @ w.T).unflatten(2, (heads, -1)).transpose(1, 2) for w in (w_q, w_k, w_v))
        if kind == "one" and heads == 1 and B == 1:
            q = 1.1 * q
        if kind == "token" and N == 1:                   # cut like cards are dealt
            q, k, v = ((x @ w.T).unflatten(2, (-1, heads)).permute(0, 3, 1, 2) for w in (w_q, w_k, w_v))
            return (reference.torch_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)) @ w_o.T
        if kind == "heads" and heads > 1 and N != 16:
            k = k[:, :1].expand(-1, heads, -1, -1) if N > 1 else k
        if kind == "batches":
            k = k[:1].expand(B, -1, -1, -1)
        leaks = kind == "leak" and N == 16
        return reference.torch_attention(q, k, v, is_causal=not leaks).transpose(1, 2).flatten(2) @ w_o.T
    return fn



class NotAttention(flash):
    def attend(self, q, k, v, dropout_p, seed):
        return super().attend(q if self.dropout else 1.1 * q, k, v, dropout_p, seed)


class DropsInEvaluation(flash):
    def attend(self, q, k, v, dropout_p, seed):
        seed = int(torch.randint(2**31 - 1, ())) if self.dropout else None
        return super().attend(q, k, v, self.dropout, seed)


class IgnoresTheTorchSeed(flash):
    calls = 0

    def attend(self, q, k, v, dropout_p, seed):
        IgnoresTheTorchSeed.calls += 1
        return super().attend(q, k, v, dropout_p, seed and IgnoresTheTorchSeed.calls)


class OneMask(flash):
    def attend(self, q, k, v, dropout_p, seed):
        return super().attend(q, k, v, dropout_p, seed and 7)


class DoesNotGrow(flash):
    def attend(self, q, k, v, dropout_p, seed):
        return (1 - dropout_p) * super().attend(q, k, v, dropout_p, seed)


class DropsOutputs(flash):
    def attend(self, q, k, v, dropout_p, seed):
        return torch.nn.functional.dropout(super().attend(q, k, v, 0.0, None), dropout_p)


class WeightsThatSumToOne(lesson.Attention):
    """Drops weights and divides what is left by its sum."""
    def attend(self, q, k, v, dropout_p, seed):
        s = q @ k.mT / q.shape[3]**0.5
        return self.weigh(s, dropout_p, seed) @ v

    def kept(self, s, dropout_p, seed):
        generator = torch.Generator(s.device).manual_seed(seed or 0)
        return torch.rand(s.shape, generator=generator, device=s.device) >= dropout_p

    def weigh(self, s, dropout_p, seed):
        p = torch.softmax(s, -1) * self.kept(s, dropout_p, seed)
        return p / p.sum(-1, keepdim=True)


class MasksScores(WeightsThatSumToOne):
    """Takes scores out before the softmax, which comes to the same."""
    def weigh(self, s, dropout_p, seed):
        return torch.softmax(s.masked_fill(~self.kept(s, dropout_p, seed), -torch.inf), -1)


class Stub(lesson.Attention):
    def attend(self, q, k, v, dropout_p, seed):
        raise NotImplementedError


def decode(kind=None):
    def fn(layer, x, cache):
        n = x.shape[1]
        q = layer.split(layer.q_proj(x), layer.num_heads)
        k, v = (layer.split(proj(x), layer.kv_heads) for proj in (layer.k_proj, layer.v_proj))
        if cache is not None:
            if kind != "one" or n > 1 or layer.kv_heads < 4:           # "one": a single token sees itself only
                k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
        elif kind == "first" and n == 7:
            q = 1.1 * q
        group = layer.num_heads // layer.kv_heads
        all_k, all_v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if kind == "groups" and group > 1:
            all_k = k.repeat(1, group, 1, 1)
        if kind == "several" and n > 1 and cache is not None and layer.kv_heads == 4:                # top left
            seen = torch.ones(n, k.shape[2], dtype=torch.bool, device=DEVICE).tril()
            s = (q @ all_k.mT / q.shape[3]**0.5).masked_fill(~seen, -torch.inf)
            o = torch.softmax(s, -1) @ all_v
        else:
            o = reference.torch_attention(q, all_k, all_v, is_causal=True)
        if kind == "cache" and layer.kv_heads < 4 and n == 2:
            k = k[:, :, 1:]
        return layer.merge(o), (k, v)
    return fn


CASES = [
    (check.attention_layer, (), layer(), {
        "one head": layer("one"), "several heads of a single token": layer("token"), "several heads": layer("heads"),
        "several batches": layer("batches"), "earlier tokens do not see later ones": layer("leak")}),
    (check.attention_dropout, (), flash, {
        "without dropout it is attention": NotAttention, "in evaluation nothing is dropped": DropsInEvaluation,
        "the same torch seed drops the same weights": IgnoresTheTorchSeed, "every call drops others": OneMask,
        "what is left grows, so that the mean stays": DoesNotGrow, "weights are dropped, not outputs": DropsOutputs,
        "what is left is not made to sum to 1": WeightsThatSumToOne}),
    (check.decoding, (flash,), decode(), {
        "the first tokens": decode("first"), "one token at a time": decode("one"),
        "several tokens at a time": decode("several"), "shared key heads": decode("groups"),
        "the cache holds the keys and values of all tokens": decode("cache")}),
]


@pytest.mark.parametrize("function,more,right,mistakes", CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_right_and_stub(function, more, right, mistakes, capsys):
    found = report(function, right, capsys, *more)
    assert found == dict.fromkeys(mistakes, "ok"), found

    function(Stub if right is flash else stub, *more)
    assert capsys.readouterr().out.strip().endswith("not attempted yet")


@pytest.mark.parametrize("function,more,name,wrong", [(f, more, name, wrong) for f, more, _, mistakes in CASES
                                                      for name, wrong in mistakes.items()],
                         ids=lambda x: x if isinstance(x, str) else "")
def test_a_wrong_version_fails_its_property_alone(function, more, name, wrong, capsys):
    found = report(function, wrong, capsys, *more)
    assert failed(found) == [name], found


def test_layers_by_the_formula_pass_too(capsys):
    found = report(check.attention_dropout, lesson.StandardAttention, capsys)
    assert found and not failed(found)


def test_scores_of_minus_infinity_are_no_dropout(capsys):
    assert failed(report(check.attention_dropout, MasksScores, capsys)) == ["what is left is not made to sum to 1"]
