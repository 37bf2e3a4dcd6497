"""helpers/compiled.py: descriptors and None as arguments."""
from functools import cache

import pytest

from helpers import compiled

ARGUMENTS = dict(
    {f"{x}_desc": "tensordesc<fp16[1, 1, 64, 128]>" for x in "qkv"}, o_ptr="*fp16", lse_ptr="*fp32", o_strides=[16 * 4096 * 128, 4096 * 128, 128, 1], heads=16, group=1, N_q=4096, N_k=4096,
    scale=0.1, D=128, BLOCK_M=64, BLOCK_N=64, BLOCK_D=128, IS_CAUSAL=False, EVEN=True, DOT="fp16")


@cache
def made(**changes):
    return compiled.compile_kernel("prefetch", "flash_attention_v3_kernel", ARGUMENTS | changes, num_stages=2)


def test_none_is_a_constant_and_a_descriptor_a_parameter():
    found = made()
    assert "UTMALDG" in found["sass"]                     # tiles come by the copy engine
    parameters = found["ptx"][found["ptx"].index(".entry"):].split(")")[0]
    assert parameters.count(".align 64 .b8") == 3        # descriptors are passed by value, 128 bytes each


def test_none_where_a_pointer_is_needed_is_refused():
    with pytest.raises(RuntimeError, match="flash_attention_v3_kernel did not compile for sm_90"):
        made(o_ptr=None)
