"""Objects from configs, and the choice of device and precision: mistakes are one line that names them."""

import pytest
import torch
from omegaconf import OmegaConf

from ldm.errors import MissingExtra, UserError
from ldm.util import choose_device, choose_precision, get_obj_from_str, instantiate_from_config

CPU = torch.device("cpu")


class Box:
    def __init__(self, size: int, colour: str = "red"):
        if size < 0:
            raise ValueError(f"size {size} is negative")
        self.size, self.colour = size, colour


class Broken:
    def __init__(self):
        raise TypeError("a bug of ours")


BOX = f"{__name__}.Box"


def error_of(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
    return str(error.value)


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_a_config_becomes_its_object(wrap):
    box = instantiate_from_config(wrap({"target": BOX, "params": {"size": 3}}))
    assert isinstance(box, Box) and (box.size, box.colour) == (3, "red")
    box = instantiate_from_config(wrap({"target": BOX, "params": {"size": 3}, "other": 1}), size=4, colour="blue")
    assert (box.size, box.colour) == (4, "blue")
    for nothing in ({}, {"params": None}, {"params": {}}):
        assert isinstance(instantiate_from_config(wrap({"target": "torch.nn.Identity"} | nothing)), torch.nn.Identity)


def test_the_config_is_not_changed():
    config = {"target": BOX, "params": {"size": 3}}
    instantiate_from_config(config, size=4)
    assert config == {"target": BOX, "params": {"size": 3}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"params": {}}, ["'target'", "params"]),
        ({"target": BOX}, [BOX, "'size'"]),
        ({"target": BOX, "params": {"size": 1, "weight": 2}}, [BOX, "'weight'"]),
        ({"target": BOX, "params": {"size": -1}}, [BOX, "size -1 is negative"]),
        ({"target": f"{__name__}.Bag"}, [f"{__name__}.Bag"]),
        ({"target": "no_such_package.Box"}, ["no_such_package.Box"]),
        ({"target": "Box"}, ['"Box"', "package.module.Name"]),
        ({"target": ""}, ["package.module.Name"]),
        ({"target": None}, ["None", "package.module.Name"]),
        ({"target": ".relative.Box"}, [".relative.Box"]),
    ],
)
def test_a_config_s_mistakes_are_one_line(config: dict, words: list[str]):
    message = error_of(instantiate_from_config, config)
    assert all(word in message for word in words), message


def test_a_bug_within_a_class_keeps_its_own_error():
    with pytest.raises(TypeError, match="a bug of ours"):
        instantiate_from_config({"target": f"{__name__}.Broken"})


def test_objects_are_found_by_their_path():
    assert get_obj_from_str("torch.nn.Identity") is torch.nn.Identity
    assert get_obj_from_str("math.pi") == pytest.approx(3.14159, abs=1e-5)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_fastest_device_there_is(monkeypatch, cuda: bool, mps: bool, expected: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == choose_device() == torch.device(expected)


def test_a_named_device_is_taken_at_its_word():
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["banana", "", "cuda:99", "meta", "privateuseone", "fpga", "CPU"])
def test_a_device_that_cannot_be_had_is_one_line(name: str):
    message = error_of(choose_device, name)
    assert message.startswith(f"`device={name}` ") and "`device=auto`" in message


def test_auto_precision_is_the_device_s(monkeypatch):
    assert choose_precision("auto", torch.device("mps")) == torch.float16
    for flags, expected in (
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC 9R14"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"avx512_bf16": True, "amx_tile": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert choose_precision("auto", CPU) == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_auto_takes_bfloat16_of_those_gpus_alone_that_compute_in_it(capability, expected, monkeypatch):
    """Volta (7.0) and Turing (7.5) imitate it, slower than float32, and torch calls that supported."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose_precision("auto", torch.device("cuda", 1)) == expected


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_precision_is_taken_at_its_word(name: str):
    assert choose_precision(name, CPU) == getattr(torch, name)


@pytest.mark.parametrize("name", ["float8", "", "Float32", "half"])
def test_an_unknown_precision_is_one_line(name: str):
    message = error_of(choose_precision, name, CPU)
    assert message.startswith(f"`precision={name}` ") and "bfloat16" in message


def test_a_missing_extra_names_the_package_and_the_way_to_get_it():
    error = MissingExtra("imageio", "video", "--save_video")
    assert isinstance(error, UserError)
    assert str(error) == '--save_video needs the package "imageio": pip install imageio (the extra "video" has it)'
