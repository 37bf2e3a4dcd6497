"""The online softmax: the laws of merging in exact fractions, and their limits in floats."""
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from helpers import lessons, reference

lesson = lessons.online_softmax
flash = lessons.flash_attention_numpy
LOWEST = np.finfo(np.float32).min
many = settings(max_examples=80, deadline=None)


# ---------------------------------------------------------------- exact: whole scores, and base^s in place of e^s

def power(base):
    """base^x in exact fractions, for whole x and for -inf. It has what the proof needs of e^x, and no rounding."""
    return np.vectorize(lambda x: Fraction(0) if x == -np.inf else Fraction(base)**int(x), otypes=[object])


bases = st.sampled_from([2, 3, 10])
score = st.integers(-60, 60) | st.just(-np.inf)
rows = st.lists(score, min_size=0, max_size=12)


def exact_piece(scores, base, D=2):
    """The piece of these scores with values that depend on the score and its place: (m, l, acc), all exact."""
    v = [[Fraction(1 + i, 3 + d) for d in range(D)] for i in range(len(scores))]
    return lesson.piece(np.array(scores, object), np.array(v, object).reshape(len(scores), D), power(base))


def same(a, b):
    return a[0] == b[0] and a[1] == b[1] and list(a[2]) == list(b[2])


def plus(base):
    return lambda a, b: lesson.merge(a, b, power(base))


@many
@given(rows.filter(len), bases)
def test_recurrence_is_exact(scores, base):
    m, l = lesson.online_softmax_stats(np.array(scores, object), power(base))
    assert m == max(scores)
    assert l == sum(Fraction(base)**(s - m) for s in scores if s > -np.inf)
    assert l == 0 or isinstance(l, Fraction)


@many
@given(rows, rows, rows, bases)
def test_merge_is_associative_and_commutative(x, y, z, base):
    a, b, c = (exact_piece(s, base) for s in (x, y, z))
    add = plus(base)
    assert same(add(add(a, b), c), add(a, add(b, c)))
    assert same(add(a, b), add(b, a))


@many
@given(rows, bases)
def test_the_empty_piece_is_the_identity(x, base):
    a, empty = exact_piece(x, base), (-np.inf, 0, np.array([0, 0], object))
    assert same(exact_piece([], base), empty)
    assert same(plus(base)(a, empty), a) and same(plus(base)(empty, a), a)
    assert same(exact_piece([-np.inf] * 3, base), empty)               # only masked scores: nothing was seen


@many
@given(rows, bases, st.data())
def test_any_split_in_any_order_gives_the_same(x, base, data):
    s, v = np.array(x, object), [[Fraction(i), Fraction(1, i + 1)] for i in range(len(x))]
    v = np.array(v, object).reshape(len(x), 2)
    owner = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(x), max_size=len(x))), int)
    parts = [lesson.piece(s[owner == k], v[owner == k], power(base)) for k in data.draw(st.permutations(range(5)))]
    assert same(reduce(plus(base), parts), lesson.piece(s, v, power(base)))


@many
@given(rows, bases, st.integers(-40, 40))
def test_any_reference_will_do(x, base, shift):
    """The first remark after the proof: l and acc may be measured against any number, not only the maximum."""
    m, l, acc = exact_piece(x, base)
    if m > -np.inf:
        moved = (m + shift, l * Fraction(base)**-shift, acc * Fraction(base)**-shift)
        other = exact_piece([7, -3], base)
        a, b = plus(base)((m, l, acc), other), plus(base)(moved, other)
        rescale = Fraction(base)**int(b[0] - a[0])
        assert b[1] * rescale == a[1] and list(b[2] * rescale) == list(a[2])


@many
@given(rows.filter(len), bases)
def test_l_is_the_acc_of_a_value_of_one(x, base):
    _, l, acc = lesson.piece(np.array(x, object), np.ones((len(x), 1), object), power(base))
    assert l == acc[0]


# ---------------------------------------------------------------- floats

def attention_of(s, v):
    """o and lse of one row of scores, through the float64 reference: keys are the scores, the query is 1."""
    o, lse = reference.attention(np.ones((1, 1)), s[:, None], v, scale=1.0, return_lse=True)
    return o[0], lse[0]


@many
@given(N=st.integers(1, 60), BLOCK_N=st.integers(1, 70), size=st.sampled_from([1, 100, 1e4, 1e300]),
       seed=st.integers(0, 999))
def test_blocks_of_a_row(N, BLOCK_N, size, seed):
    rng = np.random.default_rng(seed)
    s, v = size * rng.standard_normal(N), rng.standard_normal((N, 3))
    parts = [lesson.piece(s[j:j + BLOCK_N], v[j:j + BLOCK_N]) for j in range(0, N, BLOCK_N)]
    o, lse = lesson.finish(*reduce(lesson.merge, parts))
    want_o, want_lse = attention_of(s, v)
    np.testing.assert_allclose(o, want_o, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-14, atol=1e-14)
    m, l = lesson.online_softmax_stats(s)
    np.testing.assert_allclose(m + np.log(l), want_lse, rtol=1e-14, atol=1e-14)
    rest = (np.zeros(3), -np.inf)                                     # finished pieces merge as well, the empty one too
    o, lse = reduce(lesson.merge_outputs, [rest, *(lesson.finish(*part) for part in parts), rest])
    np.testing.assert_allclose(o, want_o, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-14, atol=1e-14)


@many
@given(seed=st.integers(0, 999), masked=st.floats(0, 1))
def test_rows_at_once_with_masks(seed, masked):
    """[heads, rows, n] scores, some rows of some pieces all -inf: every row comes out as it does alone, and no NaN."""
    rng = np.random.default_rng(seed)
    s, v = rng.standard_normal((2, 5, 8)), rng.standard_normal((8, 4))
    s[rng.random(s.shape) < masked] = -np.inf
    parts = [lesson.piece(s[..., j:j + 3], v[j:j + 3]) for j in range(0, 8, 3)]
    o, lse = lesson.finish(*reduce(lesson.merge, parts))
    again = reduce(lesson.merge_outputs, [lesson.finish(*part) for part in parts])
    assert o.shape == (2, 5, 4) and lse.shape == (2, 5)
    for h, i in np.ndindex(2, 5):
        seen = s[h, i] > -np.inf
        want = attention_of(s[h, i][seen], v[seen]) if seen.any() else (np.zeros(4), -np.inf)
        np.testing.assert_allclose(o[h, i], want[0], atol=1e-14)
        np.testing.assert_allclose(lse[h, i], want[1], atol=1e-14)
    np.testing.assert_allclose(again[0], o, atol=1e-14)
    np.testing.assert_allclose(again[1], lse, atol=1e-14)
    m, l = lesson.online_softmax_stats(s)
    np.testing.assert_allclose(*np.broadcast_arrays(lesson.finish(m, l, np.zeros((2, 5, 0)))[1], lse), atol=1e-14)


@pytest.mark.parametrize("sign", [1, -1])
def test_large_logits(sign):
    s, v = sign * np.array([1e4, 1e4 - 1, -1e4]), np.eye(3)
    o, lse = lesson.finish(*lesson.merge(lesson.piece(s[:1], v[:1]), lesson.piece(s[1:], v[1:])))
    want_o, want_lse = attention_of(s, v)
    np.testing.assert_allclose(o, want_o, atol=1e-12)
    assert abs(lse - want_lse) < 1e-11


def test_no_warning_and_no_nan_from_nothing(recwarn):
    empty = (-np.inf, 0.0, np.zeros(2))
    m, l, acc = lesson.merge(empty, empty)
    assert m == -np.inf and l == 0 and not acc.any()
    o, lse = lesson.finish(m, l, acc)
    assert not o.any() and lse == -np.inf and not recwarn.list


def test_lowest_is_as_good_an_identity(recwarn):
    """What the kernels start from: l, acc, o and lse are those of the empty piece, whatever it meets."""
    lowest = (np.float64(LOWEST), 0.0, np.zeros(2))
    for s in (np.array([3.0, 1.0]), np.array([-1e30]), np.array([-np.inf, -np.inf])):
        part = lesson.piece(s, np.arange(2.0 * len(s)).reshape(-1, 2))
        _, l, acc = lesson.merge(lowest, part)
        assert l == part[1] and (acc == part[2]).all()
        for x, y in zip(lesson.finish(*lesson.merge(lowest, part)), lesson.finish(*part)):
            assert np.array_equal(x, y)
    assert lesson.finish(*lesson.merge(lowest, lowest))[1] == -np.inf and not recwarn.list


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_not_hidden(bad):
    with np.errstate(invalid="ignore"):
        part = lesson.piece(np.array([1.0, bad]), np.ones((2, 1)))
        o, lse = lesson.finish(*lesson.merge(part, lesson.piece(np.array([2.0]), np.ones((1, 1)))))
        assert np.isnan(o).all() and np.isnan(lse)
        assert np.isnan(lesson.online_softmax_stats(np.array([1.0, bad]))[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_are_kept(dtype):
    s, v = np.linspace(-2, 2, 12).astype(dtype).reshape(3, 4), np.ones((4, 2), dtype)
    both = lesson.merge(lesson.piece(s, v), lesson.piece(-s, v))
    results = [*both, *lesson.finish(*both), *lesson.online_softmax_stats(s),
               *lesson.merge_outputs(lesson.finish(*both), lesson.finish(*both))]
    assert {x.dtype for x in results} == {np.dtype(dtype)}


def test_it_is_the_inner_loop_of_flash_attention():
    rng = np.random.default_rng(1)
    q, k, v = rng.standard_normal((3, 33, 8))
    s = 8**-0.5 * q @ k.T
    parts = [lesson.piece(s[:, j:j + 10], v[j:j + 10]) for j in range(0, 33, 10)]
    o, _ = lesson.finish(*reduce(lesson.merge, parts))
    np.testing.assert_allclose(o, flash.flash_attention_numpy(q, k, v, BLOCK_N=10), atol=1e-14)


@pytest.mark.parametrize("kind", [np.int64, np.int8, bool])
def test_whole_numbers_are_scores_too(kind):
    s, v = np.array([[1, 3, 0], [0, 2, 7]]).astype(kind), np.array([[1, 2], [3, 4], [5, 6]])
    exact = s.astype(float)
    for whole, want in zip(lesson.online_softmax_stats(s), lesson.online_softmax_stats(exact)):
        assert whole.dtype == np.float64 and np.array_equal(whole, want)
    for whole, want in zip(lesson.piece(s, v), lesson.piece(exact, v)):
        np.testing.assert_allclose(whole, want, rtol=1e-12)
    m, l = lesson.online_softmax_stats(s[:, :0])
    assert (m == -np.inf).all() and (l == 0).all()
