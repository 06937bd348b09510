"""Print medians, percentiles and ratios."""

from collections.abc import Mapping, Sequence
from statistics import median


def compare(seconds: Mapping[str, Sequence[float]], *, baseline: str, unit: int) -> None:
    """Print each side's median, its rate, and its ratio to the baseline's."""
    limit = median(seconds[baseline])
    for side, rounds in seconds.items():
        middle = median(rounds)
        spread = f"{min(rounds):.2f}-{max(rounds):.2f}"
        print(
            f"  {side:15} {middle:6.2f} s  ({spread})  {unit / middle:5.1f}/s"
            f"  x{middle / limit:.2f} of the {baseline}"
        )


def cpu(seconds: Mapping[str, Sequence[float]], *, baseline: str) -> None:
    """Print each side's median in microseconds, and its ratio to the baseline's."""
    limit = median(seconds[baseline])
    for side, rounds in seconds.items():
        middle = median(rounds)
        spread = f"{min(rounds) * 1e6:.0f}-{max(rounds) * 1e6:.0f}"
        print(f"  {side:15} {middle * 1e6:5.0f} us  ({spread})  x{middle / limit:.1f}")


def distribution(title: str, seconds: Sequence[float]) -> None:
    """Print median and 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    print(
        f"  {title}: median {median(ordered) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms,"
        f" {len(ordered)} samples"
    )
