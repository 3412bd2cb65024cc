"""Numbers for Prometheus, in its text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
COUNTS = (1, 2, 4, 8, 16, 32, 64)

LOCK = threading.Lock()  # one for all, held for less than a microsecond


class Counter:
    """A number that grows, for each combination of labels."""

    kind = "counter"

    def __init__(self, name: str, about: str, labels: Sequence[str] = ()) -> None:
        self.name, self.about, self.labels = name, about, labels
        self.values: dict[tuple[str, ...], int] = {} if labels else {(): 0}

    def add(self, *values: str, count: int = 1) -> None:
        """Count once, or `count` times; one value for each label."""
        with LOCK:
            self.values[values] = self.values.get(values, 0) + count

    def lines(self) -> Iterator[str]:
        """One a combination."""
        with LOCK:
            values = sorted(self.values.items())
        for names, value in values:
            yield f"{self.name}{labelled(self.labels, names)} {value}"


class Gauge:
    """A number of this moment.

    Args:
        name: in the format.
        about: what it is.
        read: gives it.
    """

    kind = "gauge"

    def __init__(self, name: str, about: str, read: Callable[[], float]) -> None:
        self.name, self.about, self.read = name, about, read

    def lines(self) -> Iterator[str]:
        """The one."""
        yield f"{self.name} {self.read()}"


class Histogram:
    """How often a number was at most so large."""

    kind = "histogram"

    def __init__(self, name: str, about: str, bounds: Sequence[float]) -> None:
        self.name, self.about, self.bounds = name, about, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a number."""
        with LOCK:
            self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    def lines(self) -> Iterator[str]:
        """One a bound, then the sum and the count."""
        with LOCK:
            counts, total = list(self.counts), self.sum
        below = 0
        for bound, count in zip((*self.bounds, float("inf")), counts, strict=True):
            below += count
            yield f'{self.name}_bucket{{le="{number(bound)}"}} {below}'
        yield f"{self.name}_sum {number(total)}"
        yield f"{self.name}_count {below}"


def number(value: float) -> str:
    """A number as the format has it.

    Example:
        >>> number(0.25), number(4096.0), number(float("inf"))
        ('0.25', '4096', '+Inf')
    """
    return "+Inf" if value == float("inf") else repr(value).removesuffix(".0")


def labelled(names: Sequence[str], values: Sequence[str]) -> str:
    r"""Labels as the format has them.

    Example:
        >>> labelled(("path", "status"), ("/", "200")), labelled((), ())
        ('{path="/",status="200"}', '')
    """
    pairs = ",".join(f'{name}="{value}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.requests = Counter(
            "minibert_requests_total", "Requests that were answered.", ("path", "status")
        )
        self.seconds = Histogram(
            "minibert_request_seconds",
            "From a request's head to the end of its answer.",
            SECONDS,
        )
        self.texts = Counter("minibert_texts_total", "Texts in which answers were looked for.")
        self.batch_seconds = Histogram(
            "minibert_batch_seconds", "Time of a packed batch in the model.", SECONDS
        )
        self.batch_tokens = Histogram("minibert_batch_tokens", "Tokens of a packed batch.", TOKENS)
        self.batch_requests = Histogram(
            "minibert_batch_requests", "Requests that share a packed batch.", COUNTS
        )
        self.gauges: list[Gauge] = []

    def gauge(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Show a number of the moment, too."""
        self.gauges.append(Gauge(name, about, read))

    def text(self) -> str:
        """All of them."""
        lines = []
        all_of_them: list[Counter | Gauge | Histogram] = [
            self.requests,
            self.seconds,
            self.texts,
            self.batch_seconds,
            self.batch_tokens,
            self.batch_requests,
            *self.gauges,
        ]
        for metric in all_of_them:
            lines.append(f"# HELP {metric.name} {metric.about}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines.extend(metric.lines())
        return "\n".join(lines) + "\n"
