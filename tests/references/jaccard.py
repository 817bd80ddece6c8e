"""The k-reciprocal Jaccard distance, eq. 5 to 11 of Zhong et al. (CVPR 2017), and DBSCAN, one image at a time."""

import math


def squared_distances(vectors):
    return [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in vectors] for x in vectors]


def nearest(distances, image, k):
    """Return the image itself and its k nearest others, nearest first, of equal ones the earlier."""
    others = [other for other in range(len(distances)) if other != image]
    return [image, *sorted(others, key=lambda other: (distances[image][other], other))[:k]]


def reciprocal(distances, image, k):
    return {other for other in nearest(distances, image, k) if image in nearest(distances, other, k)}


def expanded(distances, image, k1):
    """Return the k-reciprocal neighbours and those that they bring along (eq. 7)."""
    own = reciprocal(distances, image, k1)
    result = set(own)
    for candidate in own:
        theirs = reciprocal(distances, candidate, round(k1 / 2))
        if 3 * len(own & theirs) > 2 * len(theirs):
            result |= theirs
    return result


def memberships(distances, k1):
    """Return rows of weights exp(-d), normalised; d is relative to the largest of its row."""
    rows = []
    for image, given in enumerate(distances):
        members, largest = expanded(distances, image, k1), max(given) or 1.0
        weights = [math.exp(-given[other] / largest) if other in members else 0.0 for other in range(len(given))]
        rows.append([weight / sum(weights) for weight in weights])
    return rows


def jaccard_distances(distances, *, k1, k2):
    rows = memberships(distances, k1)
    averaged = []
    for image in range(len(distances)):
        company = nearest(distances, image, k2 - 1)
        averaged.append([sum(rows[other][at] for other in company) / len(company) for at in range(len(distances))])
    return [
        [1 - sum(map(min, one, other)) / sum(map(max, one, other)) for other in averaged]
        for one in averaged
    ]  # fmt: skip


def dbscan(distances, *, eps, min_samples):
    """Return the cluster of each image from 0, or -1; an image at the rim belongs to the first cluster that has it."""
    near = [[other for other, value in enumerate(row) if value <= eps] for row in distances]
    labels, cluster = [-1] * len(distances), 0
    for start in range(len(distances)):
        if labels[start] >= 0 or len(near[start]) < min_samples:
            continue
        waiting = [start]
        while waiting:
            image = waiting.pop()
            if labels[image] < 0:
                labels[image] = cluster
                waiting += near[image] if len(near[image]) >= min_samples else []
        cluster += 1
    return labels
