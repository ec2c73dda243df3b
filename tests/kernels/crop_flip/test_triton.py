"""Resources of the compiled Triton kernel; test_crop_flip.py tests its values."""

from itertools import product

import pytest

from tests.kernels.triton_tools import MAIN_ARCHITECTURE, OTHER_ARCHITECTURES, KernelCase, compile_all

triton_crop_flip = pytest.importorskip("kernels.crop_flip.triton", reason="triton is not installed")

ALIGNED = {"aligned": ":16", "any": ""}  # whether the width is a multiple of 16


def kernel(size: tuple[int, int], alignment: str) -> KernelCase:
    block_r, block_e = triton_crop_flip._blocks(*size)
    return KernelCase(
        name=f"{size[0]} x {size[1]}, {alignment}",
        kernel="kernels.crop_flip.triton:_crop_flip_forward_kernel",
        signature={
            "images_ptr": "*u8:16",
            "top_ptr": "*i64:16",
            "left_ptr": "*i64:16",
            "flip_ptr": "*i1:16",
            "out_ptr": "*fp32:16",
            "height": "i32",
            "width": f"i32{ALIGNED[alignment]}",
            "pad": "i32",
        },
        constexprs={"BLOCK_R": block_r, "BLOCK_E": block_e},
        num_warps=triton_crop_flip.NUM_WARPS,
    )


CASES = [kernel((32, 32), "aligned"), kernel((224, 224), "aligned"), kernel((33, 5), "any")]
COMPILED = [*product(CASES, [MAIN_ARCHITECTURE]), *product(CASES[1:2], OTHER_ARCHITECTURES)]


@pytest.mark.slow
def test_compiled_for_gpus() -> None:
    """Nothing spills, and rows of a multiple of 16 pixels are stored in 128-bit words."""
    for (name, arch), resources in compile_all(COMPILED).items():
        assert resources.spills == 0, (name, arch)
        assert resources.registers <= 128, (name, arch)
        if "aligned" in name:
            assert resources.store_bits == 128, (name, arch)
