"""Generalised mean pooling, one position at a time."""

import math


def generalised_mean(values, *, exponent):
    """Return (mean x^p)^(1/p) of positive numbers, through logarithms so that nothing overflows."""
    powers = [exponent * math.log(max(value, 1e-6)) for value in values]
    largest = max(powers)
    mean = sum(math.exp(power - largest) for power in powers) / len(powers)
    return math.exp((largest + math.log(mean)) / exponent)
