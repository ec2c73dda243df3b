"""Resources of the compiled Triton kernels; test_kd_loss.py tests their values and gradients."""

from itertools import product

import pytest

from tests.kernels.triton_tools import MAIN_ARCHITECTURE, OTHER_ARCHITECTURES, KernelCase, compile_all

MODULE = "kernels.kd_loss.triton"


def row_kernel(
    name: str,
    student: str,
    teacher: str,
    block_c: int,
    num_warps: int,
    absent: tuple[str, ...] = (),
    standardize: bool = False,
) -> KernelCase:
    aligned = ":16" if block_c >= 1024 else ""
    signature = {
        "student_ptr": f"*{student}:16",
        "teacher_ptr": f"*{teacher}:16",
        "labels_ptr": "*i64:16",
        "counted_ptr": "*fp32:16",
        "row_losses_ptr": "*fp32:16",
        "grad_student_ptr": f"*{'fp32' if student == 'fp16' else student}:16",
        "grad_teacher_ptr": f"*{teacher}:16",
        "student_stride": f"i32{aligned}",
        "teacher_stride": f"i32{aligned}",
        "rows": "i32:16",
        "classes": f"i32{aligned}",
        "inverse_temperature": "fp32",
        "kl_weight": "fp32",
        "w_ce": "fp32",
        "label_smoothing": "fp32",
        "ignore_index": "i32",
    }
    return KernelCase(
        name=name,
        kernel=f"{MODULE}:_kd_loss_row_kernel",
        signature={argument: kind for argument, kind in signature.items() if argument not in absent},
        constexprs=dict.fromkeys(absent) | {"STANDARDIZE": standardize, "BLOCK_C": block_c},
        num_warps=num_warps,
    )


CASES = [
    row_kernel("ten_classes", "fp32", "fp32", 16, 1),
    row_kernel("thousand_classes", "bf16", "bf16", 1024, 4, absent=("grad_teacher_ptr",)),
    row_kernel("many_classes", "fp32", "fp32", 4096, 8),
    row_kernel("many_classes_mixed", "fp16", "bf16", 4096, 8),
    row_kernel("ten_classes_standardized", "fp32", "fp32", 16, 1, standardize=True),
    row_kernel("many_classes_standardized", "fp16", "bf16", 4096, 8, standardize=True),
    KernelCase(
        name="count",
        kernel=f"{MODULE}:_kd_loss_count_kernel",
        signature={
            "labels_ptr": "*i64:16",
            "counted_ptr": "*fp32:16",
            "rows": "i32:16",
            "ignore_index": "i32",
        },
        constexprs={"BLOCK_B": 1024},
    ),
    KernelCase(
        name="reduce",
        kernel=f"{MODULE}:_kd_loss_reduce_kernel",
        signature={
            "row_losses_ptr": "*fp32:16",
            "counted_ptr": "*fp32:16",
            "total_ptr": "*fp32:16",
            "kl_ptr": "*fp32:16",
            "ce_ptr": "*fp32:16",
            "rows": "i32:16",
            "kl_scale": "fp32",
            "w_kl": "fp32",
            "w_ce": "fp32",
        },
        constexprs={"BLOCK_B": 1024},
    ),
]


COMPILED = [*product(CASES, [MAIN_ARCHITECTURE]), *product(CASES[2:3], OTHER_ARCHITECTURES)]


@pytest.mark.slow
def test_compiled_for_gpus() -> None:
    """Nothing spills, and logits with aligned rows are loaded in 128-bit words."""
    for (name, arch), resources in compile_all(COMPILED).items():
        assert resources.spills == 0, (name, arch)
        assert resources.registers <= 128, (name, arch)
        if name in ("thousand_classes", "many_classes", "many_classes_mixed", "many_classes_standardized"):
            assert resources.load_bits == 128, (name, arch)
