"""Equation 4, term by term."""

import math


def squared_mmd(source, target, *, bandwidths, divisor):
    """Return the biased MMD² of two lists of vectors."""

    def kernel(x, y):
        d2 = sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / divisor
        return sum(math.exp(-d2 / (2 * alpha)) for alpha in bandwidths) / len(bandwidths)

    def mean(xs, ys):
        return sum(kernel(x, y) for x in xs for y in ys) / (len(xs) * len(ys))

    return mean(source, source) + mean(target, target) - 2 * mean(source, target)
