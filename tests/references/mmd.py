"""Equation 4, term by term."""

import math


def distance2(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def kernel(x, y, *, bandwidths, divisor):
    d2 = distance2(x, y) / divisor
    return sum(math.exp(-d2 / (2 * alpha)) for alpha in bandwidths) / len(bandwidths)


def squared_mmd(source, target, **given):
    """Return the biased MMD² of two lists of vectors."""

    def mean(xs, ys):
        return sum(kernel(x, y, **given) for x in xs for y in ys) / (len(xs) * len(ys))

    return mean(source, source) + mean(target, target) - 2 * mean(source, target)


def unbiased_mmd(source, target, **given):
    """Return the U-statistic of MMD²: no sample is compared with itself."""

    def within(xs):
        kernels = [kernel(x, y, **given) for i, x in enumerate(xs) for j, y in enumerate(xs) if i != j]
        return sum(kernels) / len(kernels)

    across = [kernel(x, y, **given) for x in source for y in target]
    return within(source) + within(target) - 2 * sum(across) / len(across)


def unit_length(vectors):
    """Return vectors of length 1, where they have more than one dimension."""
    if len(vectors[0]) == 1:
        return vectors
    return [[value / math.sqrt(sum(v * v for v in vector)) for value in vector] for vector in vectors]


def median_distance2(source, target):
    """Return the lower median of d² over all pairs of different samples of both lists."""
    joint = [*source, *target]
    values = sorted(distance2(joint[i], joint[j]) for i in range(len(joint)) for j in range(i))
    return values[(len(values) - 1) // 2]
