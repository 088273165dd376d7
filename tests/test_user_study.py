"""The user study: pages that do not tell which is which, rated in a browser, and what the ratings say."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import binomtest

from ldm.cli import run
from ldm.errors import UserError
from ldm.evaluation.inputs import Input
from ldm.evaluation.jobs import StudyJob
from ldm.evaluation.paintings import best_file
from ldm.evaluation.user_study import KEY, Verdict, analyse, majority, make_study, markdown, pairs_in, pairs_of
from ldm.imaging.images import save_png
from scripts.user_study import main

PROMPTS = ("a red ball", "a mug with </script> in it", "a blue cube")
COLORS = {"blended_latent": "red", "pasted": "blue", "glide": "green"}


@pytest.fixture
def evaluation(tmp_path) -> Path:
    """A folder as evaluate.py leaves it, with a picture of one colour for each method and input."""
    folder = tmp_path / "evaluation"
    for name, color in COLORS.items():
        for index in range(len(PROMPTS)):
            path = best_file(folder / "paintings" / name, name, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            if (name, index) != ("glide", 2):
                Image.new("RGB", (40 + index, 30), color).save(path)
    rows = [{"image": "a.png", "mask": "b.png", "prompt": prompt} for prompt in PROMPTS]
    (folder / "benchmark").mkdir()
    (folder / "benchmark" / "benchmark.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def study(evaluation, tmp_path) -> Path:
    inputs = [Input(f"{i}", Path("-"), Path("-"), prompt) for i, prompt in enumerate(PROMPTS)]
    make_study(pairs_of(evaluation, inputs, "blended_latent", ["pasted"]), "blended_latent", tmp_path / "study")
    return tmp_path / "study"


def ratings(study: Path, rater: int, vote: str) -> Path:
    """A file as the page of a rater saves it: every question answered for "ours", "theirs" or "equal"."""
    key = json.loads((study / KEY).read_text())
    other = {"left": "right", "right": "left"}
    given = {}
    for name, about in key["pairs"].items():
        if about["rater"] == rater:
            side = {"ours": about["ours"], "theirs": other[about["ours"]], "equal": "equal"}[vote]
            given[name] = {"quality": side, "match": side}
    path = study / f"{rater}.json"
    path.write_text(json.dumps({"study": key["study"], "rater": rater, "ratings": given}))
    return path


def test_pages_do_not_tell_which_is_which(study):
    key = json.loads((study / KEY).read_text())
    pages = sorted((study / "pages").glob("*.html"))
    assert len(pages) == 5 and len(key["pairs"]) == 15
    orders, sides = set(), set()
    for page in pages:
        text = page.read_text()
        assert not any(name in text for name in COLORS) and "</script> in it" not in text
        assert "http" not in re.sub(r"Content-Security-Policy|http-equiv", "", text)  # nothing is fetched
        data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
        assert {pair["prompt"] for pair in data["pairs"]} == set(PROMPTS)
        orders.add(tuple(pair["prompt"] for pair in data["pairs"]))
        sides |= {key["pairs"][pair["id"]]["ours"] for pair in data["pairs"]}
    assert len(orders) > 1 and sides == {"left", "right"}


def test_the_same_study_again_and_another(study, evaluation, tmp_path):
    before = (study / KEY).read_bytes()
    inputs = [Input(f"{i}", Path("-"), Path("-"), prompt) for i, prompt in enumerate(PROMPTS)]
    pairs = pairs_of(evaluation, inputs, "blended_latent", ["pasted", "glide"])
    assert [pair.against for pair in pairs] == ["pasted"] * 3 + ["glide"] * 2  # one was not painted
    with pytest.raises(UserError, match="holds another study"):
        make_study(pairs, "blended_latent", study)
    make_study(pairs[:3], "blended_latent", study)
    assert (study / KEY).read_bytes() == before
    with pytest.raises(UserError, match="no input that both"):
        pairs_of(evaluation, inputs, "blended_latent", ["nobody"])


def test_a_majority():
    assert majority(["ours", "ours", "theirs", "equal", "ours"]) == "ours"
    assert majority(["theirs", "theirs", "ours", "equal", "ours"]) == "equal"
    assert majority(["equal", "equal", "ours", "equal", "ours"]) == "equal"
    assert majority(["theirs", "theirs", "ours", "equal", "equal"]) == "equal"  # two each
    assert majority(["theirs"]) == "theirs"


def test_shares_and_the_binomial_test():
    one = Verdict("pasted", "quality", 30, 10, 10, 250)
    assert one.share == pytest.approx(0.7) and one.p == pytest.approx(binomtest(30, 40).pvalue)
    assert one.p == pytest.approx(0.00222, abs=1e-5)  # twice the tail of 30 and more of 40
    nobody = Verdict("pasted", "match", 0, 5, 0, 25)
    assert nobody.share == 0.5 and nobody.p is None
    assert "| pasted | better visual quality | 30 | 10 | 10 | 70.0 % | 0.0022 | 250 |" in markdown("ours", [one])


def test_ratings_become_verdicts(study):
    files = [ratings(study, rater, vote) for rater, vote in ((1, "ours"), (2, "ours"), (3, "theirs"), (4, "equal"))]
    quality, match = analyse(study, files)
    assert (quality.wins, quality.equal, quality.losses, quality.ratings) == (3, 0, 0, 12)
    assert (match.question, match.against, match.share) == ("match", "pasted", 1.0)
    with pytest.raises(UserError, match="is of rater 1, as"):
        analyse(study, [files[0], files[0]])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense", "is no JSON"),
        ('{"study": "other"}', "is of another study"),
        ("[" * 100_000, "is no JSON"),
        ("rater,quality\n1,left\n", "is no JSON"),
        ("[1]", "is no file of a study"),
        ('{"study": "STUDY", "rater": [1]}', "does not say whose ratings"),
        ('{"study": "STUDY", "rater": 1}', "has no ratings"),
        ('{"study": "STUDY", "rater": 1, "ratings": {"x": {}}}', 'rates "x", which is no pair'),
        ('{"study": "STUDY", "rater": 1, "ratings": {}}', "there is no rating"),
    ],
)
def test_a_file_that_is_no_rating_is_told(study, content, said):
    path = study / "r.json"
    path.write_text(content.replace("STUDY", json.loads((study / KEY).read_text())["study"]))
    with pytest.raises(UserError, match=said):
        analyse(study, [path])


def test_one_rater_and_a_tie(study):
    (quality, _) = analyse(study, [ratings(study, 1, "theirs")])
    assert (quality.wins, quality.equal, quality.losses) == (0, 0, 3)
    (quality, _) = analyse(study, [ratings(study, 1, "theirs"), ratings(study, 2, "ours")])
    assert (quality.wins, quality.equal, quality.losses, quality.share, quality.p) == (0, 3, 0, 0.5, None)


def test_a_key_that_is_none_is_told(study):
    file = ratings(study, 1, "ours")
    (study / KEY).write_text('{"study": "x", "ours": "y", "pairs": {"a": {}}}')
    with pytest.raises(UserError, match="is no key of a study"):
        analyse(study, [file])


def test_a_method_that_painted_nothing_is_not_compared_unless_it_is_named(evaluation):
    (evaluation / "paintings" / "paint_by_word").mkdir()
    (evaluation / "paintings" / ".DS_Store").write_text("")
    assert {pair.against for pair in pairs_in(StudyJob(evaluation=evaluation))} == {"pasted", "glide"}
    with pytest.raises(UserError, match="has no input that both blended_latent and paint_by_word"):
        pairs_in(StudyJob(evaluation=evaluation, against="paint_by_word"))


def test_the_inputs_are_those_that_were_painted(evaluation, tmp_path):
    for file in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / file)
    (tmp_path / "own.jsonl").write_text('{"image": "a.png", "mask": "b.png", "prompt": "a red ball"}')
    (evaluation / "evaluation.json").write_text('{"settings": {"benchmark": "../own.jsonl"}}')
    assert [pair.prompt for pair in pairs_in(StudyJob(evaluation=evaluation))] == ["a red ball"] * 2
    painting = evaluation / "paintings" / "blended_latent" / "blended_latent-0000.png"
    save_png(Image.new("RGB", (40, 30)), painting, {"about": '{"input": "of another prompt"}'})
    with pytest.raises(UserError, match=r"input 0 of .*own\.jsonl. is not what"):
        pairs_in(StudyJob(evaluation=evaluation))


def test_the_script(evaluation, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["make", "--evaluation", str(evaluation), "--raters", "2", "-o", str(out)]
    assert run(main, argv) == 0 and "2 pages" in capsys.readouterr().out
    assert {about["against"] for about in json.loads((out / KEY).read_text())["pairs"].values()} == {"pasted", "glide"}
    assert run(main, ["analyse", str(out), str(ratings(out, 1, "ours"))]) == 0
    assert "| glide | matches the prompt more closely | 2 | 0 | 0 | 100.0 % |" in capsys.readouterr().out
    assert run(main, ["analyse", str(tmp_path), str(out / "1.json")]) == 2
    assert run(main, [*argv, "--ours", "nobody"]) == 2 and "nobody" in capsys.readouterr().err


@pytest.fixture
def page(study):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(accept_downloads=True)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto((study / "pages" / "rater-1.html").as_uri())
        yield page
        browser.close()
        assert errors == []


def sides(study: Path) -> dict[str, str]:
    return {name: about["ours"] for name, about in json.loads((study / KEY).read_text())["pairs"].items()}


def test_a_rater_rates_in_a_browser(study, page, tmp_path):
    """By keyboard and by mouse, with a reload in the middle: red is ours."""

    def ours() -> str:
        return page.evaluate(
            """() => { const c = document.createElement('canvas').getContext('2d');
                c.drawImage(document.getElementById('first'), 0, 0);
                const [r, g, b] = c.getImageData(5, 5, 1, 1).data; return r > b ? 'left' : 'right'; }"""
        )

    assert "1 of 3" in page.text_content("#place") and page.text_content("#quality legend").startswith("Which image")
    page.wait_for_function("document.getElementById('first').complete")
    first = ours()
    page.keyboard.press("ArrowLeft" if first == "left" else "ArrowRight")  # quality: ours
    assert page.get_attribute(f"#quality button[data-side={first}]", "aria-pressed") == "true"
    page.reload()
    assert page.get_attribute(f"#quality button[data-side={first}]", "aria-pressed") == "true", "a reload loses nothing"
    page.keyboard.press("ArrowDown")  # match: neither
    page.wait_for_function("document.getElementById('place').textContent.startsWith('2 of 3')")
    page.keyboard.press("Backspace")
    assert "1 of 3" in page.text_content("#place")
    page.click("#next")
    for _ in range(2):
        page.wait_for_function("document.getElementById('first').complete")
        mine = ours()
        page.click(f"#quality button[data-side={mine}]")
        page.click(f"#match button[data-side={mine}]")
    assert page.is_visible("#end") and not page.is_visible("#rate")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "ratings.json")
    quality, match = analyse(study, [tmp_path / "ratings.json"])
    assert (quality.wins, quality.equal, quality.losses) == (3, 0, 0)
    assert (match.wins, match.equal, match.losses) == (2, 1, 0)
    page.reload()
    assert page.is_visible("#end"), "what was rated is kept"


def test_the_page_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelector('.answers button').offsetHeight") >= 36
