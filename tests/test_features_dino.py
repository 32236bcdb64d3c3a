"""Transformers from Hugging Face, against forwards written out by hand from the saved weights."""

import gc
import json
import math
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.cache import extract_all
from jacobinerf_ns.features.dino import DinoConfig
from jacobinerf_ns.features.frozen import normalised

PATCH, HEADS, LAYERS, HIDDEN = 8, 4, 3, 32
TINY = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": PATCH,
    "layer_norm_eps": 1e-6,
}
KINDS = {
    "vit": (ViTConfig, ViTModel),
    "dinov2": (Dinov2Config, Dinov2Model),
    "registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    "dinov3": (DINOv3ViTConfig, DINOv3ViTModel),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    """Tiny models with all weights random, saved as the hub has them."""
    saved = {}
    for name, (config, model) in KINDS.items():
        torch.manual_seed(len(name))
        saved[name] = str(tmp_path_factory.mktemp(name))
        built = model(config(**TINY), **({"add_pooling_layer": False} if name == "vit" else {}))
        for parameter in built.parameters():
            parameter.data.normal_(std=0.3)
        built.save_pretrained(saved[name])
    return saved


@pytest.fixture
def frame(tmp_path: Path) -> Frame:
    """50x70 pixels: 40x56 after resizing to a shorter side of 40."""
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return Frame(0, tmp_path / "image.png", (25, 35))


def prepared(frame: Frame) -> torch.Tensor:
    """The image as the model is to see it, with ImageNet's mean and deviation."""
    image = Image.open(frame.path).resize((56, 40), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image)).float().permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / std[:, None, None]


def by_hand(folder: str, frame: Frame, stride: int, layer: int) -> dict[str, torch.Tensor]:
    """Keys and tokens [rows cols dim] of a ViT or DINOv2, from the weights file and the papers."""
    weights = load_file(Path(folder) / "model.safetensors")
    scaled = any("layer_scale1" in name for name in weights)
    names = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
    if not scaled:
        names = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
    norm1, norm2, fc1, fc2 = names
    conv = "embeddings.patch_embeddings.projection"
    patches = F.conv2d(prepared(frame), weights[f"{conv}.weight"], weights[f"{conv}.bias"], stride=stride)
    rows, cols = patches.shape[-2:]
    positions = weights["embeddings.position_embeddings"][0]
    square = positions[1:].T.reshape(1, HIDDEN, 32 // PATCH, 32 // PATCH)
    spread = F.interpolate(square, (rows, cols), mode="bicubic", align_corners=False)[0].flatten(1).T
    x = torch.cat([weights["embeddings.cls_token"][0] + positions[:1], patches[0].flatten(1).T + spread])
    for i in range(layer + 1):
        block = {k.split(f"layer.{i}.")[1]: v for k, v in weights.items() if f"layer.{i}." in k}

        def linear(v, name, block=block):
            return v @ block[f"{name}.weight"].T + block[f"{name}.bias"]

        def norm(v, name, block=block):
            return F.layer_norm(v, (HIDDEN,), block[f"{name}.weight"], block[f"{name}.bias"], 1e-6)

        q, keys, v = (linear(norm(x, norm1), f"attention.attention.{part}") for part in ("query", "key", "value"))
        heads = [m.view(-1, HEADS, HIDDEN // HEADS).transpose(0, 1) for m in (q, keys, v)]
        attention = (heads[0] @ heads[1].transpose(1, 2) / math.sqrt(HIDDEN / HEADS)).softmax(-1)
        mixed = linear((attention @ heads[2]).transpose(0, 1).flatten(1), "attention.output.dense")
        x = x + mixed * (block["layer_scale1.lambda1"] if scaled else 1)
        fed = linear(F.gelu(linear(norm(x, norm2), fc1)), fc2)
        x = x + fed * (block["layer_scale2.lambda1"] if scaled else 1)
    return {"key": keys[1:].view(rows, cols, -1), "token": x[1:].view(rows, cols, -1)}


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("stride", [0, None, 3])
@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_facets_equal_a_forward_by_hand(folders, frame, kind, stride, layer):
    step = {0: PATCH, None: PATCH // 2, 3: 3}[stride]
    expected = by_hand(folders[kind], frame, step, layer % LAYERS)
    for facet in ("key", "token"):
        config = DinoConfig(model=folders[kind], facet=facet, layer=layer, load_size=40, stride=stride)
        found = config.setup().extract(frame).values
        assert found.shape == ((40 - PATCH) // step + 1, (56 - PATCH) // step + 1, HIDDEN)
        torch.testing.assert_close(found, expected[facet], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["registers", "dinov3"])
def test_class_and_register_tokens_are_left_out(folders, frame, kind):
    config = DinoConfig(model=folders[kind], facet="token", load_size=40, stride=0)
    model = KINDS[kind][1].from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        states = model(prepared(frame), output_hidden_states=True).hidden_states[LAYERS]
    prefix = 1 + model.config.num_register_tokens
    assert states.shape[1] == prefix + 35
    found = config.setup().extract(frame).values
    torch.testing.assert_close(found.flatten(0, 1), states[0, prefix:], rtol=1e-4, atol=1e-4)


def test_rotary_positions_spread_over_the_overlapping_grid(folders, frame):
    model = DINOv3ViTModel.from_pretrained(folders["dinov3"]).eval()
    model.embeddings.patch_embeddings.stride = (4, 4)
    rows, cols = 9, 13
    centres = [2 * (torch.arange(n) + 0.5) / n - 1 for n in (rows, cols)]
    grid = torch.cartesian_prod(*centres)
    quarter = HIDDEN // HEADS // 4
    frequencies = 100.0 ** -(torch.arange(quarter) / quarter)
    angles = (2 * math.pi * grid[:, :, None] * frequencies).flatten(1).repeat(1, 2)
    with torch.no_grad():
        state = model.embeddings(prepared(frame))
        for layer in model.model.layer:
            state = layer(state, position_embeddings=(angles.cos(), angles.sin()))
    found = DinoConfig(model=folders["dinov3"], facet="token", load_size=40, stride=4).setup().extract(frame).values
    assert found.shape == (rows, cols, HIDDEN)
    torch.testing.assert_close(found.flatten(0, 1), state[0, -rows * cols :], rtol=1e-4, atol=1e-4)


@pytest.fixture
def frames(tmp_path: Path) -> list[Frame]:
    """Seven images of two sizes, and one whose file is larger than its frame says."""
    sizes = [(50, 70), (40, 40), (50, 70), (50, 70), (40, 40), (100, 140), (50, 60), (50, 70)]
    found = []
    for i, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        found.append(Frame(i, tmp_path / f"{i}.png", (25, 35) if width > height else (20, 20)))
    return found


@pytest.mark.parametrize("kind", list(KINDS))
def test_images_together_are_as_images_alone(folders, frames, kind):
    alone = DinoConfig(model=folders[kind], load_size=40).setup()
    together = DinoConfig(model=folders[kind], load_size=40, batch_size=3).setup()
    found = dict(together.extract_many(frames))
    assert sorted(found) == list(range(len(frames)))
    assert together.fingerprint() == alone.fingerprint()
    for i, frame in enumerate(frames):
        expected = alone.extract(frame)
        assert (found[i].origin, found[i].step) == (expected.origin, expected.step)
        torch.testing.assert_close(found[i].values, expected.values, rtol=1e-5, atol=1e-5)


def test_the_model_runs_once_for_images_of_one_size(folders, frames, tmp_path):
    extractor = DinoConfig(model=folders["vit"], load_size=40, batch_size=4).setup()
    sizes = []
    extractor.model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    filled = extract_all(extractor, frames, tmp_path / "cache")
    assert filled.made == len(set(filled.paths)) == len(frames)
    assert sum(shape[0] for shape in sizes) == len(frames)
    assert max(shape[0] for shape in sizes) == 4
    settings: Any = extractor.model.config
    assert settings._attn_implementation == "sdpa"


def test_a_broken_image_costs_no_finished_one(folders, frames, tmp_path):
    frames[3].path.write_bytes(b"no image")
    extractor = DinoConfig(model=folders["vit"], load_size=40).setup()
    with pytest.raises(UserError, match=r"3\.png cannot be read"):
        extract_all(extractor, frames, tmp_path / "cache")
    folder = next((tmp_path / "cache").iterdir())
    assert len(list(folder.glob("*.safetensors"))) == 4  # the two of the smaller size come first


@pytest.mark.parametrize("kind", list(KINDS))
def test_bfloat16_is_near_and_kept_apart(folders, frame, kind):
    exact = DinoConfig(model=folders[kind], load_size=40, stride=0).setup()
    half = DinoConfig(model=folders[kind], load_size=40, stride=0, precision="bfloat16").setup()
    values, expected = half.extract(frame).values, exact.extract(frame).values
    assert values.dtype == torch.float32
    assert torch.cosine_similarity(values, expected, dim=-1).min() > 0.98
    assert half.fingerprint() != exact.fingerprint()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", list(KINDS))
def test_on_a_gpu_features_are_near_those_of_the_cpu(folders, frames, kind):
    exact = DinoConfig(model=folders[kind], load_size=40).setup()
    there = DinoConfig(model=folders[kind], load_size=40).setup("cuda")
    assert (there.dtype, there.batch_size) == (torch.bfloat16, 8)
    found = dict(there.extract_many(frames))
    assert sorted(found) == list(range(len(frames)))
    for i, frame in enumerate(frames):
        values, expected = found[i].values, exact.extract(frame).values
        assert values.device.type == "cpu"
        assert torch.cosine_similarity(values, expected, dim=-1).min() > 0.98


def test_pixels_are_normalised_to_the_bit_as_before(folders, frame):
    extractor = DinoConfig(model=folders["vit"], load_size=40).setup()
    image = extractor._read(0, frame)
    mean, std = (torch.tensor(values) for values in (extractor.backbone.mean, extractor.backbone.std))
    expected = ((torch.from_numpy(image.pixels.astype(np.float32) / 255) - mean) / std).permute(2, 0, 1)
    assert torch.equal(normalised(torch.from_numpy(image.pixels)[None], mean, std)[0], expected)


def test_patch_centres(folders, frame):
    grid = DinoConfig(model=folders["vit"], load_size=40, stride=3).setup().extract(frame)
    assert grid.origin == pytest.approx((4 / 40, 4 / 56))
    assert grid.step == pytest.approx((3 / 40, 3 / 56))


def test_normalisation_is_the_model_s_own(folders, frame, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in Path(folders["vit"]).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    plain = DinoConfig(model=str(copy), load_size=40).setup()
    values = plain.extract(frame).values
    (copy / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    other = DinoConfig(model=str(copy), load_size=40).setup()
    assert other.backbone.mean == (0.5, 0.5, 0.5)
    assert other.fingerprint() != plain.fingerprint()
    assert not torch.allclose(other.extract(frame).values, values, atol=0.01)


def test_the_fingerprint_follows_weights_and_settings_and_nothing_else(folders, tmp_path):
    def fingerprint(folder=folders["vit"], **settings):
        return DinoConfig(model=str(folder), **settings).setup().fingerprint()

    first = fingerprint()
    assert fingerprint() == first  # The pooler is not in the file, and drawn anew at each loading.
    assert fingerprint(layer=LAYERS - 1) == first
    assert fingerprint(stride=PATCH // 2) == first
    others = [fingerprint(layer=0), fingerprint(stride=0), fingerprint(facet="token"), fingerprint(load_size=80)]
    model = ViTModel.from_pretrained(folders["vit"], add_pooling_layer=False)
    model.save_pretrained(tmp_path / "same")
    assert fingerprint(tmp_path / "same") == first
    model.get_parameter("layers.1.mlp.fc1.bias").data[3] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    others.append(fingerprint(tmp_path / "changed"))
    assert len({first, *others}) == 6


def test_the_model_is_freed_with_the_extractor(folders, frame, tmp_path):
    extractor = DinoConfig(model=folders["dinov2"], load_size=40).setup()
    extract_all(extractor, [frame], tmp_path / "cache")
    gc.collect()
    gc.disable()
    try:
        weights = weakref.ref(next(extractor.model.parameters()))
        del extractor
        assert weights() is None
    finally:
        gc.enable()


def test_no_network_and_no_model_is_one_line_that_helps(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        DinoConfig(model="nobody/no-such-model").setup()
    assert time.monotonic() - start < 20
    message = str(caught.value)
    assert "\n" not in message
    assert "model nobody/no-such-model was not found on this computer and could not be fetched" in message
    assert str(tmp_path / "jacobinerf-ns" / "models" / "nobody--no-such-model") in message
    assert "--model" in message
    assert "handcrafted" in message


def test_the_folder_that_was_named_is_found_when_filled(folders, frame, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    by_name = tmp_path / "jacobinerf-ns" / "models" / "nobody--vit"
    by_name.mkdir(parents=True)
    for path in Path(folders["vit"]).iterdir():
        (by_name / path.name).write_bytes(path.read_bytes())
    fingerprint = DinoConfig(model="nobody/vit").setup().fingerprint()
    assert fingerprint == DinoConfig(model=folders["vit"]).setup().fingerprint()


def test_bad_folders_are_named(folders, tmp_path):
    with pytest.raises(UserError, match=r"model folder .*gone does not exist"):
        DinoConfig(model=str(tmp_path / "gone")).setup()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model folder .*empty has no config\.json"):
        DinoConfig(model=str(tmp_path / "empty")).setup()
    config = Path(folders["vit"], "config.json").read_text()
    (tmp_path / "empty" / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"model folder .*empty cannot be loaded"):
        DinoConfig(model=str(tmp_path / "empty")).setup()
    weights = Path(folders["vit"], "model.safetensors").read_bytes()
    (tmp_path / "empty" / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(UserError, match=r"cannot be loaded"):
        DinoConfig(model=str(tmp_path / "empty")).setup()
    (tmp_path / "empty" / "model.safetensors").write_bytes(weights)
    deeper = json.loads(config) | {"num_hidden_layers": LAYERS + 1}
    (tmp_path / "empty" / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(UserError, match=r"lack 16 parameters .* do not belong together"):
        DinoConfig(model=str(tmp_path / "empty")).setup()
    wider = json.loads(config) | {"hidden_size": 64}
    (tmp_path / "empty" / "config.json").write_text(json.dumps(wider))
    with pytest.raises(UserError):
        DinoConfig(model=str(tmp_path / "empty")).setup()


def test_models_without_patches_or_layers_are_refused(tmp_path):
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="give a plain vision transformer"):
        DinoConfig(model=str(tmp_path)).setup()


def test_settings_out_of_range_are_refused(folders):
    with pytest.raises(UserError, match=r"layer 3 given, and .* has 3: give 0 to 2, or -1"):
        DinoConfig(model=folders["vit"], layer=3).setup()
    with pytest.raises(UserError, match="stride 9 given, and the model's patches have 8 pixels"):
        DinoConfig(model=folders["vit"], stride=9).setup()
    with pytest.raises(UserError, match="batch size 0 given"):
        DinoConfig(model=folders["vit"], batch_size=0).setup()
    with pytest.raises(UserError, match="load size 4 given"):
        DinoConfig(model=folders["vit"], load_size=4).setup()


def test_a_local_folder_stays_found_from_another_directory(folders, monkeypatch, tmp_path):
    monkeypatch.chdir(Path(folders["vit"]).parent)
    config = DinoConfig(model=Path(folders["vit"]).name)
    assert config.model == folders["vit"]
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config
    assert DinoConfig().model == "facebook/dino-vits8"
