"""The procedural world: reproducible, finite, truly captioned, free of held-out photographs; its shards and script."""

import json

import numpy as np
import pytest
import torch

from ldm.data.scenes import backgrounds, captions
from ldm.data.scenes.backgrounds import HELD_OUT, KINDS, PHOTOS, Backgrounds
from ldm.data.scenes.colors import COLORS
from ldm.data.scenes.materials import MATERIALS
from ldm.data.scenes.render import SIZE, Thing, cast_shadows, draw
from ldm.data.scenes.scenes import draw_look, place, render_scenes
from ldm.data.scenes.shapes import SHAPES, gradient, scatter
from ldm.data.shards import SceneShards, write_shard
from ldm.errors import UserError
from scripts import make_scenes


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the workers of make_scenes: small tensors, which several threads only slow down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pool():
    return Backgrounds(tuple(photo for photo in PHOTOS if photo.file in ("astronaut.png", "grass.png", "gravel.png")))


@pytest.fixture(scope="module")
def scenes(pool):
    return render_scenes(60, 5, pool)


def a_thing(scene: int, shape: str, material: str, rgb=(0.85, 0.07, 0.08), radius=40.0, center=(64.0, 64.0)) -> Thing:
    solid = SHAPES[shape]
    pitch, yaw = sum(solid.pitch) / 2, sum(solid.yaws[0]) / 2
    return Thing(scene, shape, material, rgb, center, radius, pitch, yaw, 0.0, (0.4, 0.7, 0.59), 0.3, 0.5)


def render_one(shape: str, material: str, background=0.5, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 128, 128) and the covered share (128, 128) of one centred thing on an even background."""
    canvas, cover = torch.full((3, 1, SIZE, SIZE), background), torch.zeros(1, SIZE, SIZE)
    things = [a_thing(0, shape, material, **kwargs)]
    cast_shadows(canvas, things)
    draw(canvas, cover, things)
    return canvas[:, 0], cover[0]


def test_the_world_has_at_least_twelve_of_each():
    assert len(SHAPES) >= 12 and len(MATERIALS) >= 12 and len(COLORS) == 12


@pytest.mark.parametrize("shape", SHAPES)
def test_every_material_renders_on_every_shape(shape):
    names = list(MATERIALS)
    canvas, cover = torch.full((3, len(names), SIZE, SIZE), 0.5), torch.zeros(len(names), SIZE, SIZE)
    things = [a_thing(k, shape, name) for k, name in enumerate(names)]
    cast_shadows(canvas, things)
    draw(canvas, cover, things)
    assert torch.isfinite(canvas).all() and canvas.min() >= 0 and canvas.max() <= 1
    share = cover.mean((1, 2))
    disc = np.pi * 40**2 / SIZE**2
    assert (share > 0.2 * disc).all() and (share < 1.3 * disc).all(), share
    inside = cover > 0.99
    pictures = [canvas[:, k][:, inside[0]] for k in range(len(names))]
    for k in range(1, len(names)):  # no material is another one under a second name
        assert (pictures[k] - pictures[0]).abs().mean() > 0.01, names[k]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_rests_on_its_ground_and_lies_within_its_bound(shape):
    points = torch.rand(40000, 3, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    distance, rest = SHAPES[shape].distance, SHAPES[shape].rest
    assert points[distance(points) < 0].norm(dim=1).max() <= SHAPES[shape].bound
    points[:, 1] = rest + 0.05 * points[:, 1]  # a layer about the ground
    lowest = points[distance(points) < 0][:, 1].min().item()
    assert rest - 0.015 < lowest < rest + 0.03


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_never_overestimate_much(shape):
    """Sphere tracing steps through walls where a distance is greater than the true one."""
    points = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    distance = SHAPES[shape].distance
    truth = torch.cdist(points, scatter(shape, 0.12)).amin(1)
    assert (distance(points).abs() <= truth + 0.03).all()
    assert gradient(distance, points).norm(dim=1).sub(1).abs().median() < 1e-4


def test_red_plastic_ball_is_red_where_it_is_and_nowhere_else():
    image, cover = render_one("ball", "plastic")
    red = (image[0] > 1.5 * image[1]) & (image[0] > 1.5 * image[2])
    assert red[cover > 0.99].float().mean() > 0.9
    assert not red[cover == 0].any()


def test_area_and_antialiased_outline_of_a_ball():
    _, cover = render_one("ball", "plastic")
    assert cover.sum().item() == pytest.approx(np.pi * (0.95 * 40) ** 2, rel=0.01)  # unbiased
    partly = (cover > 0.02) & (cover < 0.98)
    assert partly.sum() > 100
    rows, columns = partly.nonzero(as_tuple=True)
    away = ((rows + 0.5 - 64) ** 2 + (columns + 0.5 - 64) ** 2).float().sqrt()
    assert (away - 38).abs().max() < 1.2  # only at the outline


def test_the_pixels_are_mixed_by_coverage():
    dark, cover = render_one("ball", "plastic", background=0.0)
    bright, _ = render_one("ball", "plastic", background=1.0)
    half = (cover > 0.4) & (cover < 0.6)
    upper = torch.arange(SIZE)[:, None] < 60  # no shadow there
    assert ((bright - dark).mean(0)[half & upper] > 0.3).all()


def test_an_object_casts_a_soft_shadow_below_it():
    image, cover = render_one("cube", "plastic")
    free = cover == 0
    assert image[0, 90:][free[90:]].min() < 0.4
    assert (image[0, :20][free[:20]] - 0.5).abs().max() < 0.05
    row = image[0, 100][free[100]]
    assert row.diff().abs().max() < 0.08


def test_glass_shows_its_background_and_plastic_does_not():
    change = {}
    for material in ("glass", "plastic"):
        pictures = [render_one("ball", material, background=value) for value in (0.2, 0.8)]
        inside = pictures[0][1] > 0.99
        change[material] = (pictures[1][0] - pictures[0][0]).abs().amax(0)[inside].mean()
    assert change["glass"] > 0.25 > 0.1 > change["plastic"]


@pytest.mark.parametrize("material", [name for name in MATERIALS if name != "plastic"])
def test_looks_outlive_an_autoencoders_cells(material):
    """What tells a material from plastic is coarse: half a cell of 8x8 pixels, averaged, keeps nine tenths of it."""
    inside = slice(34, 94)
    picture, plain = (render_one("ball", name, radius=50.0)[0][:, inside, inside] for name in (material, "plastic"))
    look = picture - plain
    coarse = torch.nn.functional.avg_pool2d(look, 4)
    assert coarse.std(dim=(1, 2)).norm() > 0.9 * look.std(dim=(1, 2)).norm() > 0.05


def test_metal_mirrors_a_bright_sky_above_a_dark_horizon():
    def drop(material: str) -> float:
        """How much darker the middle of a gray ball gets within three pixels."""
        picture, _ = render_one("ball", material, rgb=(0.5, 0.5, 0.51), radius=50.0)
        column = picture[:, :, 58:70].mean((0, 2))
        return (column[30:90] - column[33:93]).max().item()

    assert drop("metal") > 0.3 > 3 * drop("plastic")


def test_furry_silhouettes_fray():
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    away = ((rows + 0.5 - 64) ** 2 + (columns + 0.5 - 64) ** 2).sqrt()
    fringe = (away > 39.2) & (away < 40.0)  # the ball's outline is at 38 pixels
    furry, smooth = (render_one("ball", name)[1][fringe] for name in ("furry", "plastic"))
    assert (smooth == 0).all() and (furry == 0).any() and (furry > 0.9).any()


def test_a_die_has_pips_of_another_colour_than_a_cube():
    image, cover = render_one("die", "plastic", rgb=(0.95, 0.95, 0.94))
    assert (image.amax(0)[cover > 0.99] < 0.35).float().mean() > 0.03


def test_the_same_seed_gives_the_same_scenes(pool, scenes):
    again, other = render_scenes(60, 5, pool), render_scenes(2, 6, pool)
    assert np.array_equal(again.images, scenes.images) and np.array_equal(again.coverage, scenes.coverage)
    assert again.captions == scenes.captions and again.attributes == scenes.attributes
    assert not np.array_equal(other.images, scenes.images[:2])


def test_nothing_draws_from_the_global_generator(pool):
    before = torch.get_rng_state()
    render_scenes(6, 1, pool)
    assert torch.equal(before, torch.get_rng_state())


def test_scenes_have_the_promised_shapes_and_truthful_attributes(scenes):
    assert scenes.images.shape == (60, SIZE, SIZE, 3) and scenes.images.dtype == np.uint8
    assert scenes.coverage.shape == (60, 16, 16) and scenes.coverage.dtype == np.float16
    for text, covered, attributes in zip(scenes.captions, scenes.coverage, scenes.attributes, strict=True):
        assert (attributes["shape"] is None) == (covered.max() == 0)
        assert attributes["background"] is None or attributes["background"] in KINDS
        if attributes["shape"]:
            assert any(word in text.split() for word in SHAPES[attributes["shape"]].words)
        if "second" in attributes:
            assert any(word in text.split() for word in SHAPES[attributes["second"]["shape"]].words)
    assert ((scenes.coverage > 0.05) & (scenes.coverage < 0.95)).any()


def test_boxes_hold_the_objects(scenes):
    for covered, attributes in zip(scenes.coverage, scenes.attributes, strict=True):
        if attributes["shape"] and "second" not in attributes:
            left, top, right, bottom = attributes["box"]
            rows, columns = np.nonzero(covered > 0.3)
            if len(rows):
                assert left <= 8 * columns.min() + 8 and 8 * columns.max() <= right
                assert top <= 8 * rows.min() + 8 and 8 * rows.max() <= bottom


def test_looks_avoid_what_would_hide_the_shape():
    generator = torch.Generator().manual_seed(0)
    looks = [draw_look(generator) for _ in range(3000)]
    assert {look[0] for look in looks} == set(SHAPES) and {look[1] for look in looks} == set(MATERIALS)
    assert not [look for look in looks if look[1] in SHAPES[look[0]].avoids]


def test_objects_are_small_large_and_cut_by_the_border():
    generator = torch.Generator().manual_seed(0)
    things = [place(generator, 0, [("ball", "plastic", "red")])[0] for _ in range(500)]
    radii = np.array([thing.radius for thing in things])
    assert 20 <= radii.min() < 22 and 55 < radii.max() <= 58
    cut = np.mean([min(*t.center, SIZE - t.center[0], SIZE - t.center[1]) < 0.7 * t.radius for t in things])
    assert 0.04 < cut < 0.25


def test_captions_use_only_the_vocabulary():
    words = set(captions.vocabulary())
    generator = torch.Generator().manual_seed(0)
    used = set()
    for _ in range(6000):
        looks = [draw_look(generator) for _ in range(int(torch.randint(3, (), generator=generator)))]
        text = captions.caption(generator, looks, (*KINDS, None)[int(torch.randint(21, (), generator=generator))])
        assert text == " ".join(text.lower().split()) and text
        used.update(text.split())
    assert used == words  # and every word of the vocabulary comes up


def test_vocabulary_is_sorted_and_each_word_has_one_kind():
    kinds = captions.words_by_kind()
    words = captions.vocabulary()
    assert words == sorted(set(words)) and sum(len(group) for group in kinds.values()) == len(words)
    assert "sphere" in kinds["shape"] and "grey" in kinds["color"] and "wood" in kinds["material"]
    assert "an" in kinds["other"] and "snow" in kinds["background"]


def test_articles_and_attributes_of_captions():
    assert captions.article("orange ball") == "an orange ball" and captions.article("red ball") == "a red ball"
    generator = torch.Generator().manual_seed(0)
    assert captions.noun_phrase(generator, "ball", "yarn", "pink", complete=True) == "pink yarn ball"
    texts = [captions.caption(generator, [("ball", "yarn", "pink")], None) for _ in range(1000)]
    said = {word: np.mean([word in text for text in texts]) for word in ("pink", "a photo of", "made of", "sphere")}
    assert 0.85 < said["pink"] < 0.95 and 0.01 < said["a photo of"] < 0.1
    assert 0.1 < said["made of"] < 0.2 and 0.1 < said["sphere"] < 0.25
    assert {"a pink yarn ball", "pink yarn ball", "a ball made of pink yarn"} <= set(texts)


def test_held_out_photographs_are_never_drawn():
    assert len(HELD_OUT) == 4 and {"chelsea.png", "coffee.png", "rocket.jpg"} <= set(HELD_OUT)
    assert not {photo.file for photo in PHOTOS} & set(HELD_OUT)
    for file in HELD_OUT:
        assert backgrounds.read_photo(backgrounds.Photo(file, 1.0)).shape[0] == 3
    with pytest.raises(ValueError, match=r"chelsea\.png"):
        Backgrounds((backgrounds.Photo("chelsea.png", 1.0),))
    Backgrounds((backgrounds.Photo("chelsea.png", 1.0),), allow_held_out=True)


def test_backgrounds_are_in_range_and_all_kinds_come_up(pool):
    generator = torch.Generator().manual_seed(0)
    drawn = [pool.draw(generator) for _ in range(60)]
    assert all(image.shape == (3, SIZE, SIZE) and image.min() >= 0 and image.max() <= 1 for image, _ in drawn)
    assert any(name is None for _, name in drawn)
    for kind in KINDS.values():
        if kind.paint:
            image = kind.paint(pool, generator)
            assert image.shape == (3, SIZE, SIZE) and torch.isfinite(image).all(), kind.name
    assert all(pool.draw(generator, named=True)[1] in KINDS for _ in range(20))


def test_shards_give_back_what_was_written(tmp_path, pool, scenes):
    write_shard(tmp_path, 0, scenes)
    write_shard(tmp_path, 1, render_scenes(3, 9, pool))
    data = SceneShards(tmp_path)
    assert len(data) == 63 and data.captions[:60] == scenes.captions
    sample = data[17]
    assert sample["image"].shape == (3, SIZE, SIZE) and sample["caption"] == scenes.captions[17]
    back = ((sample["image"] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(back, scenes.images[17]) and np.array_equal(data.images(17), scenes.images[17])
    assert sample["coverage"].shape == (1, 16, 16) and np.array_equal(data.coverage(17), scenes.coverage[17])
    assert data[62]["caption"] == data.captions[62] and np.array_equal(data.images(-1), data.images(62))
    with pytest.raises(IndexError):
        data[63]
    assert len(SceneShards(tmp_path, limit=1)) == 60
    assert not list(tmp_path.glob("*.part"))


def test_no_shards_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="make_scenes"):
        SceneShards(tmp_path)


def test_make_scenes_renders_only_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(make_scenes, "_pool", lambda: Backgrounds((backgrounds.Photo("grass.png", 1.0),)))
    command = ["--out", str(tmp_path), "--count", "7", "--shard_size", "3", "--workers", "1", "--seed", "4"]
    make_scenes.main(command)
    files = sorted(tmp_path.glob("0*.json"))
    assert [len(json.loads(file.read_text())["captions"]) for file in files] == [3, 3, 1]
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.iterdir()}
    files[1].unlink()
    assert make_scenes.missing_shards(tmp_path, make_scenes.parse(command)) == [(1, 3)]
    make_scenes.main(command)
    for file, (time, content) in before.items():
        assert file.read_bytes() == content  # the shard depends on the seed and its number only
        assert (file.stat().st_mtime_ns == time) == (not file.name.startswith("00001"))
    with pytest.raises(UserError, match="--seed 4"):
        make_scenes.main([*command, "--seed", "5"])
    make_scenes.main([*command, "--count", "10"])  # more of the same: the short last shard is rendered again, whole
    assert len(SceneShards(tmp_path)) == 10
