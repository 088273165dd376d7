"""Everyday things: their table, what the packages hold, colours, shadows, captions, composites, and the script."""

import io
import json
import logging
import tarfile
import zipfile
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ldm.cli import run
from ldm.data.epochs import seeded
from ldm.data.scenes.colors import COLORS
from ldm.data.shards import SceneShards
from ldm.data.things import photographs, sources
from ldm.data.things.captions import STYLES, Said, caption, split_words, view_words, vocabulary
from ldm.data.things.catalogues import LICENCES, Model, read_emoji, read_models
from ldm.data.things.colors import name_of, single_hue, turn_hue
from ldm.data.things.compose import SIZE, Spot, merge, place, shadow
from ldm.data.things.cutouts import Cutout, describe, held_out_models, read_cutouts, shows_something, write_cutouts
from ldm.data.things.nouns import FAMILIAR, NOUNS, PORTRAITS
from ldm.data.things.photographs import PHOTOGRAPHS, Photograph, Photographs
from ldm.data.things.sources import Source, fetch
from ldm.data.things.things import Things
from ldm.data.things.views import cut_out, direction, draw_views, view_angle
from ldm.errors import UserError
from scripts import make_things

ENTRY = "name#{n}={name}\r\nmodel#{n}=/pack/{id}/{id}.obj\r\ncreator#{n}=Somebody\r\n"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the workers of make_things."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def disc(color: tuple[int, int, int], size: int = 64) -> Image.Image:
    image = Image.new("RGBA", (size, size))
    ImageDraw.Draw(image).ellipse((2, 2, size - 3, size - 3), fill=(*color, 255))
    return image


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """Packages as `fetch` leaves them, of a few small files."""
    root = tmp_path_factory.mktemp("packages")
    for name in ("fluent/assets", "openmoji/data", "mvtb/images", "lomiri16", "lomiri20"):
        (root / name).mkdir(parents=True)
    listed = [("fox", "1F98A"), ("red apple", "1F34E"), ("closed umbrella", "1F302"), ("umbrella", "2602-FE0F")]
    for annotation, code in listed:
        color = (220, 30, 30) if annotation == "red apple" else (230, 120, 20)
        disc(color).save(root / "fluent/assets" / f"{code.lower()}.webp", lossless=True)
    entries = [{"annotation": name, "hexcode": code.removesuffix("-FE0F"), "skintone": ""} for name, code in listed]
    (root / "openmoji/data/openmoji.json").write_text(json.dumps(entries))
    for catalogue in LICENCES:
        (root / "furniture" / catalogue).mkdir(parents=True)
        (root / "furniture" / catalogue / "PluginFurnitureCatalog.properties").write_text("id=nothing\n")
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(noise).save(root / "mvtb/images" / name)
    return root


PHOTOS = (Photograph("a.png", "mvtb", words=("on grass",)), Photograph("b.png", "mvtb", "val"))


@pytest.fixture
def things(unpacked, tmp_path) -> Things:
    cutouts = write_cutouts(tmp_path, read_emoji(unpacked / "fluent", unpacked / "openmoji"), [], 2, 0, lambda _: None)
    return Things(cutouts, tmp_path, Photographs(PHOTOS[:1], unpacked))


# The table.


def test_a_word_names_one_thing_and_every_noun_has_pictures():
    words = [word for noun in NOUNS.values() for word in noun.words]
    assert len(words) == len(set(words)) and len(NOUNS) >= 200
    assert all(noun.emoji or noun.models for noun in NOUNS.values())
    assert {"suv", "peugeot 308 cc"} <= set(NOUNS["car"].models)  # from a line that goes on
    assert NOUNS.keys() >= FAMILIAR and NOUNS["fox"].familiar and not NOUNS["wolf"].familiar


def test_familiar_things_are_drawn_more_often(things):
    one = replace(things.pictures["fox"]["fluent"]["fluent-1f98a"][0], noun="wolf", instance="another")
    both = Things([one, *things.pictures["fox"]["fluent"]["fluent-1f98a"]], things.folder, things.backgrounds)
    generator = seeded(0)
    drawn = [both._choose(generator).noun for _ in range(8000)]
    assert drawn.count("fox") / drawn.count("wolf") == pytest.approx(4, rel=0.1)


def test_a_noun_has_one_portrait(unpacked, tmp_path):
    def view(noun: str, model: str, azimuth: float, elevation: float) -> Cutout:
        file = f"{model}-{azimuth}-{elevation}.png"
        return Cutout(file, noun, "furniture", model, "MIT", "x", "train", azimuth, elevation)

    def icon(noun: str, code: str) -> Cutout:
        return Cutout(f"{code}.png", noun, "fluent", f"fluent-{code}", "MIT", "x", "both")

    usual, behind, above = (20.0, 10.0), (170.0, 10.0), (20.0, 44.0)
    views = [
        view(noun, f"{noun}{i}", *angles)
        for noun in ("lamp", "bench", "dog")
        for i in range(5)
        for angles in (usual, behind, above)
    ]
    icons = [icon("dog", "1f415"), icon("dog", "1f436"), icon("wolf", "1f43a"), icon("fox", "1f98a")]
    drawn = Things([*views, *icons], tmp_path, Photographs(PHOTOS[:1], unpacked)).pictures
    assert drawn["dog"] == {"fluent": {"fluent-1f436": [icons[1]]}}, "its face"
    assert drawn["fox"] == {"fluent": {"fluent-1f98a": [icons[3]]}}
    assert drawn["wolf"] == {"fluent": {"fluent-1f43a": [icons[2]]}}
    for noun in ("lamp", "bench"):  # one model, from the front
        assert [cutout.azimuth for cutout in drawn[noun]["furniture"][f"{noun}0"]] == [20.0]
        assert list(drawn[noun]["furniture"]) == [f"{noun}0"]


def test_portraits_are_of_familiar_nouns():
    assert PORTRAITS.keys() <= FAMILIAR


def test_no_photograph_is_in_two_splits_and_those_of_the_tables_are_in_none_of_training():
    assert len({photo.file for photo in PHOTOGRAPHS}) == len(PHOTOGRAPHS)
    tested = {photo.file for photo in PHOTOGRAPHS if photo.split == "test"}
    assert {"chelsea.png", "coffee.png", "rocket.jpg", "camera.png"} <= tested
    assert not tested & {photo.file for photo in PHOTOGRAPHS if photo.split in ("train", "val")}
    assert not {"lena.png", "monalisa.png"} & {photo.file for photo in PHOTOGRAPHS}


# What the packages hold.


def test_emoji_are_found_with_and_without_the_variation_selector(unpacked):
    found = [(one.noun, one.annotation) for one in read_emoji(unpacked / "fluent", unpacked / "openmoji")]
    assert found == [
        ("fox", "fox"),
        ("apple", "red apple"),
        ("umbrella", "umbrella"),
        ("umbrella", "closed umbrella"),
    ]


def test_models_come_with_their_licence_author_and_turn(unpacked, tmp_path):
    for catalogue in LICENCES:
        (tmp_path / catalogue).mkdir()
        text = ENTRY.format(n=1, name="Teapot", id="pot") + ENTRY.format(n=2, name="Smoke detector", id="smoke")
        turn = "modelRotation#1=1 0 0 0 0 1 0 -1 0\r\n" if catalogue == "Scopia" else ""
        (tmp_path / catalogue / "PluginFurnitureCatalog.properties").write_text(text + turn)
    models = read_models(tmp_path)
    assert [model.noun for model in models] == ["teapot"] * 5  # nothing that no noun names
    assert [model.licence for model in models] == list(LICENCES.values())
    assert models[-1].rotation == (1, 0, 0, 0, 0, 1, 0, -1, 0) and models[0].rotation is None
    assert models[0].author == "Somebody" and len({model.instance for model in models}) == 1
    assert held_out_models(models) == {"pack-pot-pot"} and held_out_models(models[:3]) == set()


def source(**changes) -> Source:
    known = {
        "name": "pack",
        "client": "npm",
        "package": "pack@1",
        "archive": "pack-*.tgz",
        "what": "",
        "licence": "MIT",
    }
    return Source(**{**known, "attribution": "", **changes})


def test_an_archive_that_is_there_is_unpacked_and_its_catalogues_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "COMMANDS", {})  # nobody is asked
    catalogue = io.BytesIO()
    with zipfile.ZipFile(catalogue, "w") as zipped:
        zipped.writestr("PluginFurnitureCatalog.properties", "name#1=Chair")
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives/pack-1.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("share/Scopia.sh3f")
        info.size = len(catalogue.getvalue())
        tar.addfile(info, io.BytesIO(catalogue.getvalue()))
    fetch(tmp_path, [source()])
    assert (tmp_path / "pack/Scopia/PluginFurnitureCatalog.properties").read_text() == "name#1=Chair"
    fetch(tmp_path, [source()])  # is there


@pytest.mark.parametrize(
    ("command", "problem"), [(["no-such-client-here"], "which is not here"), (["false"], "did not fetch pack@1")]
)
def test_a_client_that_fails_says_how_to_help(tmp_path, monkeypatch, command, problem):
    monkeypatch.setitem(sources.COMMANDS, "npm", lambda _: command)
    with pytest.raises(UserError, match=f"(?s){problem}.*put the archive there"):
        fetch(tmp_path, [source()])
    assert not (tmp_path / "pack").exists()


# Views and cut-outs.


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 5), (40, 20), (-150, 65)])
def test_the_camera_just_holds_the_model(azimuth, elevation):
    bounds = np.array([-2.0, 1.0, 0.0, 5.0, 3.0, 4.0])
    angle = np.radians(view_angle(bounds, azimuth, elevation))
    box = bounds.reshape(3, 2)
    centre, radius = box.mean(axis=1), np.linalg.norm(box[:, 1] - box[:, 0]) / 2
    away = direction(azimuth, elevation)
    eye = centre + away * radius * 2.6
    right = np.cross(-away, [0, 1, 0]) / np.linalg.norm(np.cross(-away, [0, 1, 0]))
    up = np.cross(right, -away)
    corners = np.array([[x, y, z] for x in box[0] for y in box[1] for z in box[2]]) - eye
    reach = max(abs(corners @ axis / (corners @ -away)).max() for axis in (right, up))
    assert 0.98 < reach / np.tan(angle / 2) <= 1


def test_views_go_around_what_has_a_back_and_stay_before_what_has_none():
    around = [view.azimuth for view in draw_views(torch.Generator().manual_seed(0), 12, True)]
    front = [view.azimuth for view in draw_views(torch.Generator().manual_seed(0), 12, False)]
    assert min(around) < -150 and max(around) > 150 and max(map(abs, front)) <= 65


def test_a_cut_out_is_what_is_not_transparent_at_half_its_size_without_a_dark_rim():
    small = np.asarray(cut_out(np.array(disc((200, 100, 50), 80))))
    assert small.shape == (38, 38, 4) and ((small[..., 3] > 20) & (small[..., 3] < 230)).any()
    assert (abs(small[small[..., 3] > 20][:, :3].astype(int) - (200, 100, 50)) < 8).all()


def test_silhouettes_and_specks_show_nothing():
    assert shows_something(disc((200, 100, 50))) and not shows_something(disc((10, 10, 12)))
    assert not shows_something(disc((200, 100, 50), 20))


def test_cut_outs_are_kept_and_described(unpacked, tmp_path):
    emoji = read_emoji(unpacked / "fluent", unpacked / "openmoji")
    with pytest.raises(UserError, match="holds no cut-outs"):
        read_cutouts(tmp_path)
    write_cutouts(tmp_path, emoji, [], 2, 0, lambda _: None)
    stamp = (tmp_path / "fluent-1f98a.png").stat().st_mtime_ns
    again = write_cutouts(tmp_path, emoji, [], 2, 0, lambda _: None)
    assert (tmp_path / "fluent-1f98a.png").stat().st_mtime_ns == stamp
    assert read_cutouts(tmp_path) == again
    apple = next(cutout for cutout in again if cutout.noun == "apple")
    assert apple.color == "red" and apple.hue is not None and apple.licence == "MIT"


BOX = """mtllib box.mtl
v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl painted
f 5/1 6/2 7/3 8/4
f 2/1 1/2 4/3 3/4
f 1/1 5/2 8/3 4/4
f 6/1 2/2 3/3 7/4
usemtl plain
f 8 7 3 4
f 1 2 6 5
"""
MATERIALS = "newmtl painted\nKd 0.1 0.1 0.1\nmap_Kd red.png\n\nnewmtl plain\nKd 0.8 0.05 0.05\n"


@pytest.mark.skipif(
    not (find_library("OSMesa") or find_library("EGL")),
    reason="views are drawn by OpenGL in memory: install libosmesa6, or libegl1 with libgl1-mesa-dri",
)
def test_models_are_rendered_with_their_textures_and_what_cannot_be_read_is_passed_over(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ldm"), "propagate", True)  # a command that ran before has its own handler
    folder = tmp_path / "pack" / "box"  # a model's views are drawn by its folders' names
    folder.mkdir(parents=True)
    (folder / "box.obj").write_text(BOX)
    (folder / "box.mtl").write_text(MATERIALS)
    Image.new("RGB", (8, 8), (215, 20, 20)).save(folder / "red.png")
    box = Model("box", folder / "box.obj", "box", "CC0 1.0", "us")
    gone = Model("box", folder / "gone.obj", "box", "CC0 1.0", "us")
    made = write_cutouts(tmp_path / "cutouts", [], [gone, box], 3, 0, lambda _: None)
    assert [cutout.instance for cutout in made] == [box.instance] * 3
    assert [cutout.split for cutout in made] == ["train", "val", "train"]
    assert {cutout.color for cutout in made} == {"red"}  # not the dark colour that the texture stands for
    assert "gone.obj is passed over" in caplog.text
    with Image.open(tmp_path / "cutouts" / made[0].file) as picture:
        alpha = np.asarray(picture)[..., 3]
    assert max(alpha.shape) > 200 and (alpha > 250).mean() > 0.5 and alpha[0, 0] == 0


# Colours.


@pytest.mark.parametrize("color", ["blue", "green", "purple", "turquoise"])
def test_a_hue_is_turned_to_the_colour_of_its_name_and_grey_stays(color):
    rgb = np.array([[[0.85, 0.1, 0.1], [0.6, 0.07, 0.07]], [[0.5, 0.5, 0.5], [0.9, 0.2, 0.2]]], np.float32)
    hue = single_hue(np.tile(rgb.reshape(-1, 3), (20, 1)))
    assert hue is not None
    turned = turn_hue(rgb, hue, color)
    assert name_of(np.tile(turned.reshape(-1, 3), (20, 1)), 0.5) == color
    assert np.abs(turned[1, 0] - rgb[1, 0]).max() < 0.02


@pytest.mark.parametrize("name", COLORS)
def test_every_colour_has_its_own_name(name):
    assert name_of(np.tile(np.array(COLORS[name].rgb, np.float32), (10, 1))) == name


def test_two_hues_are_not_one():
    assert single_hue(np.array([[0.9, 0.1, 0.1], [0.1, 0.2, 0.9]] * 40, np.float32)) is None
    two = Image.new("RGBA", (20, 20), (220, 20, 20, 255))
    two.paste((20, 40, 220, 255), (0, 0, 20, 10))
    known = describe(Cutout("a.png", "fox", "fluent", "a", "MIT", "x", "train"), two)
    assert known.color is None and known.hue is None


# Composites.


def standing(size: float = 100) -> object:
    placed = place(Image.new("RGBA", (40, 80), (200, 60, 60, 255)), Spot(128, 128, size, 0), False)
    assert placed is not None
    return placed


def test_a_standing_thing_is_darkest_where_it_touches_and_its_shadow_falls_away_from_the_light():
    thing = standing()
    left, top, right, bottom = thing.box
    for seed in range(4):
        dark = shadow(thing, seeded(seed), 1.0, lies=False)  # lit from the right
        assert dark[bottom - 1 : bottom + 2, (left + right) // 2].max() > 0.6
        assert dark[: top - 40].max() < 0.05
        assert dark[:, : left - 4].sum() > 3 * dark[:, right + 4 :].sum()


def test_a_thing_that_lies_has_its_own_outline_for_a_shadow():
    thing = standing()
    dark = shadow(thing, seeded(0), 0.5, lies=True)
    left, top, right, bottom = thing.box
    assert dark[top + 10 : bottom, left : right - 10].mean() > 0.6
    outside = dark.copy()
    outside[top - 15 : bottom + 20, left - 20 : right + 20] = 0
    assert outside.max() < 0.05


def test_a_merged_thing_hides_its_ground_and_leaves_the_rest():
    ground = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    thing = standing()
    left, top, right, bottom = thing.box
    image = merge(ground, thing, seeded(1), 0.0, lies=False, grounded=False)
    assert np.array_equal(image[: top - 5], ground[: top - 5]) and ground.min() == 0.5
    inside = image[top + 10 : bottom - 10, left + 10 : right - 10].mean((0, 1))
    assert inside[0] > 2 * inside[2]
    shaded = merge(ground, thing, seeded(1), 0.0, lies=False, grounded=True)
    assert shaded[bottom + 1, (left + right) // 2].max() < 0.45
    night = merge(ground * 0.1, thing, seeded(1), 0.0, lies=False, grounded=False)
    assert night[top + 10 : bottom - 10, left + 10 : right - 10].mean() < inside.mean()


def test_the_same_seed_gives_the_same_composites_however_many(things):
    first, again = things.render(4, 7, 3), things.render(2, 7, 3)
    assert np.array_equal(first.images[:2], again.images) and first.captions[:2] == again.captions
    assert not np.array_equal(first.images[:2], things.render(2, 7, 4).images)
    assert first.images.shape == (4, 256, 256, 3) and first.coverage.shape == (4, 32, 32)


def test_coverage_and_boxes_say_where_things_are(things):
    scenes = things.render(40, 1, 0)
    assert scenes.coverage.min() >= 0 and scenes.coverage.max() <= 1
    for cover, known in zip(scenes.coverage.astype(np.float32), scenes.attributes, strict=True):
        assert (cover.max() > 0) == (known["noun"] is not None) == (known["box"] is not None)
        if known["count"] == 1:
            left, top, right, bottom = (edge // 8 for edge in known["box"])
            assert cover[max(0, top - 1) : bottom + 2, max(0, left - 1) : right + 2].sum() > 0.9 * cover.sum()
    assert {"fox", "apple", "umbrella"} <= {known["noun"] for known in scenes.attributes}


# Captions.


def test_the_tokenizer_knows_every_word_of_every_caption():
    known = set(vocabulary())
    for i, noun in enumerate(NOUNS):
        for k in range(6):
            draw = seeded(i, k)
            said = Said(
                noun, ("fluent", "furniture")[k % 2], "blue", k > 2, (None, 5, 90, 170)[k % 4], 10 + 10 * k, k == 5
            )
            other = Said("fox", "fluent")
            ground = photographs.PHOTOGRAPHS[(i + k) % len(PHOTOGRAPHS)].words
            text = caption(draw, [said, other] if k == 4 else [said], ground[0] if ground else None)
            assert set(split_words(text)) <= known, text
    assert not {word for styles in STYLES.values() for text in styles for word in split_words(text)} - known


def test_people_are_not_called_by_the_colour_of_their_clothes():
    assert not any("black" in caption(seeded(i), [Said("man", "furniture", "black")], None) for i in range(60))


def test_a_turned_colour_is_named_and_plurals_take_no_article():
    texts = [caption(seeded(i), [Said("scissors", "fluent", "green", turned=True)], None) for i in range(60)]
    assert sum("green scissors" in text for text in texts) > 54
    assert not any("a green scissors" in text for text in texts if "toy" not in text)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "words"),
    [
        (None, None, None),
        (5, 10, "from the front"),
        (-92, 10, "from the side"),
        (170, 10, "from behind"),
        (170, 60, "from above"),
    ],
)
def test_views_are_called_what_they_are(azimuth, elevation, words):
    assert view_words(Said("car", "furniture", azimuth=azimuth, elevation=elevation)) == words
    if words != "from above":  # a hamburger has no front
        assert view_words(Said("hamburger", "furniture", azimuth=azimuth, elevation=elevation)) is None


# The script.


def test_the_script_makes_shards_credits_and_a_sheet_and_resumes(unpacked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(photographs, "PHOTOGRAPHS", PHOTOS)
    monkeypatch.setattr(make_things, "_THINGS", {})
    (tmp_path / "sources").symlink_to(unpacked)
    argv = ["--out", str(tmp_path), "--count", "3", "--val_count", "2", "--shard_size", "2"]
    assert run(make_things.main, argv) == 0
    shards = SceneShards(tmp_path / "train")
    assert len(shards) == 3 and shards[0]["image"].shape == (3, 256, 256) and len(SceneShards(tmp_path / "val")) == 2
    table = (tmp_path / "CREDITS.md").read_text()
    assert "| @lobehub/fluent-emoji-3d@1.1.0 | rendered objects with alpha | MIT |" in table
    assert "umbrella (2)" in table
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 8 * 256
    stamp = (tmp_path / "train/00000.images.npy").stat().st_mtime_ns
    assert run(make_things.main, argv) == 0
    assert (tmp_path / "train/00000.images.npy").stat().st_mtime_ns == stamp
    for option, there in (("--views", "views 10"), ("--seed", "seed 0")):
        assert run(make_things.main, [*argv, option, "7"]) == 2
        assert f"was made with {there}, and now it is 7: the two would be mixed" in capsys.readouterr().err
    noun = replace(NOUNS["umbrella"], words=("umbrella", "brolly"))
    monkeypatch.setitem(NOUNS, "umbrella", noun)
    assert run(make_things.main, argv) == 2 and "was made with nouns " in capsys.readouterr().err


def test_options_of_a_run_that_made_nothing_bind_no_later_one(tmp_path, monkeypatch):
    def offline(folder):
        raise UserError("npm cannot be reached")

    monkeypatch.setattr("ldm.data.things.sources.fetch", offline)
    argv = ["--out", str(tmp_path), "--views"]
    assert run(make_things.main, [*argv, "7"]) == 2
    make_things.check_options(make_things.parse([*argv, "8"]))
    assert json.loads((tmp_path / "made.json").read_text())["views"] == 8
