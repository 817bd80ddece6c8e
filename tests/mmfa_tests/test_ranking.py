"""CMC, both average precisions and mINP against plain loops and by hand."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from references import ranking as reference

from mmfa import ranking
from mmfa.errors import DataError
from mmfa.ranking import RetrievalReport, distances, mean_report, rank, rank_features


def labels(rng, num_queries, num_gallery, *, pids=8, cameras=3):
    return {
        "query_pids": rng.integers(1, pids, num_queries),
        "query_camids": rng.integers(0, cameras, num_queries),
        "gallery_pids": rng.integers(-1, pids, num_gallery),
        "gallery_camids": rng.integers(0, cameras, num_gallery),
    }


def one_query(ranked):
    """Return the report of a query of pid 1 whose gallery, in order of distance, matches or not."""
    num = len(ranked)
    return rank(
        np.arange(num, dtype=np.float32)[None],
        query_pids=np.array([1]),
        query_camids=np.array([0]),
        gallery_pids=np.array([1 if is_match else 2 for is_match in ranked]),
        gallery_camids=np.ones(num, dtype=np.int64),
    )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [3, 10_000])  # three values only: nearly everything ties
def test_equals_the_plain_loops(seed, dtype, levels):
    rng = np.random.default_rng(seed)
    num_queries, num_gallery = int(rng.integers(1, 20)), int(rng.integers(20, 80))
    matrix = rng.integers(0, levels, (num_queries, num_gallery)).astype(dtype)
    given = labels(rng, num_queries, num_gallery)
    before = matrix.copy()
    report = rank(matrix, **given, max_rank=50)
    expected = reference.rank(matrix.tolist(), **{k: v.tolist() for k, v in given.items()}, max_rank=50)
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value, rel=1e-12), name
    assert np.array_equal(matrix, before)
    chunked = rank([matrix[:1], matrix[1:]] if num_queries > 1 else [matrix], **given)
    assert chunked == report


@pytest.mark.parametrize(
    ("ranked", "rectangle", "trapezoid", "penalty"),
    [
        ([1, 0, 1, 0, 0], 5 / 6, 19 / 24, 2 / 3),  # 0.8333 and 0.7917
        ([0, 1], 0.5, 0.25, 0.5),
        ([1, 1, 0], 1.0, 1.0, 1.0),
    ],
)
def test_by_hand(ranked, rectangle, trapezoid, penalty):
    report = one_query(ranked)
    assert (report.mAP, report.mAP_trapezoid, report.mINP) == pytest.approx((rectangle, trapezoid, penalty), rel=1e-12)
    assert report.rank(1) == ranked[0]


def test_a_tie_counts_against_the_model():
    report = rank(
        np.zeros((1, 4), dtype=np.float32),
        query_pids=np.array([1]),
        query_camids=np.array([0]),
        gallery_pids=np.array([1, 2, 3, 1]),
        gallery_camids=np.array([1, 1, 1, 0]),  # the last is junk
    )
    assert report.cmc[:4] == (0.0, 0.0, 1.0, 1.0)
    assert report.mAP == pytest.approx(1 / 3)


def test_a_gallery_shorter_than_max_rank_pads_the_cmc():
    report = one_query([0, 1])
    assert report.cmc == (0.0, *[1.0] * 49)


def test_distractors_match_nobody_even_a_query_of_their_number():
    report = rank(
        np.array([[0.0, 1.0], [0.0, 1.0]], dtype=np.float32),
        query_pids=np.array([0, 1]),
        query_camids=np.array([0, 0]),
        gallery_pids=np.array([0, 1]),
        gallery_camids=np.array([1, 1]),
    )
    assert (report.num_queries, report.num_skipped, report.mAP) == (1, 1, 0.5)


def test_a_gallery_of_positives_only():
    assert one_query([1, 1]).mAP == 1.0


def test_no_query_with_a_positive_names_the_rule():
    with pytest.raises(DataError, match=r"none of the 3 queries.*1 have a pid that is not.*2 have it.*own camera"):
        rank(
            np.zeros((3, 2)),
            query_pids=np.array([1, 2, 9]),
            query_camids=np.array([0, 0, 0]),
            gallery_pids=np.array([1, 2]),
            gallery_camids=np.array([0, 0]),
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 2])  # a positive, junk, a negative
def test_non_finite_distances_are_refused(bad, column):
    matrix = np.array([[0.1, 0.2, 0.3, 0.4]])
    matrix[0, column] = bad
    with pytest.raises(DataError, match="finite"):
        rank(
            matrix,
            query_pids=np.array([1]),
            query_camids=np.array([0]),
            gallery_pids=np.array([1, 1, 2, 3]),
            gallery_camids=np.array([1, 0, 1, 1]),
        )


def test_rank_outside_the_cmc():
    report = one_query([1])
    with pytest.raises(IndexError, match="1 <= k <= 50"):
        report.rank(0)
    with pytest.raises(IndexError, match="got 51"):
        report.rank(51)


def test_report_survives_json():
    report = one_query([0, 1, 0, 1])
    assert RetrievalReport.from_json(report.to_json()) == report
    report = dataclasses.replace(report, mAP_cosine=0.25)
    assert RetrievalReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_distances_are_squared_l2(chunk):
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(7, 12, generator=generator) + 50, torch.randn(9, 12, generator=generator) + 50
    got = np.concatenate([rows.copy() for rows in distances(query, gallery, chunk=chunk)])
    expected = [[((q - g) ** 2).sum().item() for g in gallery.double()] for q in query.double()]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_near_duplicate_far_from_the_origin_is_nearest():
    gallery = 1000 + torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    (rows,) = distances(gallery + 1e-3, gallery)
    assert (rows.argmin(axis=1) == np.arange(50)).all()
    assert (rows >= 0).all()


def test_non_finite_features_are_refused():
    bad = torch.full((2, 3), torch.nan)
    with pytest.raises(DataError, match="finite"):
        list(distances(torch.zeros(1, 3), bad))
    with pytest.raises(DataError, match="finite"):
        list(distances(bad, torch.zeros(1, 3)))


def test_an_empty_gallery_has_its_own_sentence():
    with pytest.raises(DataError, match="gallery, but it holds no image"):
        list(distances(torch.ones(2, 3), torch.ones(0, 3)))
    none = np.empty(0, dtype=np.int64)
    with pytest.raises(DataError, match="gallery, but it holds no image"):
        rank(
            np.empty((1, 0)), query_pids=np.array([1]), query_camids=np.array([0]), gallery_pids=none,
            gallery_camids=none,
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_short_galleries_with_ties_junk_and_missing_positives_equal_the_plain_loops_in_any_order(seed):
    rng = np.random.default_rng(seed)
    num_queries, num_gallery = int(rng.integers(1, 12)), int(rng.integers(1, 9))
    matrix = rng.integers(0, int(rng.choice([1, 2, 4, 1000])), (num_queries, num_gallery)).astype(np.float32)
    given = labels(rng, num_queries, num_gallery, pids=4, cameras=2)
    positives = (given["query_pids"][:, None] == given["gallery_pids"]) & (
        given["query_camids"][:, None] != given["gallery_camids"]
    )
    order = rng.permutation(num_gallery)
    shuffled = {name: value[order] if name.startswith("gallery") else value for name, value in given.items()}
    if not positives.any():
        with pytest.raises(DataError, match="a query needs a gallery image"):
            rank(matrix, **given)
        return
    report = rank(matrix, **given, max_rank=5)
    expected = reference.rank(matrix.tolist(), **{k: v.tolist() for k, v in given.items()}, max_rank=5)
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value, rel=1e-12), name
    assert rank(matrix[:, order], **shuffled, max_rank=5) == report
    assert list(report.cmc) == sorted(report.cmc)


def on_device(query, gallery, **given):
    """Rank as features on a GPU are ranked, wherever they are."""
    labels = [given[name] for name in ("query_pids", "query_camids", "gallery_pids", "gallery_camids")]
    found = ranking._ranked_on_device(query, gallery, ranking._Own(*labels))
    return ranking._report(found, given["query_pids"], given["gallery_pids"], max_rank=50)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [2, 1000])  # of two values only: many ties, which small integers keep exact
def test_whole_chunks_on_a_device_rank_as_row_by_row(seed, levels, monkeypatch):
    monkeypatch.setattr(ranking, "CHUNK", 5)
    monkeypatch.setattr(ranking, "TILE", 7)
    rng = np.random.default_rng(seed)
    num_queries, num_half = int(rng.integers(1, 20)), int(rng.integers(1, 30))
    given = labels(rng, num_queries, 2 * num_half)
    given["gallery_pids"][0], given["gallery_camids"][0] = given["query_pids"][0], 9  # one query has a positive
    query, half = (
        torch.from_numpy(rng.integers(0, levels, (n, 4)).astype(np.float32)) for n in (num_queries, num_half)
    )
    features = query, torch.cat([half, -half])  # centred at 0, so that all distances are whole numbers
    expected = rank(distances(*features), **given)
    assert on_device(*features, **given) == expected
    assert rank_features(*features, **given) == expected


def test_a_device_refuses_what_the_rows_refuse():
    given = {name: np.array([1]) for name in ("query_pids", "gallery_pids")}
    given |= {"query_camids": np.array([0]), "gallery_camids": np.array([1])}
    with pytest.raises(DataError, match="features must be finite"):
        on_device(torch.tensor([[torch.nan]]), torch.zeros(1, 1), **given)
    with pytest.raises(DataError, match="distances must be finite"):
        far = {name: np.array([1, 1]) for name in ("gallery_pids", "gallery_camids")}
        on_device(torch.tensor([[1.8e19]]), torch.tensor([[1.8e19], [-1.8e19]]), **given | far)
    with pytest.raises(DataError, match="own camera"):
        on_device(torch.ones(1, 1), torch.ones(1, 1), **given | {"gallery_camids": np.array([0])})


def test_features_of_half_precision_are_ranked_as_those_of_single(monkeypatch):
    monkeypatch.setattr(ranking, "TILE", 7)
    half = torch.randn(20, 16, generator=torch.Generator().manual_seed(2)).half()
    (one,), (other,) = (list(distances(given[:5], given)) for given in (half, half.float()))
    assert np.array_equal(one, other) and one.dtype == np.float32


def test_the_mean_of_reports_adds_their_queries_up():
    one, other = one_query([1, 0, 1]), one_query([0, 1])
    mean = mean_report([one, other])
    for name in ("mAP", "mAP_trapezoid", "mINP"):
        assert getattr(mean, name) == pytest.approx((getattr(one, name) + getattr(other, name)) / 2)
    assert mean.cmc[:3] == (0.5, 1.0, 1.0) and len(mean.cmc) == 50
    assert (mean.num_queries, mean.num_skipped, mean.mAP_cosine) == (2, 0, None)
    assert mean_report([one]) == one
    with_cosine = [dataclasses.replace(report, mAP_cosine=value) for report, value in ((one, 0.2), (other, 0.4))]
    assert mean_report(with_cosine).mAP_cosine == pytest.approx(0.3)
    assert mean_report([one, with_cosine[1]]).mAP_cosine is None


def test_average_precision_by_identity_adds_up_to_the_mean():
    generator = np.random.default_rng(3)
    query, gallery = generator.integers(1, 6, 20), np.concatenate([np.arange(1, 6), generator.integers(0, 6, 40)])
    cameras = generator.integers(0, 3, 20), np.concatenate([np.full(5, 3), generator.integers(0, 3, 40)])
    found = rank(
        generator.random((20, 45)),
        query_pids=query,
        query_camids=cameras[0],
        gallery_pids=gallery,
        gallery_camids=cameras[1],
    )
    assert [pid for pid, _, _ in found.identities] == sorted(set(query.tolist()))
    assert [number for _, _, number in found.identities] == [int((query == pid).sum()) for pid in sorted(set(query))]
    assert sum(total for _, total, _ in found.identities) / 20 == pytest.approx(found.mAP, abs=1e-12)
    assert RetrievalReport.from_json(found.to_json()) == found


def test_many_images_of_one_person_take_no_more_than_a_chunk():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(1500, 8)).astype(np.float32))
    pids, camids = np.ones(1500, dtype=np.int64), rng.integers(0, 3, 1500)
    pids[:20] = 2
    tracemalloc.start()
    report = rank_features(
        features[:64],
        features,
        query_pids=pids[:64],
        query_camids=camids[:64],
        gallery_pids=pids,
        gallery_camids=camids,
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.num_queries == 64
    assert peak < 32 << 20, "what compares each image of a person with each other one takes five times as much"
