"""CMC, average precision and mINP, one gallery image at a time."""


def matches(distances, *, pid, camid, gallery_pids, gallery_camids):
    """Return the ranked list of one query as booleans: junk removed, a negative before a positive at equal distance."""
    kept = [
        (distance, gallery_pid == pid and gallery_pid > 0)
        for distance, gallery_pid, gallery_camid in zip(distances, gallery_pids, gallery_camids, strict=True)
        if not (gallery_pid == pid and gallery_camid == camid)
    ]
    return [is_match for _, is_match in sorted(kept)]


def average_precision(ranked):
    """Return the mean of precision at each positive."""
    found, total = 0, 0.0
    for place, is_match in enumerate(ranked, start=1):
        if is_match:
            found += 1
            total += found / place
    return total / found


def average_precision_trapezoid(ranked):
    """Return the area under precision and recall as Market-1501's own code sums it."""
    num_positives = sum(ranked)
    area, old_recall, old_precision, found = 0.0, 0.0, 1.0, 0
    for place, is_match in enumerate(ranked, start=1):
        found += is_match
        recall, precision = found / num_positives, found / place
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def rank(distances, *, query_pids, query_camids, gallery_pids, gallery_camids, max_rank):
    """Return mAP, trapezoid mAP, CMC, mINP, counted queries and skipped ones."""
    valid = []
    for row, pid, camid in zip(distances, query_pids, query_camids, strict=True):
        ranked = matches(row, pid=pid, camid=camid, gallery_pids=gallery_pids, gallery_camids=gallery_camids)
        if any(ranked):
            valid.append(ranked)
    num = len(valid)
    return {
        "mAP": sum(map(average_precision, valid)) / num,
        "mAP_trapezoid": sum(map(average_precision_trapezoid, valid)) / num,
        "cmc": [sum(any(ranked[:k]) for ranked in valid) / num for k in range(1, max_rank + 1)],
        "mINP": sum(sum(r) / (max(i for i, m in enumerate(r) if m) + 1) for r in valid) / num,
        "num_queries": num,
        "num_skipped": len(query_pids) - num,
    }
