"""`clipkit train` with regions: exact gradients, exact resume, and losses as they are documented."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import region_jobs
import torch
from clipkit.training.cli import RECIPES, app
from clipkit.training.regions_config import LOSSES, RegionsConfig
from clipkit.training.runlog import read_runlog
from rank_pool import RankPool
from region_train_jobs import AS_PUBLISHED, SETTINGS, batch_of_rank, config, step_of, step_with_regions

import clipkit
from clipkit.cli import main, make_app
from clipkit.regions.base import Contrast, RegionBatch
from clipkit.regions.heads import REGION_HEADS
from clipkit.scenes import SceneShards, write_shards

KINDS = sorted(REGION_HEADS)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "scenes"
    write_shards(path, SceneShards(num_train=40, num_train_objects=4, num_val=4, num_objects=4))
    return path / "train"


def flags(output: Path, data: Path, *more: str) -> list[str]:
    fixed = ["train", "--output", str(output), "--model.name", "test-vit", "--log.every-steps", "1"]
    fixed += ["--data.sources.scenes", str(data), "--data.batch-size-per-rank", "8"]
    workers = [] if "--data.num-workers" in more else ["--data.num-workers", "0"]
    return [*fixed, *workers, *more]


def curve(output: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if name.startswith(("loss", "regions"))}
        for line in read_runlog(output / "runlog.jsonl")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_do_not_change_the_gradient(kind: str) -> None:
    whole, expected = step_of(config(kind))
    parts, found = step_of(config(kind, micro=2))
    assert parts == pytest.approx(whole, rel=1e-4)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert np.linalg.norm(found[name] - grad) <= 2e-5 * np.linalg.norm(grad) + 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
def test_towers_in_bf16_give_nearly_the_same(kind: str) -> None:
    whole, _ = step_of(config(kind))
    half, gradients = step_of(dataclasses.replace(config(kind), precision="bf16"))
    assert half == pytest.approx(whole, rel=0.1)
    assert all(grad.dtype == np.float32 for grad in gradients.values())


@pytest.mark.parametrize("kind", [*KINDS, AS_PUBLISHED])
def test_gradients_on_ranks_are_those_of_one_process(ranks: RankPool, kind: str) -> None:
    """On four ranks of two images one has no region; on two, each works in two parts."""
    figures, expected = step_of(config(kind))
    assert any(name.startswith("region_head.") for name in expected)
    for world_size, micro, parallel in ((2, 2, "ddp"), (4, None, "fsdp")):
        for own_figures, own in ranks.run(world_size, step_with_regions, kind, parallel, micro):
            assert own_figures == pytest.approx(figures, rel=1e-4)
            assert own.keys() == expected.keys()
            for name, grad in expected.items():
                assert np.linalg.norm(own[name] - grad) <= 2e-5 * np.linalg.norm(grad) + 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
def test_with_weights_of_zero_the_step_is_that_of_clip(kind: str) -> None:
    plain = step_of(config(), with_regions=False)
    figures, gradients = step_of(config(kind, weights=dict.fromkeys(LOSSES[kind], 0.0)))
    assert figures == plain[0]
    assert gradients.keys() == plain[1].keys()
    assert all(np.array_equal(grad, plain[1][name]) for name, grad in gradients.items())


def test_a_run_with_weights_of_zero_is_one_of_clip(tmp_path: Path, scenes: Path) -> None:
    nothing = ["--loss.weights.region_text", "0", "--loss.weights.grounding", "0"]
    for name, more in (("clip", []), ("regions", ["--regions.head", "prompter", *nothing])):
        assert main(flags(tmp_path / name, scenes, "--steps", "3", *more)) == 0
    assert curve(tmp_path / "clip") == curve(tmp_path / "regions")
    plain, weightless = (clipkit.load(tmp_path / name / "model") for name in ("clip", "regions"))
    states = plain.state_dict(), weightless.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_contrasted_as_the_loss_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Contrast] = []
    head_class = type(region_jobs.make_head(kind))
    plain = head_class.losses

    def spy(head: Any, rows: Any, regions: Any, scale: Any, contrast: Contrast) -> Any:
        seen.append(contrast)
        return plain(head, rows, regions, scale, contrast)

    monkeypatch.setattr(head_class, "losses", spy)
    wanted = config(kind)
    loss = dataclasses.replace(wanted.loss, kernel="tiled", exchange="ring")
    figures, _ = step_of(dataclasses.replace(wanted, loss=loss))
    assert seen == [Contrast(group=seen[0].group, kernel="tiled", exchange="ring")]
    assert figures == pytest.approx(step_of(wanted)[0], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_sum_that_is_documented(kind: str) -> None:
    """By hand: the share is 5 of 8 images."""
    weights = dict(zip(LOSSES[kind], (0.5, 2.0, 3.0), strict=False))
    figures, _ = step_of(config(kind, weights=weights))
    torch.manual_seed(0)
    wanted = config(kind)
    from clipkit.training.build import build_model

    model = build_model(wanted).train()
    batch = batch_of_rank(model)
    names = ("image", "text", "boxes", "box_index", "region_text")
    with torch.no_grad():
        features = model(**{name: batch[name] for name in names})
        regions = RegionBatch(
            boxes=batch["boxes"], box_index=batch["box_index"], phrase_features=features["phrase_features"]
        )
        assert model.region_head is not None
        losses = model.region_head.losses(features, regions, features["logit_scale"])
        clip = clipkit.losses.clip_loss(
            features["image_features"], features["text_features"], features["logit_scale"]
        )
        total = clip + 5 / 8 * sum(weights[name] * loss for name, loss in losses.items())
        if kind == "query-decoder":
            total += 3.0 * clipkit.losses.clip_loss(
                features["query_image_features"], features["text_features"], features["logit_scale"]
            )
    assert figures["loss"] == pytest.approx(float(total), rel=1e-5)
    assert figures["loss_clip_nats"] == pytest.approx(float(clip), rel=1e-5)
    assert figures["loss_region_text_nats"] == pytest.approx(float(losses["region_text"]), rel=1e-4)
    assert figures["regions_per_image"] == sum(region_jobs.REGIONS_OF_IMAGES) / 8
    logged = {f"loss_{name}" for name in LOSSES[kind]} | {f"loss_{name}_nats" for name in LOSSES[kind]}
    assert len(logged & figures.keys()) == len(LOSSES[kind])


@pytest.mark.parametrize("kind", ["prompter", "query-decoder"])
def test_a_run_stopped_and_resumed_is_the_unbroken_one(tmp_path: Path, scenes: Path, kind: str) -> None:
    common = ["--regions.head", kind, "--regions.per-image", "2", "--checkpoint.every-steps", "3"]
    common += ["--optim.schedule", "constant", "--optim.ema-decay", "0.9", "--data.augment.scale", "0.5", "1"]
    common += ["--optim.warmup-steps", "1"]
    for name, value in SETTINGS.get(kind, {}).items():
        if name != "dropout":
            common += [f"--regions.settings.{name}", str(value)]
    assert main(flags(tmp_path / "unbroken", scenes, *common, "--steps", "7")) == 0
    assert main(flags(tmp_path / "broken", scenes, *common, "--steps", "3")) == 0
    resumed = ["--steps", "7", "--resume", "auto", "--data.num-workers", "1"]
    assert main(flags(tmp_path / "broken", scenes, *common, *resumed)) == 0
    assert curve(tmp_path / "broken") == curve(tmp_path / "unbroken")
    first, second = (tmp_path / name for name in ("unbroken", "broken"))
    skipped = [json.loads((path / "skipped.json").read_text()) for path in (first, second)]
    assert skipped[0] == skipped[1]
    assert skipped[0]["regions of scenes"]["region_not_drawn"] > 0
    heads = [clipkit.load(path / "model").region_head for path in (first, second)]
    states = [head.state_dict() for head in heads if head is not None]
    assert len(states) == 2
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())


def test_a_source_goes_on_with_its_head_or_without(
    tmp_path: Path, scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = ["--regions.head", "prompter", "--regions.settings.mlp_ratio", "2", "--steps", "1"]
    assert main(flags(tmp_path / "first", scenes, *head)) == 0
    source = ["--model.source", str(tmp_path / "first" / "model"), "--steps", "1", "--optim.lr", "1e-9"]
    before = clipkit.load(tmp_path / "first" / "model").region_head
    assert before is not None

    def train(name: str, *more: str) -> clipkit.DualEncoder:
        arguments = flags(tmp_path / name, scenes, *source, *more)
        place = arguments.index("--model.name")
        assert main(arguments[:place] + arguments[place + 2 :]) == 0
        return clipkit.load(tmp_path / name / "model")

    same = train("same", "--regions.head", "prompter", "--regions.settings.max_text_similarity", "0.8")
    assert same.region_head is not None
    assert same.region_head.config.mlp_ratio == 2
    assert same.region_head.config.max_text_similarity == 0.8
    for name, tensor in same.region_head.state_dict().items():
        torch.testing.assert_close(tensor, before.state_dict()[name], rtol=0, atol=1e-6)
    assert train("without").region_head is None
    assert "the prompter of the source is left out" in caplog.text
    other = train("other", "--regions.head", "roi-align")
    assert other.region_head is not None
    assert other.region_head.kind == "roi-align"
    assert "a new roi-align takes the place of the prompter" in caplog.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--regions.head", "prompter", "--model.patch-dropout", "0.5"], "model.patch_dropout must be 0"),
        (["--regions.head", "prompter", "--regions.per-image", "0"], "regions.per_image must be >= 1, got 0"),
        (
            ["--loss.weights.grounding", "1"],
            "loss.weights.grounding needs regions.head, got regions.head=none",
        ),
        (["--regions.settings.mlp_ratio", "1"], "regions.settings need regions.head, got regions.head=none"),
        (
            ["--regions.head", "prompter", "--loss.weights.groundin", "1"],
            "has no 'groundin', the losses of a prompter are region_text, grounding; did you mean 'groundi",
        ),
        (["--regions.head", "roi-align", "--loss.weights.region_text", "-1"], "finite and >= 0, got -1"),
        (["--regions.head", "roi-align", "--loss.weights.region_text", "inf"], "finite and >= 0, got inf"),
        (["--regions.head", "prompter", "--regions.settings.num_heads", "0"], "a whole number >= 1, got 0"),
        (["--regions.head", "prompter", "--regions.settings.num_heads", "1.5"], "number >= 1, got 1.5"),
        (["--regions.head", "prompter", "--regions.settings.with_grounding", "0"], "be true or false, got 0"),
        (["--regions.head", "prompter", "--regions.settings.mlp_ratio", "nan"], "a number > 0, got nan"),
        (
            ["--regions.head", "prompter", "--regions.settings.mlp_ratio", "0.001"],
            "must make 1 to 2**31 units",
        ),
        (
            ["--regions.head", "prompter", "--regions.settings.mlp_ratio", "1e308"],
            "must make 1 to 2**31 units",
        ),
        (["--regions.head", "query-decoder", "--regions.settings.num_queries", "0"], ">= 1, got 0"),
        (["--regions.head", "query-decoder", "--regions.settings.dropout", "2"], "be in [0, 1], got 2"),
        (["--regions.head", "roi-align", "--regions.settings.max_text_similarity", "nan"], "[0, 1], got nan"),
        (
            ["--regions.head", "prompter", "--regions.settings.mlp_ratios", "1"],
            "prompter has no setting 'mlp_ratios'",
        ),
    ],
)
def test_settings_that_do_not_fit(
    tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(flags(tmp_path / "run", scenes, "--steps", "1", *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_every_head_has_its_losses_in_the_settings() -> None:
    assert LOSSES.keys() == {"none", *REGION_HEADS}
    data = region_jobs.regions()
    batch = RegionBatch(boxes=data.boxes, box_index=data.box_index, phrase_features=data.texts)
    for kind in KINDS:
        head = region_jobs.make_head(kind)
        losses = head.losses(head(data.tokens, region_jobs.GRID, batch), batch, torch.tensor(9.0))
        assert set(LOSSES[kind]) - {"image_query"} == losses.keys()
    with pytest.raises(ValueError, match=r"grounding needs regions\.settings\.with_grounding"):
        RegionsConfig(head="prompter", settings={"with_grounding": False}).check_weights({"grounding": 1.0})


def test_recipes_are_settings_by_name(tmp_path: Path) -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert names == ["cloc", "grain"]
    for name in names:
        flags = ["--output", str(tmp_path), "--data.sources.mine", "x", "--data.batch-size-per-rank", "64"]
        # As from the shell: `regions` is also a command beside `train`.
        _, bound, _ = make_app().parse_args(["train", name, *flags])
        config = bound.arguments["config"]
        assert config.data.batch_size_per_rank == 64
        assert config.trained_regions is not None
        assert {"cloc": "prompter", "grain": "query-decoder"}[name] == config.regions.head
        known = {field.name: field.type for field in dataclasses.fields(_config_of(config.regions.head))}
        for setting, value in config.regions.settings.items():
            assert type(value).__name__ in (known[setting], "int" if known[setting] == "float" else ""), (
                setting
            )


def test_settings_of_heads_have_their_types(tmp_path: Path) -> None:
    _, bound, _ = app.parse_args(["--output", str(tmp_path), "--data.sources.mine", "x", *TYPED])
    settings = {"num_heads": 2, "max_text_similarity": 0.75, "with_grounding": False, "mlp_ratio": 1}
    assert bound.arguments["config"].regions.settings == settings
    assert type(bound.arguments["config"].regions.settings["num_heads"]) is int


TYPED = ["--model.name", "test-vit", "--steps", "1", "--regions.head", "prompter"]
TYPED += ["--regions.settings.num_heads", "2", "--regions.settings.max_text_similarity", "0.75"]
TYPED += ["--regions.settings.with_grounding", "false", "--regions.settings.mlp_ratio", "1"]


def _config_of(kind: str) -> type:
    return type(region_jobs.make_head(kind).config)
