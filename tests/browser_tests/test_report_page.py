"""The report on a desk and on a phone: it fits, draws without complaint, and says in words what its pictures show."""

import pytest
from browser_tests import browser

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


@pytest.mark.parametrize(("name", "width", "height"), [("desktop", 1200, 900), ("phone", 390, 844)])
def test_the_report(studied, tmp_path, name, width, height):
    report = studied / "report.html"
    with browser.chromium(width=width, height=height) as (page, errors):
        page.goto(report.as_uri())
        shown = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert shown == [width, width], page.evaluate(OUTSIDE)
        assert page.locator("svg, img").count() > 3
        assert page.evaluate(UNTOLD) == []
        assert page.evaluate("document.documentElement.lang") and page.title()
        browser.screenshot(page, f"report-{name}", tmp_path)
        loaded = page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
        assert [one for one in loaded if one.startswith("http")] == [], "the page asks the network for nothing"
        assert errors == []
