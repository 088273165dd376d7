"""The fast paths give what the plain one gives; the benchmark measures them, tells what fails, and leaves a record."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm.benchmark import benchmark as module
from ldm.benchmark import subjects
from ldm.benchmark.benchmark import Benchmark, run_benchmark
from ldm.benchmark.cold import process
from ldm.benchmark.machine import measure
from ldm.benchmark.parts import Sizes, parts
from ldm.benchmark.report import Report, Row
from ldm.benchmark.subjects import PLAIN, Way, random_model, ways
from ldm.cli import run
from ldm.editing.reconstruct import ReconstructionOptions, ReconstructionTask, decode_prediction, psnr, reconstruct
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules.model import Decoder
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.util import peak_memory
from scripts import benchmark
from tests.convert import randomise
from tests.tiny import normal, save_tiny_model, tiny_config, tiny_model, tiny_picture

CPU = torch.device("cpu")


# --- what is computed once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
@torch.no_grad()
def test_a_prepared_context_changes_nothing(pooled: bool, depth: int):
    options = dict(num_heads=2, context_dim=24, pooled_context=pooled, transformer_depth=depth)
    unet = randomise(UNetModel(8, 4, 32, 4, 1, [1, 2], channel_mult=[1, 2], **options))
    z, t, context = normal(6, 4, 8, 8), torch.tensor([5, 100, 900, 5, 100, 900]), normal(2, 7, 24, seed=2)
    rows = context.repeat_interleave(3, dim=0)  # the empty prompt for half of the batch, the prompt for the other
    plain = unet(z, t, rows)
    for given in (context, unet.prepare_context(rows), unet.prepare_context(context)):
        torch.testing.assert_close(unet(z, t, given), plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(unet(z, t, context.flip(0)), plain, atol=1e-2), "the rows are in the wrong order"


@torch.no_grad()
def test_with_a_prepared_context_no_step_projects_it(monkeypatch: pytest.MonkeyPatch):
    model, context = tiny_model(), normal(2, 7, 32)
    prepared = model.prepare_context(context)
    expected = model.apply_model(normal(4, 4, 8, 8), torch.full((4,), 7), context)
    project, seen = CrossAttention.project, []
    monkeypatch.setattr(CrossAttention, "project", lambda self, x: seen.append(len(x)) or project(self, x))
    out = model.apply_model(normal(4, 4, 8, 8), torch.full((4,), 7), prepared)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert seen and set(seen) == {4}, "self-attention alone"


def test_gradients_reach_the_projections_of_a_context():
    unet = randomise(UNetModel(8, 4, 32, 4, 1, [1, 2], channel_mult=[1, 2], num_heads=2, context_dim=24))
    unet(normal(2, 4, 8, 8), torch.tensor([5, 9]), normal(2, 7, 24)).square().mean().backward()
    layers = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    assert layers and all(layer.to_k.weight.grad.any() and layer.to_v.weight.grad.any() for layer in layers)


@pytest.mark.parametrize("mode", ["regions", pytest.param("graphs", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_compiled_denoiser_predicts_the_same(mode: str):
    plain, compiled = tiny_model(), tiny_model()
    compiled.compile_denoiser(mode, backend="eager")  # traced as for any backend, but run as it stands
    context = normal(2, 7, 32)
    for rows in (4, 8):
        z, t = normal(rows, 4, 8, 8), torch.full((rows,), 500)
        expected = plain.apply_model(z, t, context)
        given = compiled.apply_model(z, t, compiled.prepare_context(context))
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match="regions or graphs"):
        compiled.compile_denoiser("fast")


# --- fine-tuning -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task() -> ReconstructionTask:
    model, z0, mask = tiny_model(), normal(1, 4, 4, 6), torch.zeros(1, 1, 32, 48)
    mask[..., 8:24, 10:30] = 1
    return ReconstructionTask(tiny_picture(32, 48), decode_prediction(model, z0), mask, z0, model)


QUICK = ReconstructionOptions(optimization_steps=12, learning_rate=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("options", [dict(attn_resolutions=[8]), dict(tanh_out=True), dict(give_pre_end=True)])
def test_a_decoder_in_two_parts_is_the_decoder(options: dict):
    sizes = dict(ch=32, out_ch=3, z_channels=4, resolution=16, num_res_blocks=1, ch_mult=[1, 2, 2])
    decoder, z = randomise(Decoder(**sizes, **options)), normal(1, 4, 4, 6)
    for levels in range(4):
        assert torch.equal(decoder.finish(decoder.begin(z, levels), levels), decoder(z))


def test_the_finest_levels_alone_bring_back_the_background(task: ReconstructionTask):
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    result = reconstruct(task, replace(QUICK, tuned_levels=1))
    assert result.background_psnr > psnr(task.x_hat, task.x_source, 1 - task.mask) + 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())
    # With no weight on the background nothing is to be done: it starts from the prediction.
    still = reconstruct(task, replace(QUICK, tuned_levels=1, background_weight=0, optimization_steps=2))
    torch.testing.assert_close(still.x, task.x_hat.clamp(-1, 1), rtol=0, atol=1e-5)


def test_bfloat16_steps_reach_what_float32_reaches(task: ReconstructionTask):
    plain = reconstruct(task, QUICK)
    half = reconstruct(task, replace(QUICK, precision="bfloat16"))
    assert half.x.dtype == torch.float32 and not torch.equal(half.x, plain.x)
    assert half.background_psnr == pytest.approx(plain.background_psnr, abs=0.5)


def test_options_of_the_fine_tuning_are_checked(task: ReconstructionTask):
    with pytest.raises(UserError, match="`tuned_levels` is 0"):
        ReconstructionOptions(tuned_levels=0)
    with pytest.raises(UserError, match='`precision` is "float16"'):
        ReconstructionOptions(precision="float16")
    with pytest.raises(UserError, match="`tuned_levels` is 9: this model's decoder has 4"):
        reconstruct(task, replace(QUICK, tuned_levels=9))


def test_channels_last_gives_the_gradients_of_the_other_layout(task: ReconstructionTask):
    """PyTorch issue 140913: group norm in this layout has had wrong gradients of its weights."""
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        decoder = copy.deepcopy(task.model.first_stage_model.decoder).requires_grad_(True).to(memory_format=layout)
        (decoder(task.z0) - task.x_source).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in decoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.any()
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


# --- the benchmark ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_ranker(monkeypatch: pytest.MonkeyPatch):
    """A folder without a CLIP model would ask the hub for one."""
    monkeypatch.setattr(subjects, "find_ranker", lambda clip, device: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_every_way_is_held_against_the_plain_one(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "QUICK", Sizes(batch=2, images=1, steps=2, tuning=1))
    monkeypatch.setattr(module, "matrix_rate", lambda device, dtype: 1e12)
    names = ("text", "unet-2", "decoder", "encoder", "batch", "tuning")
    job, rows = Benchmark([str(folder)], names, "cpu", "bfloat16", compare=True, repeats=1, quick=True), []
    report = run_benchmark(job, on_way=lambda so_far: rows.append(len(so_far.rows)))
    assert report.failures == []
    assert rows == sorted(set(rows)) and rows[0] == len(names) and rows[-1] == len(report.rows), "told after each way"
    found = {(row.part, row.way): row for row in report.rows}
    assert {part for part, _ in found} == set(names)
    for (part, way), row in found.items():
        assert len(row.seconds) == 2 and row.median > 0 and row.operations > 0
        assert row.share == pytest.approx(row.operations / row.median / 1e12)
        if way == "plain float32":
            assert row.error < 1e-5
        elif part == "batch" and way.startswith("diffusers"):
            assert row.error is None, "they draw other noise and blend nothing"
        elif part not in ("batch", "tuning"):
            assert 0 < row.error < 0.05
    for part in ("text", "unet-2", "decoder", "encoder"):
        assert {"plain float32", "bfloat16", "diffusers bfloat16"} <= {way for other, way in found if other == part}
    assert ("tuning", "diffusers bfloat16") not in found
    assert "has no CLIP model here" in report.notes[0]


def test_diffusers_with_our_weights_gives_our_results(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "matrix_rate", lambda device, dtype: 1e12)
    names = ("text", "unet-8", "decoder", "encoder")
    report = run_benchmark(Benchmark([str(folder)], names, "cpu", "float32", compare=True, repeats=1))
    errors = {row.part: row.error for row in report.rows if row.way == "diffusers float32"}
    assert errors.keys() == set(names) and max(errors.values()) < 1e-5


def test_what_fails_is_told_and_stops_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "matrix_rate", lambda device, dtype: 1e12)
    monkeypatch.setattr(LatentDiffusion, "decode", lambda self, z: z * math.nan)
    monkeypatch.setattr(LatentDiffusion, "encode", lambda self, x: 1 / 0)
    report = run_benchmark(Benchmark([str(folder)], ("text", "decoder", "encoder"), "cpu", "float32", repeats=1))
    assert {row.part for row in report.rows} == {"text", "decoder"}
    assert len(report.failures) == 2
    assert "decoder: the result is no number" in report.failures[0]
    assert "encoder: ZeroDivisionError" in report.failures[1]


def test_a_process_s_memory_is_its_own(folder: Path):
    ballast = torch.ones(300_000_000)  # 1.2 GB in this process
    cold = process(str(folder), "cpu", "float32", samples=1, steps=1, repeats=1)
    assert len(ballast) and cold.whole.peak < peak_memory() - 5e8
    assert 0.1 < cold.before.median < cold.whole.median < 600
    with pytest.raises(UserError, match=r"text_editing\.py failed: .*sampel"):
        process("sampel", "cpu", "float32", samples=1, steps=1, repeats=1)


def test_unknown_parts_are_named():
    with pytest.raises(UserError, match="--parts unet-3: the parts are text unet-2"):
        run_benchmark(Benchmark(only=("unet-3",), device="cpu"))


def test_the_ways_of_each_device():
    names = [way.name for way in ways(CPU, "float32", compare=True, compiled=False)]
    assert names == ["plain float32", "float32", "float32 channels-last", "diffusers float32"]
    gpu = {way.name: way for way in ways(torch.device("cuda"), "bfloat16", compare=True, compiled=True)}
    assert gpu["bfloat16 graphs"].compiled == "graphs" and gpu["bfloat16 compiled"].compiled == "regions"
    assert "diffusers bfloat16 compiled" in gpu and next(iter(gpu.values())) == PLAIN


def test_only_what_a_way_changes_is_measured_in_it():
    known = parts(Sizes())
    concerned = {name for name, part in known.items() if part.concerns(Way("float32"))}
    assert concerned == {"unet-2", "unet-8", "unet-48", "batch", "edit"}
    assert all(part.concerns(PLAIN) for part in known.values())
    assert not known["tuning"].concerns(Way("d", "bfloat16", "diffusers"))
    assert not known["clip"].concerns(Way("b", "bfloat16"))


def test_a_random_model_leaves_no_branch_at_zero():
    params = tiny_config("elsewhere")["model"]["params"]
    one, two = random_model(params), random_model(params)
    assert all(parameter.any() for parameter in one.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.get_learned_conditioning(["a red ball"]).shape == (1, 77, 32)


def test_the_warm_up_is_not_counted():
    calls = []
    timing = measure(lambda: calls.append(1), CPU, repeats=3, warmup=2)
    assert len(calls) == 5 and len(timing.seconds) == 3


def test_a_report_is_a_table_and_json(tmp_path: Path):
    plain = Row("m", "edit", "an edit", "plain float32", (1.9, 2.0, 2.4), 2.0, 3 * 10**9, 4 * 10**12, 0.5, 0.0)
    quick = replace(plain, way="bfloat16", seconds=(0.5,), median=0.5, peak=None, share=None, error=math.nan)
    report = Report([plain, quick], ["bad"], ["left out"], {"float32": 4e12}, {"commit": "abc"})
    lines = report.table().splitlines()
    assert lines[2] == "| m | an edit | plain float32 | 2 | 1.9 to 2.4 | 3.00 | 4 | 50% | 0.0e+00 | 1.00 |"
    assert lines[3].endswith("|  | nan | 4.00 |") and len(lines) == 4
    report.write(tmp_path / "new" / "b.json")
    content = json.loads((tmp_path / "new" / "b.json").read_text(), parse_constant=pytest.fail)
    assert (content["commit"], content["notes"], content["failures"]) == ("abc", ["left out"], ["bad"])
    assert content["rows"][1]["error"] == "nan"


def test_the_script_writes_and_prints(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "b.json"
    words = ["--model", str(folder), "--parts", "text", "--device", "cpu", "--precision", "float32", "--quick"]
    assert run(benchmark.main, [*words, "--out", str(out)]) == 0
    assert "| text encoder, 2 prompts | plain float32 |" in capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["matrix_rates"]["float32"] > 0 and torch.__version__.startswith(content["versions"]["torch"])
    assert run(benchmark.main, [*words[:-1], "--parts", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: --parts nothing")
