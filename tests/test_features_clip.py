"""Image-text models from Hugging Face, against forwards written out by hand from the saved weights."""

import gc
import math
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Frame
from jacobinerf_ns.features.cache import extract_all
from jacobinerf_ns.features.clip import ClipConfig, ClipExtractor, attend_alike, window_starts
from jacobinerf_ns.features.frozen import normalised
from jacobinerf_ns.features.store import open_store
from jacobinerf_ns.features.words import TextTeacher

PATCH, HEADS, LAYERS, HIDDEN, TRAINED, WORDS = 8, 4, 3, 32, 32, 24
KINDS = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}
VOCABULARY = ["<unk>", "<pad>", "<eos>", "a", "wooden", "chair", "wall", "floor", "object", "things"]


def save(kind: str, folder: Path, projection: int = 16) -> str:
    """A tiny model with all weights random, and its tokenizer, saved as the hub has them."""
    torch.manual_seed(len(kind))
    shared = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 64}
    text = shared | {"hidden_size": HIDDEN, "vocab_size": len(VOCABULARY), "max_position_embeddings": WORDS}
    text |= {"eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0, "projection_size": HIDDEN}
    vision = shared | {"hidden_size": HIDDEN, "image_size": TRAINED, "patch_size": PATCH}
    config, model = KINDS[kind]
    built = model(config(text_config=text, vision_config=vision, projection_dim=projection))
    for parameter in built.parameters():
        parameter.data.normal_(std=0.2)
    built.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    ending = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    tokenizer.post_processor = ending  # type: ignore[assignment]
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    """One tiny model of each kind."""
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture
def frames(tmp_path: Path) -> list[Frame]:
    """Images of odd sizes, several of one size, and one whose file is larger than its frame says."""
    sizes = [(50, 70), (41, 41), (50, 70), (133, 67), (50, 70), (100, 140)]
    found = []
    for i, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        found.append(Frame(i, tmp_path / f"{i}.png", (25, 35) if width > height else (20, 20)))
    return found


def shown(extractor: ClipExtractor, frame: Frame) -> torch.Tensor:
    """The image as the model is to see it [1 3 height width]."""
    pixels = torch.from_numpy(extractor._read(0, frame).pixels)[None]
    return normalised(pixels, torch.tensor(extractor.backbone.mean), torch.tensor(extractor.backbone.std))


def linear(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """An affine layer by its name."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str, eps: float) -> torch.Tensor:
    """A layer norm by its name."""
    return F.layer_norm(x, (HIDDEN,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of one image, head by head."""
    heads = [m.view(-1, HEADS, HIDDEN // HEADS).transpose(0, 1) for m in (q, k, v)]
    weights = (heads[0] @ heads[1].transpose(1, 2) / math.sqrt(HIDDEN / HEADS)).softmax(-1)
    return (weights @ heads[2]).transpose(0, 1).flatten(1)


def tokens_by_hand(weights: dict[str, torch.Tensor], pixels: torch.Tensor, kind: str, layers: int) -> torch.Tensor:
    """Tokens [tokens hidden] after so many layers."""
    patches = F.conv2d(
        pixels,
        weights["embeddings.patch_embedding.weight"],
        weights.get("embeddings.patch_embedding.bias"),
        stride=PATCH,
    )
    rows, cols = patches.shape[-2:]
    positions, first = weights["embeddings.position_embedding.weight"], int(kind == "clip")
    square = positions[first:].T.reshape(1, HIDDEN, TRAINED // PATCH, TRAINED // PATCH)
    spread = F.interpolate(square, (rows, cols), mode="bicubic", align_corners=False)[0].flatten(1).T
    x = patches[0].flatten(1).T + spread
    eps = 1e-5 if kind == "clip" else 1e-6
    if kind == "clip":
        x = torch.cat([weights["embeddings.class_embedding"][None] + positions[:1], x])
        x = norm(x, weights, "pre_layrnorm", eps)
    for i in range(layers):
        at = f"encoder.layers.{i}"
        seen = norm(x, weights, f"{at}.layer_norm1", eps)
        q, k, v = (linear(seen, weights, f"{at}.self_attn.{part}_proj") for part in "qkv")
        x = x + linear(attended(q, k, v), weights, f"{at}.self_attn.out_proj")
        fed = linear(norm(x, weights, f"{at}.layer_norm2", eps), weights, f"{at}.mlp.fc1")
        fed = fed * torch.sigmoid(1.702 * fed) if kind == "clip" else F.gelu(fed, approximate="tanh")
        x = x + linear(fed, weights, f"{at}.mlp.fc2")
    return x


def by_hand(folder: str, pixels: torch.Tensor, kind: str, attention: str = "none") -> torch.Tensor:
    """Features [rows cols dim] of one window, from the weights file and the papers."""
    everything = load_file(Path(folder) / "model.safetensors")
    weights = {key.removeprefix("vision_model."): value for key, value in everything.items() if "text_model" not in key}
    rows, cols = (side // PATCH for side in pixels.shape[-2:])
    if kind == "clip":
        x = tokens_by_hand(weights, pixels, kind, LAYERS - 1)
        at = f"encoder.layers.{LAYERS - 1}"
        seen = norm(x, weights, f"{at}.layer_norm1", 1e-5)
        values = linear(seen, weights, f"{at}.self_attn.v_proj")
        if attention == "query":
            queries = linear(seen, weights, f"{at}.self_attn.q_proj")
            values = attended(queries, queries, values)
        values = linear(values[1:], weights, f"{at}.self_attn.out_proj")
        found = norm(values, weights, "post_layernorm", 1e-5) @ weights["visual_projection.weight"].T
        return found.view(rows, cols, -1)
    x = norm(tokens_by_hand(weights, pixels, kind, LAYERS), weights, "post_layernorm", 1e-6)
    value = x @ weights["head.attention.in_proj_weight"][2 * HIDDEN :].T + weights["head.attention.in_proj_bias"][64:]
    gathered = linear(value, weights, "head.attention.out_proj")
    fed = linear(norm(gathered, weights, "head.layernorm", 1e-6), weights, "head.mlp.fc1")
    return (gathered + linear(F.gelu(fed, approximate="tanh"), weights, "head.mlp.fc2")).view(rows, cols, -1)


@pytest.mark.parametrize(("kind", "attention"), [("clip", "none"), ("clip", "query"), ("siglip", "none")])
@pytest.mark.parametrize("load_size", [TRAINED, 43])
def test_features_equal_a_forward_by_hand(folders, frames, kind, attention, load_size):
    config = ClipConfig(model=folders[kind], attention=attention, load_size=load_size, window=0)
    extractor = config.setup()
    for frame in (frames[0], frames[1], frames[3]):
        grid = extractor.extract(frame)
        expected = by_hand(folders[kind], shown(extractor, frame), kind, attention)
        assert grid.values.shape == expected.shape
        assert grid.origin == pytest.approx((0.5 / expected.shape[0], 0.5 / expected.shape[1]))
        torch.testing.assert_close(grid.values, expected, rtol=1e-5, atol=1e-5)


def test_of_an_image_of_one_patch_siglip_s_head_makes_the_image_s_own_vector(folders, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "one.png")
    extractor = ClipConfig(model=folders["siglip"], load_size=8).setup()
    frame = Frame(0, tmp_path / "one.png", (8, 8))
    model = AutoModel.from_pretrained(folders["siglip"]).eval()
    with torch.no_grad():
        whole = model.get_image_features(shown(extractor, frame), interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(extractor.extract(frame).values[0], whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_windows_are_forwards_of_their_own_averaged_where_they_overlap(folders, frames, kind):
    extractor = ClipConfig(model=folders[kind], load_size=67).setup()
    frame = frames[3]  # 133x67: 17x8 patches, windows of 4x4 by 2
    pixels = shown(extractor, frame)
    total, count = torch.zeros(17, 8, extractor.extract(frame).values.shape[-1]), torch.zeros(17, 8, 1)
    for y in (*range(0, 13, 2), 13):
        for x in (0, 2, 4):
            cut = pixels[..., y * 8 : y * 8 + 32, x * 8 : x * 8 + 32]
            total[y : y + 4, x : x + 4] += by_hand(folders[kind], cut, kind)
            count[y : y + 4, x : x + 4] += 1
    torch.testing.assert_close(extractor.extract(frame).values, total / count, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "window", "expected"),
    [(4, 4, [0]), (8, 4, [0, 2, 4]), (9, 4, [0, 2, 4, 5]), (5, 4, [0, 1]), (3, 1, [0, 1, 2]), (7, 3, [0, 1, 2, 3, 4])],
)
def test_windows_reach_the_end_of_a_side(side, window, expected):
    assert window_starts(side, window).tolist() == expected


@pytest.mark.parametrize("kind", list(KINDS))
def test_images_together_are_as_images_alone(folders, frames, kind, tmp_path):
    alone = ClipConfig(model=folders[kind], load_size=48).setup()
    together = ClipConfig(model=folders[kind], load_size=48, batch_size=3).setup()
    found = dict(together.extract_many(frames))
    assert sorted(found) == list(range(len(frames)))
    assert together.fingerprint() == alone.fingerprint()
    for i, frame in enumerate(frames):
        torch.testing.assert_close(found[i].values, alone.extract(frame).values, rtol=1e-5, atol=1e-5)
    store = open_store(together, frames, tmp_path / "cache", feature_dim=5)
    assert (store.dim, store.filled.made) == (5, len(frames))
    assert extract_all(alone, frames, tmp_path / "cache").made == 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_words_and_patches_are_as_alike_as_the_model_called_directly_says(folders, frames, kind):
    extractor = ClipConfig(model=folders[kind], load_size=32, window=0).setup()
    assert isinstance(extractor, TextTeacher)
    model = KINDS[kind][1].from_pretrained(folders[kind]).eval()
    ids = torch.full((2, WORDS), 1)
    ids[0, :4], ids[1, :2] = torch.tensor([3, 4, 5, 2]), torch.tensor([6, 2])
    with torch.no_grad():
        direct = model.get_text_features(input_ids=ids).pooler_output
    direct = direct / direct.norm(dim=-1, keepdim=True)
    words = extractor.encode(["A wooden Chair ", "wall"])
    torch.testing.assert_close(words, direct, rtol=1e-5, atol=1e-5)
    patches = F.normalize(extractor.extract(frames[0]).values, dim=-1)
    expected = F.normalize(by_hand(folders[kind], shown(extractor, frames[0]), kind), dim=-1)
    torch.testing.assert_close(patches @ words.T, expected @ direct.T, rtol=1e-5, atol=1e-5)


def test_alike_queries_share_values():
    queries = torch.tensor([[[30.0, 0.0], [30.0, 0.0], [0.0, 30.0]]])
    values = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]])
    expected = torch.tensor([[[2.0, 0.0], [2.0, 0.0], [0.0, 5.0]]])
    torch.testing.assert_close(attend_alike(queries, values, 1), expected)


def test_the_fingerprint_follows_weights_and_settings_and_nothing_else(folders, tmp_path):
    def fingerprint(folder=folders["clip"], **settings: Any) -> str:
        return ClipConfig(model=str(folder), **settings).setup().fingerprint()

    first = fingerprint()
    assert fingerprint(window=TRAINED) == fingerprint(batch_size=4) == first
    others = [fingerprint(window=0), fingerprint(attention="query"), fingerprint(load_size=64)]
    others += [fingerprint(precision="bfloat16"), fingerprint(folders["siglip"])]
    model = CLIPModel.from_pretrained(folders["clip"])
    model.save_pretrained(tmp_path / "same")
    assert fingerprint(tmp_path / "same") == first
    model.visual_projection.weight.data[0] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    assert len({first, *others, fingerprint(tmp_path / "changed")}) == 7


@pytest.mark.parametrize("kind", list(KINDS))
def test_bfloat16_is_near(folders, frames, kind):
    exact = ClipConfig(model=folders[kind]).setup().extract(frames[1]).values
    half = ClipConfig(model=folders[kind], precision="bfloat16").setup().extract(frames[1]).values
    assert half.dtype == torch.float32
    assert torch.cosine_similarity(half, exact, dim=-1).min() > 0.98


def test_colours_are_normalised_as_the_type_of_model_wants(folders):
    assert ClipConfig(model=folders["clip"]).setup().backbone.mean[0] == pytest.approx(0.48145466)
    assert ClipConfig(model=folders["siglip"]).setup().backbone.mean == (0.5, 0.5, 0.5)


def test_the_model_is_freed_with_the_extractor(folders, frames, tmp_path):
    extractor = ClipConfig(model=folders["clip"], load_size=32).setup()
    extract_all(extractor, frames[:2], tmp_path / "cache")
    gc.collect()
    gc.disable()
    try:
        weights = weakref.ref(next(extractor.model.parameters()))
        del extractor
        assert weights() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (" \n ", "empty text given"),
        ("x" * 10_000, "a text of 10,000 characters given, at most 200"),
        ("a chair\x07", r"control character U\+0007"),
        ("a\u202echair", r"control character U\+202E"),
        ("chair " * 30, f"has 31 pieces of words, .* reads {WORDS}"),
    ],
)
def test_words_that_cannot_be_asked_are_one_line(folders, words, message):
    with pytest.raises(UserError, match=message) as caught:
        ClipConfig(model=folders["clip"]).setup().encode([words])
    assert "\n" not in str(caught.value)


def test_without_network_one_line_names_the_folder_to_fill(folders, frames, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        ClipConfig(model="nobody/no-such-clip").setup()
    assert time.monotonic() - start < 20
    by_hand_folder = tmp_path / "jacobinerf-ns" / "models" / "nobody--no-such-clip"
    message = str(caught.value)
    assert "\n" not in message
    assert f"the tokenizer's files from https://huggingface.co/nobody/no-such-clip into {by_hand_folder}" in message
    by_hand_folder.mkdir(parents=True)
    for path in Path(folders["clip"]).iterdir():
        if "token" not in path.name:
            (by_hand_folder / path.name).write_bytes(path.read_bytes())
    extractor = ClipConfig(model="nobody/no-such-clip").setup()
    assert extractor.fingerprint() == ClipConfig(model=folders["clip"]).setup().fingerprint()
    assert extractor.extract(frames[1]).values.isfinite().all()
    with pytest.raises(UserError, match=f"model folder {by_hand_folder} has no tokenizer to read words with"):
        extractor.encode(["chair"])


def test_models_that_are_no_clip_are_refused(folders, tmp_path):
    tiny = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ViTModel(tiny).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"\(vit\) is no CLIP or SigLIP of fixed resolution"):
        ClipConfig(model=str(tmp_path)).setup()
    with pytest.raises(UserError, match="gathers patches in a head of its own: leave --attention out"):
        ClipConfig(model=folders["siglip"], attention="query").setup()
    with pytest.raises(UserError, match=r"window 7 given, and .* has patches of 8 pixels: give 32, or 0"):
        ClipConfig(model=folders["clip"], window=7).setup()
    with pytest.raises(UserError, match="load size 4 given"):
        ClipConfig(model=folders["clip"], load_size=4).setup()
    with pytest.raises(UserError, match="batch size 0 given"):
        ClipConfig(model=folders["clip"], batch_size=0).setup()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", list(KINDS))
def test_on_a_gpu_features_and_words_are_near_those_of_the_cpu(folders, frames, kind):
    exact, there = ClipConfig(model=folders[kind]).setup(), ClipConfig(model=folders[kind]).setup("cuda")
    assert (there.dtype, there.batch_size) == (torch.bfloat16, 8)
    found = dict(there.extract_many(frames))
    for i, frame in enumerate(frames):
        values, expected = found[i].values, exact.extract(frame).values
        assert values.device.type == "cpu"
        assert torch.cosine_similarity(values, expected, dim=-1).min() > 0.98
    assert (there.encode(["chair"]) * exact.encode(["chair"])).sum() > 0.98
