"""What four GPUs can do at most, by their maker's own figures. Nothing here was measured; lessons say so where they use
it.

Products are dense (no sparsity) and summed in float32: data sheets like to print twice the number, for matrices that
are half zeros. Shared memory per multiprocessor (SM) is from the CUDA C++ Programming Guide's table of compute
capabilities.
"""
from typing import NamedTuple


class GPU(NamedTuple):
    """The ceilings of one GPU. GB, MB for HBM and TB/s count in thousands, L2 and shared memory in 1024s."""
    tensor_tflops: float   # float16 products on tensor cores
    fp32_tflops: float     # float32 arithmetic without them, what a softmax runs on
    gb_per_s: float        # memory bandwidth
    memory_gb: int
    l2_mb: int
    shared_kb: int         # of one SM, at most
    sms: int
    clock_ghz: float       # boost clock
    source: str


GPUS = {
    "A100 SXM 80GB": GPU(312, 19.5, 2039, 80, 40, 164, 108, 1.41,
                         "NVIDIA A100 Tensor Core GPU data sheet (80GB SXM); A100 white paper (2020)"),
    "H100 SXM": GPU(989, 67, 3350, 80, 50, 228, 132, 1.98,
                    "NVIDIA H100 Tensor Core GPU data sheet (SXM); H100 white paper (2022)"),
    "H200 SXM": GPU(989, 67, 4800, 141, 60, 228, 132, 1.98,
                    "NVIDIA H200 Tensor Core GPU data sheet (SXM); L2 as its driver reports it"),
    "RTX 4090": GPU(165.2, 82.6, 1008, 24, 72, 100, 128, 2.52,
                    "NVIDIA Ada GPU architecture white paper (2022), appendix A"),
}
