"""Checks for the exercises: one function per operation, each a list of named properties.

A check calls your function on inputs of its own, prints a line per property, and says what differed and where. It never
raises: a stub reads "not attempted yet", an exception is a failed property. Memory from `empty` and `empty_like` is
filled with NaN meanwhile, so that an output element nobody wrote is seen. Each property has inputs on which one kind of
mistake shows, and only that one.
"""
from helpers.check import cuda
from helpers.check.attention import attention
from helpers.check.backward import attention_dbias, blocked_dkdv, grouped_dkdv, softmax_backward
from helpers.check.costs import bottlenecks, causal_tiles, longest, matmul_intensity
from helpers.check.descriptors import can_describe, side_by_side
from helpers.check.eight_bits import quantize, shared_bytes, stages_that_fit
from helpers.check.entropy import entropy
from helpers.check.heads import attention_heads, loop_bounds, window_attention
from helpers.check.model import attention_dropout, attention_layer, decoding
from helpers.check.online_softmax import combine, merge, online_softmax, safe_softmax
from helpers.check.rows_and_products import linear, log_softmax, matmul, softmax
from helpers.check.scales import causal_scaled_attention, scaled_attention
from helpers.check.timing import median_time, share, tflops
from helpers.check.vectors import block_sums, cdiv, reverse, scale_add, vector_add
