"""What an export made, as a table."""

from typing import Any


def report_table(proofs: dict[str, dict[str, Any]]) -> str:
    """One line a network: the precision it took, size, time, and the proof's relative errors."""
    lines = [f"{'network':<14} {'precision':<10} {'MB':>8} {'seconds':>8}  relative error to torch"]
    for network, proof in proofs.items():
        errors = "; ".join(
            f"by {by}: " + ", ".join(f"{_error(found)} on {kind} inputs" for kind, found in kinds.items())
            for by, kinds in proof["parity"].items()
        )
        if called := proof["as_called"]:
            top1 = f"{called['top1_agreement']:.1%} top-1 agreement"
            errors += f"; as called: {_error(called)}, {top1} on {called['images']} images {called['source']}"
        cells = f"{network:<14} {proof['precision']:<10} {proof['megabytes']:>8.1f} {proof['seconds']:>8.1f}"
        lines.append(f"{cells}  {errors}")
    return "\n".join(lines)


def _error(found: dict[str, Any]) -> str:
    return f"{found['relative_error']:.1e}" if found["finite"] else "not finite"
