import json
import logging
import subprocess
import sys

import open_clip
import pytest
import safetensors
import torch
from PIL import Image
from small_models import CAPTIONS, RESNET, assert_same, images_for, small_model
from tokenizers import Tokenizer, models, pre_tokenizers

import clipkit
from clipkit import configs, text_towers


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def checkpoint(tmp_path):
    """What open_clip's trainer writes, and the config of the model in it."""
    model = small_model()
    state = {"epoch": 3, "name": "run", "state_dict": model.model.state_dict(), "optimizer": {"state": {}}}
    torch.save(state, tmp_path / "epoch_3.pt")
    (tmp_path / "small.json").write_text(json.dumps(model.config))
    return model, tmp_path / "epoch_3.pt", str(tmp_path / "small.json")


def test_configs_of_our_own_can_be_built():
    sizes = {"test-vit": 4, "tiny-vit": 14, "tiny-conv": 17}
    assert set(configs.names()) == set(sizes)
    for name, limit in sizes.items():
        model = clipkit.create(name)
        assert sum(p.numel() for p in model.parameters()) < limit * 1e6
        with torch.no_grad():
            features = model(images_for(model), model.tokenizer(CAPTIONS))
        assert features["image_features"].shape == (3, model.embed_dim)
        assert not model.training


def test_forward_is_what_the_losses_take():
    model = small_model(init_logit_scale=2.0, init_logit_bias=-10.0, nonscalar_logit_scale=True)
    output = model(images_for(model), model.tokenizer(CAPTIONS))
    assert set(output) == {"image_features", "text_features", "logit_scale", "logit_bias"}
    for name in ("image_features", "text_features"):
        torch.testing.assert_close(output[name].norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(output["logit_scale"], torch.tensor(2.0).exp())
    torch.testing.assert_close(output["logit_bias"], torch.tensor(-10.0))
    assert "logit_bias" not in small_model()(images_for(model), model.tokenizer(CAPTIONS))


def test_pixels_are_normalised_by_the_model():
    model = small_model()
    image = Image.radial_gradient("L").convert("RGB")
    values, pixels = model.preprocess()(image), model.preprocess(dtype=torch.uint8)(image)
    with torch.no_grad():
        assert torch.equal(model.encode_image(values[None]), model.encode_image(pixels[None]))
    assert model.preprocess(train=True, dtype=torch.uint8)(image).dtype == torch.uint8
    assert not any("image_mean" in name or "image_std" in name for name in model.state_dict())


def test_parameters_have_open_clips_names():
    model = small_model()
    theirs = open_clip.CLIP(**model.config)
    assert {f"model.{name}" for name in theirs.state_dict()} == set(model.state_dict())
    assert model.logit_scale is model.model.logit_scale


@torch.no_grad()
def test_short_captions_take_fewer_columns_and_give_the_same_features(monkeypatch):
    model = small_model()
    text = model.tokenizer(CAPTIONS)
    seen = []
    original = text_towers.encode_text

    def recording(open_clip_model, tokens):
        seen.append(tokens.shape[1])
        return original(open_clip_model, tokens)

    monkeypatch.setattr(text_towers, "encode_text", recording)
    found = model.encode_text(text, normalize=True)
    assert seen == [9]
    torch.testing.assert_close(found, model.model.encode_text(text, normalize=True), atol=1e-6, rtol=0)


def test_overrides_reach_the_config():
    model = small_model(image_size=48, context_length=20, vision_cfg={"width": 32}, patch_dropout=0.25)
    assert model.image_size == (48, 48)
    assert model.context_length == 20
    assert model.tokenizer(["a"]).shape == (1, 20)
    assert model.config["vision_cfg"]["width"] == 32
    assert model.config["vision_cfg"]["patch_size"] == 8
    assert model.model.visual.patch_dropout.prob == 0.25


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        ("ViT-B-31", {}, "no architecture is called 'ViT-B-31'; did you mean 'ViT-B-3"),
        ("tiny-vti", {}, "did you mean 'tiny-vit'"),
        ("test-vit", {"embed_dmi": 4}, "unknown key 'embed_dmi'; did you mean 'embed_dim'"),
        ("test-vit", {"text_cfg": {"widht": 4}}, "text_cfg has the unknown key 'widht'"),
        ("test-vit", {"vision_cfg": {"timm_model_name": "resnet9000"}}, "cannot build this architecture"),
        ("test-vit", {"patch_dropout": 1.0}, r"patch_dropout must be in \[0, 1\)"),
        ("RN50", {"patch_dropout": 0.5}, "a ResNet has no patches"),
    ],
)
def test_create_refuses(arguments, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        clipkit.create(arguments, **overrides)
    one_line(error)


def test_create_reads_json_files(tmp_path):
    bare = small_model().config
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    assert clipkit.create(tmp_path / "bare.json").config == bare
    with_preprocess = {
        "model_cfg": bare,
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "resize_mode": "squash"},
    }
    (tmp_path / "both.json").write_text(json.dumps(with_preprocess))
    model = clipkit.create(str(tmp_path / "both.json"))
    assert model.preprocess_config.mean == (0.5, 0.5, 0.5)
    assert model.preprocess_config.resize_mode == "squash"
    assert model.image_mean.tolist() == [0.5, 0.5, 0.5]
    (tmp_path / "other.json").write_text('{"layers": 3}')
    with pytest.raises(ValueError, match="it has no embed_dim, vision_cfg, text_cfg"):
        clipkit.create(tmp_path / "other.json")
    (tmp_path / "broken.json").write_text("{,}")
    with pytest.raises(ValueError, match="does not parse as JSON"):
        clipkit.create(tmp_path / "broken.json")
    with pytest.raises(FileNotFoundError):
        clipkit.create(tmp_path / "absent.json")


def test_training_checkpoints(checkpoint):
    model, path, config = checkpoint
    assert_same(model, clipkit.load(path, model_name=config))
    state = model.model.state_dict()
    for number, stored in enumerate(
        [
            state,
            {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
            {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
            model.state_dict(),
        ]
    ):
        other = path.with_name(f"other_{number}.pt")
        torch.save(stored, other)
        assert_same(model, clipkit.load(other, model_name=config))
    torch.save(state, path.with_name("old.pt"), _use_new_zipfile_serialization=False)
    assert_same(model, clipkit.load(path.with_name("old.pt"), model_name=config))


def test_switches_that_only_the_checkpoint_knows(tmp_path, checkpoint):
    """open_clip's trainer adds a bias, or a text tower of its own, by flags."""
    model = small_model(custom_text=True, init_logit_bias=-7.0)
    torch.save(model.model.state_dict(), tmp_path / "sigmoid.pt")
    found = clipkit.load(tmp_path / "sigmoid.pt", model_name=checkpoint[2])
    assert_same(model, found)
    assert found.logit_bias.item() == -7.0
    found.save(tmp_path / "saved")
    assert_same(model, clipkit.load(tmp_path / "saved"))


def test_the_flat_names_of_a_custom_text_tower(tmp_path, checkpoint):
    model = small_model()
    torch.save(model.model.state_dict(), tmp_path / "flat.pt")
    config = {**model.config, "custom_text": True}
    (tmp_path / "custom.json").write_text(json.dumps(config))
    assert_same(model, clipkit.load(tmp_path / "flat.pt", model_name=str(tmp_path / "custom.json")))


def test_a_checkpoint_of_another_architecture_names_the_tensors(checkpoint, tmp_path):
    _, path, _ = checkpoint
    with pytest.raises(ValueError, match="another architecture") as error:
        clipkit.load(path, model_name="tiny-vit")
    message = one_line(error)
    assert "positional_embedding is (16, 16), not (40, 192)" in message
    assert "missing (visual.transformer.resblocks.2" in message
    big = small_model(vision_cfg={"layers": 3})
    torch.save(big.model.state_dict(), tmp_path / "big.pt")
    with pytest.raises(ValueError, match=r"12 unexpected \(visual\.transformer\.resblocks\.2"):
        clipkit.load(tmp_path / "big.pt", model_name=checkpoint[2])


def test_sources_that_mean_nothing(checkpoint, tmp_path):
    _, path, config = checkpoint
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    for source, arguments, kind, message in [
        (path, {}, ValueError, "is a bare checkpoint: name its architecture, model_name='ViT-B-32'"),
        (path, {"model_name": "small"}, ValueError, "no architecture is called 'small'"),
        (config, {}, ValueError, "has no weights: use clipkit.create"),
        ("ViT-B-32", {}, ValueError, "architecture without weights: add a tag: openai"),
        ("test-vit", {}, ValueError, "architecture without weights: use clipkit.create"),
        (
            "ViT-B-32/laion",
            {},
            ValueError,
            "has no pretrained tag 'laion'; it has openai, laion400m",
        ),
        ("VIT-B-32/openai", {}, ValueError, "did you mean 'ViT-B-32'"),
        ("ViT-B-32/openai", {}, ValueError, "use 'ViT-B-32-quickgelu/openai'"),
        ("somewhere/model.pt", {}, FileNotFoundError, "no model directory or checkpoint at"),
        ("./nowhere", {}, FileNotFoundError, "no model directory or checkpoint at"),
        ("hf-hub:", {}, ValueError, "needs a repository"),
        (tmp_path / "empty", {}, FileNotFoundError, "it has no open_clip_config.json"),
        (tmp_path / "empty", {"model_name": "RN50"}, ValueError, "goes with a bare checkpoint file"),
        (tmp_path / "notes.txt", {}, ValueError, "is no checkpoint: expected .safetensors"),
        (tmp_path / "bad.pt", {"model_name": "RN50"}, ValueError, "damaged or holds more than tensors"),
        (path, {"model_name": config, "towers": "left"}, ValueError, "towers must be both, image or text"),
    ]:
        with pytest.raises(kind) as error:
            clipkit.load(source, **arguments)
        assert message in one_line(error)


def test_pickled_objects_are_refused(tmp_path):
    torch.save({"state_dict": {}, "args": logging.getLogger("x")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="more than tensors") as error:
        clipkit.load(tmp_path / "evil.pt", model_name="test-vit")
    one_line(error)


@pytest.mark.parametrize(
    "overrides",
    [{}, {"custom_text": True}, {"vision_cfg": RESNET}],
)
def test_one_tower_reads_nothing_of_the_other(overrides, tmp_path, monkeypatch):
    whole = small_model(**overrides)
    identity = whole.save(tmp_path / "model")
    safetensors.torch.save_file(whole.model.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "model.json").write_text(json.dumps(whole.config))
    read = []
    original = safetensors.safe_open

    class Recorder:
        def __init__(self, *args, **kwargs):
            self.opened = original(*args, **kwargs)

        def __enter__(self):
            self.file = self.opened.__enter__()
            return self

        def __exit__(self, *args):
            return self.opened.__exit__(*args)

        def keys(self):
            return self.file.keys()

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(safetensors, "safe_open", Recorder)
    images, text = images_for(whole), whole.tokenizer(CAPTIONS)
    for towers in ("image", "text"):
        read.clear()
        bare = clipkit.load(
            tmp_path / "weights.safetensors", model_name=str(tmp_path / "model.json"), towers=towers
        )
        assert {name.startswith("visual.") for name in read if name != "logit_scale"} == {towers == "image"}
        half = clipkit.load(tmp_path / "model", towers=towers)
        assert set(half.state_dict()) == set(bare.state_dict()) < set(whole.state_dict())
        assert half.model_id == identity
        with torch.no_grad():
            if towers == "image":
                assert torch.equal(half.encode_image(images), whole.encode_image(images))
                with pytest.raises(ValueError, match=r"text tower is not loaded: .* towers='image'"):
                    half.encode_text(text)
            else:
                assert torch.equal(half.encode_text(text), whole.encode_text(text))
                with pytest.raises(ValueError, match="image tower is not loaded"):
                    half.encode_image(images)
        with pytest.raises(ValueError, match="one tower alone has no model id"):
            _ = bare.model_id


def test_other_sizes_at_loading(tmp_path):
    model = small_model()
    model.save(tmp_path / "model")
    found = clipkit.load(tmp_path / "model", image_size=64, context_length=24, patch_dropout=0.5)
    assert found.image_size == (64, 64)
    assert found.preprocess()(Image.new("RGB", (100, 80))).shape == (3, 64, 64)
    assert found.tokenizer("a").shape == (1, 24)
    found.save(tmp_path / "bigger")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'bigger'}").eval()
    with torch.no_grad():
        images = images_for(found)
        assert torch.equal(theirs.encode_image(images), found.encode_image(images))
    assert_same(found, clipkit.load(tmp_path / "bigger"))


def test_a_checkpoint_trained_at_another_size(tmp_path, checkpoint):
    """The config says 32 px, the checkpoint is of 64 px; asked for 64 px, nothing is interpolated."""
    model = small_model(image_size=64)
    torch.save(model.model.state_dict(), tmp_path / "big.pt")
    with pytest.raises(ValueError, match=r"visual.positional_embedding is \(65, 64\), not \(17, 64\)"):
        clipkit.load(tmp_path / "big.pt", model_name=checkpoint[2])
    assert_same(model, clipkit.load(tmp_path / "big.pt", model_name=checkpoint[2], image_size=64))


def test_tags_and_hub_repositories_load_what_was_downloaded(tmp_path, monkeypatch, caplog):
    model = small_model()
    model.save(tmp_path / "model")
    files = {None: "open_clip_model.safetensors", "open_clip_config.json": "open_clip_config.json"}
    fetched = []

    def from_hub(repo, filename=None):
        fetched.append((repo, filename))
        return str(tmp_path / "model" / files[filename])

    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_hf", from_hub)
    assert_same(model, clipkit.load("hf-hub:org/repo"))
    assert fetched == [("org/repo", "open_clip_config.json"), ("org/repo", None)]

    monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(model.config))
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: from_hub("tag"))
    tagged = clipkit.load("ViT-B-16-SigLIP/webli")
    assert_same(model, tagged)
    assert tagged.preprocess_config.resize_mode == "squash"
    assert tagged.preprocess_config.mean == (0.5, 0.5, 0.5)
    assert caplog.records == []


def test_a_failed_download_is_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise FileNotFoundError("Failed to download file:\nno route to host")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_hf", offline)
    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    for source in ("hf-hub:org/repo", "ViT-B-32/laion2b_s34b_b79k"):
        with pytest.raises(OSError, match=r"cannot (fetch|download) .*no route to host") as error:
            clipkit.load(source)
        one_line(error)


def test_loading_says_nothing(tmp_path, capfd, caplog):
    handlers = list(logging.getLogger().handlers)
    small_model().save(tmp_path)
    clipkit.load(tmp_path)
    assert logging.getLogger().handlers == handlers
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_checkpointed_activations_change_no_gradient():
    gradients = []
    for enable in (False, True):
        model = small_model().train()
        model.set_grad_checkpointing(enable)
        output = model(images_for(model), model.tokenizer(CAPTIONS))
        (output["image_features"] @ output["text_features"].T).sum().backward()
        gradients.append(model.model.visual.conv1.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.fixture
def bert_dir(tmp_path):
    """A tiny BERT config with a word tokenizer, as transformers saves them."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "circle", "star"]
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    folder = tmp_path / "bert"
    transformers.PreTrainedTokenizerFast(tokenizer_object=word_level, **special).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes).save_pretrained(
        folder
    )
    return folder


def test_a_transformers_text_tower(bert_dir, tmp_path):
    text_cfg = {
        "context_length": 8,
        "hf_model_name": str(bert_dir),
        "hf_tokenizer_name": str(bert_dir),
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
    }
    config = {"embed_dim": 16, "vision_cfg": small_model().config["vision_cfg"], "text_cfg": text_cfg}
    (tmp_path / "hf.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = clipkit.create(tmp_path / "hf.json")
    text = model.tokenizer(["a red circle", "a blue star"])
    assert text[0].tolist() == [4, 5, 7, 0, 0, 0, 0, 0]
    output = model.text_tokens(text, layers=(0, -1))
    seen = []
    for block in model.model.text.transformer.encoder.layer:
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    torch.testing.assert_close(output.pooled, model.encode_text(text))
    torch.testing.assert_close(output.tokens[0], seen[0])
    torch.testing.assert_close(output.tokens[1], seen[1])

    model.save(tmp_path / "model")
    for name in list(bert_dir.iterdir()):
        name.unlink()
    found = clipkit.load(tmp_path / "model")
    assert torch.equal(found.tokenizer(["a red circle"]), text[:1])
    with torch.no_grad():
        torch.testing.assert_close(found.encode_text(text), model.encode_text(text))
    assert found.model_id == model.model_id
    half = clipkit.load(tmp_path / "model", towers="image")
    assert half.model_id == model.model_id
    model.lock_text(1)
    trainable = {name for name, p in model.model.text.named_parameters() if p.requires_grad}
    assert trainable == {"proj.weight"}


def test_importing_the_library_does_not_import_open_clip():
    code = "import clipkit.model, sys; assert 'open_clip' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_openai_weights_say_what_they_are(tmp_path):
    """OpenAI's archives hold three scalars between the weights, in half precision."""
    model = small_model(quick_gelu=True, text_cfg={"width": 64, "heads": 1}, vision_cfg={"head_width": 64})
    scalars = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16)}
    state = {name: tensor.half() for name, tensor in model.model.state_dict().items()}
    torch.save({**state, **scalars, "vocab_size": torch.tensor(49408)}, tmp_path / "ViT.pt")
    found = clipkit.load(tmp_path / "ViT.pt")
    assert found.config["quick_gelu"] is True
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    model.model.load_state_dict(state)
    assert_same(model, found)


def test_half_precision_is_saved_as_it_is_loaded(tmp_path):
    identity = small_model().half().save(tmp_path)
    assert clipkit.load(tmp_path).model_id == identity
