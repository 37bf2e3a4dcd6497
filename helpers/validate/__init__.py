"""Argument checks that the kernels share: a wrong call ends in a sentence, not in a wrong result."""
from helpers.validate.decoding import cache, cache_numbers
from helpers.validate.heads import before_operator, many_heads, one_head
from helpers.validate.masks import jit_function, looks_at, masking, offsets, packed
from helpers.validate.options import dropout, flag, score_scale, tiles
from helpers.validate.inputs import no_gradient, strides, tensors, uncompiled
