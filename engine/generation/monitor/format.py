"""Format numbers and texts for people."""


def rate(per_second: float) -> str:
    """Return a rate in short form, e.g. `0.3`, `42`, `1.2 k`."""
    value, unit = per_second, ""
    for larger in (" k", " M", " G"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.{1 if value < 9.95 else 0}f}{unit}"


def percent(share: float) -> str:
    """Return a share in percent, e.g. `54 %`."""
    return f"{100 * share:.0f} %"


def counted(count: int, one: str, many: str) -> str:
    """Return a count with its noun, e.g. `1 retry`, `1,200 retries`."""
    return f"{count:,} {one if count == 1 else many}"


def one_line(text: str) -> str:
    """Return the text without line breaks and other characters that control a terminal."""
    return " ".join("".join(it if it.isprintable() else " " for it in text).split())
