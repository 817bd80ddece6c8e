"""The report on a desk and on a phone: it fits, draws without complaint, and says in words what its pictures show."""

import pytest
from browser_tests import browser
from tune_tests.made_up import MadeUp, searching

pytestmark = pytest.mark.slow
UNTOLD = """
() => { const silent = [];
for (const one of document.querySelectorAll('img, svg')) {
    if (one.closest('svg') !== one && one.tagName !== 'IMG') continue;
    const title = one.querySelector(':scope > title');
    const told = one.getAttribute('alt') || one.getAttribute('aria-label') || (title && title.textContent);
    if (!told && one.getAttribute('aria-hidden') !== 'true') silent.push(one.outerHTML.slice(0, 200));
}
return silent; }
"""
OUTSIDE = """
() => { const wide = document.documentElement.clientWidth;
return [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > wide + 1 &&
    !e.closest('svg, pre, table') && getComputedStyle(e).position !== 'fixed').map(e => e.outerHTML.slice(0, 120)); }
"""
SMALLEST = """
() => Math.min(...[...document.querySelectorAll('svg text')].map(
    e => parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getScreenCTM().a))
"""
"""Pixels of the smallest writing in a drawing."""
HEIGHTS = "which => [...document.querySelectorAll(which)].map(e => e.getBoundingClientRect().height)"
LEGIBLE = 9


@pytest.fixture(scope="module")
def reports(studied, tmp_path_factory):
    """Pages of a real study, with pictures of its models, and of a made-up one, with a verdict on fresh seeds."""
    study = MadeUp(tmp_path_factory.mktemp("made up"), searching(trials=12))
    assert study.run() == 0
    return {"real": studied / "report.html", "judged": study.out / "report.html"}


@pytest.mark.parametrize(("name", "width", "height"), [("desktop", 1200, 900), ("phone", 390, 844)])
@pytest.mark.parametrize(("which", "drawn"), [("real", "img"), ("judged", "#figure-forest, #figure-cmc")])
def test_the_report(reports, tmp_path, which, drawn, name, width, height):
    with browser.chromium(width=width, height=height) as (page, errors):
        page.goto(reports[which].as_uri())
        shown = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert shown == [width, width], page.evaluate(OUTSIDE)
        assert page.locator(drawn).count() >= 2 and page.locator("figure svg").count() > 5
        assert page.evaluate(UNTOLD) == []
        assert page.evaluate(SMALLEST) >= LEGIBLE, "where it is narrow, pictures scroll"
        assert page.evaluate("document.documentElement.lang") and page.title()
        browser.screenshot(page, f"report-{which}-{name}", tmp_path, whole=True)
        loaded = page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
        assert [one for one in loaded if one.startswith("http")] == [], "the page asks the network for nothing"
        assert errors == []


def test_what_readme_shows_of_it(reports, tmp_path):
    with browser.chromium(width=1200, height=1400) as (page, errors):
        page.goto(reports["real"].as_uri())
        browser.screenshot(page, "report-desktop", tmp_path)
        gallery = page.locator("figure", has=page.locator("img")).first.locator("img")
        gallery.evaluate("image => image.scrollIntoView()")
        shown = gallery.bounding_box()
        assert shown["width"] > 600 and shown["height"] > 600, "three queries, each ranked by two models"
        browser.screenshot(page, "report-pictures", tmp_path, clip={**shown, "height": shown["height"] / 3})
        assert errors == []


def test_what_is_folded_is_printed(reports):
    with browser.chromium(width=1200, height=900) as (page, errors):
        page.goto(reports["judged"].as_uri())
        trainings, numbers = "#trainings details", "details.numbers"
        (folded,) = page.evaluate(HEIGHTS, trainings)
        page.emulate_media(media="print")
        assert page.evaluate(HEIGHTS, trainings)[0] > 5 * folded
        assert set(page.evaluate(HEIGHTS, numbers)) == {0}, "of a picture, what it shows is enough on paper"
        assert errors == []
