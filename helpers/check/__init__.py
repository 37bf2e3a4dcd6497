"""Checks for the exercises: one function per operation, each a list of named properties.

A check calls your function on inputs of its own, prints a line per property, and says what differed and where. It never
raises: a stub reads "not attempted yet", an exception is a failed property. Memory from `empty` and `empty_like` is
filled with NaN meanwhile, so that an output element nobody wrote is seen. Each property has inputs on which one kind of
mistake shows, and as far as may be only that one. Below, behind each import, the lessons that use it.
"""
from helpers.check import cuda                                                        # vector_add_cuda, matrix_cuda
from helpers.check.vectors import block_sums, cdiv, reverse, scale_add, vector_add    # start_here, vector_add_triton
from helpers.check.rows_and_products import entropy, log_softmax, softmax             # softmax_triton
from helpers.check.rows_and_products import linear, matmul                            # matmul_triton
from helpers.check.costs import bottlenecks, causal_tiles, longest, matmul_intensity  # attention_and_memory
from helpers.check.online_softmax import combine, merge, online_softmax, safe_softmax # online_softmax
from helpers.check.attention import attention                                         # flash_attention_numpy, _triton
from helpers.check.heads import attention_heads, loop_bounds, window_attention        # causal_and_multihead
from helpers.check.gradients import attention_dbias, blocked_dkdv, softmax_backward   # gradients_of_attention
from helpers.check.backward import attention_dq, grouped_dkdv                         # backward_triton
from helpers.check.dropout import attention_with_dropout                              # backward_triton
from helpers.check.costs import shared_bytes, stages_that_fit                         # prefetch
from helpers.check.descriptors import can_describe, side_by_side                      # prefetch
from helpers.check.eight_bits import causal_scaled_attention, quantize, scaled_attention  # fp8
from helpers.check.roles import late_values, plus_one, product_by_roles, two_readers  # warp_specialization
from helpers.check.fused import added_up, backward_needs, fused_gradients, one_walk   # backward_hopper
from helpers.check.model import attention_dropout, attention_layer, decoding          # attention_in_a_model
from helpers.check.operators import operator                                          # attention_in_a_model
from helpers.check.masks import alibi, block_map, packed_attention, window_and_first  # masks_and_scores
from helpers.check.cache import merge_splits, packed_heads, read_pages                # decoding
from helpers.check.ring import merge_ranks, ring_of_ranks, shards                     # many_gpus
from helpers.check.timing import largest_by_many, largest_features, median_time, verdict  # measuring
from helpers.check.claims import average_speedup, choose, crossover                   # claims
