def cpu_features() -> list[str]:
    """The instruction sets among `avx2`, `avx512f`, `avx512_bf16` and `amx_bf16` that this processor has and
    this operating system saves the registers of; empty on anything but x86-64."""

def retain_freed_memory() -> bool:
    """Makes malloc keep large freed blocks for the rest of the process, so that new large tensors do not page
    their memory in anew. False, and nothing changed, where the C library is not glibc."""
