"""Region heads: their sizes, slow oracles, and that they learn to answer about a part."""

import dataclasses
import math

import pytest
import region_jobs
import torch
from region_jobs import EMBED_DIM, GRID, WIDTH
from torch import nn
from torch.nn import functional as F

from clipkit.losses.text_similarity import similar_texts
from clipkit.regions.base import RegionBatch
from clipkit.regions.places import point_encoding, token_centres, with_places
from clipkit.regions.prompter import (
    PromptedLayer,
    Prompter,
    PrompterConfig,
)
from clipkit.regions.queries import QueryDecoder, QueryDecoderConfig
from clipkit.regions.roi import pool_boxes

KINDS = ["prompter", "roi-align", "query-decoder"]


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_prompter_at_the_width_of_vit_b():
    width, embed_dim = 768, 512
    linear = width * width + width
    corners, phrase = 2 * linear, embed_dim * width + width
    attention = 4 * linear  # queries, keys, values, output
    mlp = (width * 4 * width + 4 * width) + (4 * width * width + width)
    norms = 3 * 2 * width
    box = linear + (width * 4 + 4)
    expected = corners + phrase + attention + mlp + norms + width * embed_dim + box
    assert expected == 9_651_460
    with torch.device("meta"):
        assert _count(Prompter(width, embed_dim)) == expected


def test_the_query_decoder_has_the_size_of_grains():
    d, mlp = 512, 2048
    attention = 4 * (d * d + d)
    layer = 2 * attention + (d * mlp + mlp) + (mlp * d + d) + 3 * 2 * d
    box = 2 * (d * d + d) + (d * 4 + 4)
    expected = 768 * d + 6 * d + 6 * layer + 2 * d + box + 2 * d * d
    with torch.device("meta"):
        assert _count(QueryDecoder(768, d)) == expected


def test_point_encoding_by_hand():
    found = point_encoding(torch.tensor([[0.25, 0.5]]), 8)
    rates = (1.0, 0.01)
    expected = []
    for place in (0.25, 0.5):
        angles = [2 * math.pi * place * rate for rate in rates]
        expected += [*map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(found, torch.tensor([expected]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prompts_only", [False, True])
@pytest.mark.parametrize("num_heads", [1, 2])
def test_the_prompted_layer_is_torchs_on_each_sequence(num_heads, prompts_only):
    torch.manual_seed(1)
    ours = PromptedLayer(WIDTH, num_heads, 24, prompts_only=prompts_only).double()
    theirs = nn.TransformerEncoderLayer(
        WIDTH, num_heads, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.qkv.bias)
        for name, mine in (
            ("self_attn.out_proj", ours.out),
            ("linear1", ours.mlp[0]),
            ("linear2", ours.mlp[2]),
            ("norm1", ours.norm_1),
            ("norm2", ours.norm_2),
        ):
            theirs.get_submodule(name).load_state_dict(mine.state_dict())
    tokens, prompts = torch.randn(3, 5, WIDTH).double(), torch.randn(4, 2, WIDTH).double()
    index = torch.tensor([2, 0, 0, 1])
    found = ours(tokens, prompts, index)
    assert found.shape == (4, 2 if prompts_only else 7, WIDTH)
    for row, image in enumerate(index.tolist()):
        expected = theirs(torch.cat([prompts[row], tokens[image]])[None])[0]
        torch.testing.assert_close(found[row], expected[: len(found[row])], rtol=0, atol=1e-10)


def test_centres_of_tokens_by_hand():
    found = token_centres((2, 3), torch.device("cpu"))
    expected = torch.tensor([[2, 3], [6, 3], [10, 3], [2, 9], [6, 9], [10, 9]]) / 12
    torch.testing.assert_close(found, expected)


def test_a_query_decoder_reads_placed_tokens():
    data = region_jobs.regions()
    placing = region_jobs.make_head("query-decoder").eval()
    plain = QueryDecoder(WIDTH, EMBED_DIM, dataclasses.replace(placing.config, places_tokens=False)).eval()
    plain.load_state_dict(placing.state_dict())
    found = placing.find(data.tokens, GRID)
    expected = plain.find(with_places(data.tokens, GRID), GRID)
    torch.testing.assert_close(found.boxes, expected.boxes)
    other = plain.find(data.tokens, GRID)
    assert not torch.allclose(found.features, other.features, atol=1e-3)


def test_a_prompter_that_places_tokens_adds_the_encoding_of_corners_at_their_centres():
    data = region_jobs.regions()
    placing = region_jobs.make_head("prompter")
    plain = Prompter(WIDTH, EMBED_DIM, PrompterConfig(places_tokens=False))
    plain.load_state_dict(placing.state_dict())
    places = point_encoding(token_centres(GRID, torch.device("cpu")), WIDTH)
    placed = F.layer_norm(data.tokens, (WIDTH,)) + places
    expected = plain.encode_regions(placed, GRID, data.boxes, data.box_index)
    found = placing.encode_regions(data.tokens, GRID, data.boxes, data.box_index)
    torch.testing.assert_close(found, expected)
    other = plain.encode_regions(data.tokens, GRID, data.boxes, data.box_index)
    assert not torch.allclose(found, other, atol=1e-3)


def test_a_prompter_as_published_takes_the_mean_of_all_outputs():
    data = region_jobs.regions()
    head = Prompter(WIDTH, EMBED_DIM, PrompterConfig(pools_prompts=False, places_tokens=False))
    prompts = torch.stack(
        [
            project(point_encoding(corner, WIDTH))
            for project, corner in zip(head.corners, (data.boxes[:, :2], data.boxes[:, 2:]), strict=True)
        ],
        dim=1,
    )
    outputs = head.layer(data.tokens, prompts, data.box_index)
    assert outputs.shape[1] == 2 + GRID[0] * GRID[1]
    expected = F.normalize(head.projection(head.norm(outputs).mean(dim=1)), dim=-1)
    found = head.encode_regions(data.tokens, GRID, data.boxes, data.box_index)
    torch.testing.assert_close(found, expected)


def test_pooling_of_a_box_by_hand():
    rows, columns = GRID
    ramp = torch.arange(columns).repeat(rows).float()[None, :, None]
    # The middle of the two middle columns, of centres 1 and 2.
    found = pool_boxes(ramp, GRID, torch.tensor([[0.25, 0.0, 0.75, 1.0]]), torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([[1.5]]))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_unit_vectors_that_depend_on_the_box(kind):
    head = region_jobs.make_head(kind).eval()
    data = region_jobs.regions()
    features = head.encode_regions(data.tokens, GRID, data.boxes, data.box_index)
    assert features.shape == (len(data.boxes), EMBED_DIM)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    other = head.encode_regions(data.tokens, GRID, data.boxes.flip(0), data.box_index)
    assert not torch.allclose(features, other, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_region_does_not_depend_on_the_others(kind):
    head = region_jobs.make_head(kind).eval()
    data = region_jobs.regions()
    together = head.encode_regions(data.tokens, GRID, data.boxes, data.box_index)
    alone = torch.cat(
        [
            head.encode_regions(data.tokens[image : image + 1], GRID, box[None], torch.tensor([0]))
            for box, image in zip(data.boxes, data.box_index.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_query_decoder_answers_by_the_nearest_query():
    head, data = region_jobs.make_head("query-decoder").eval(), region_jobs.regions()
    found = head.find(data.tokens, GRID)
    index = torch.tensor([0, 1, 1])
    exact = head.encode_regions(data.tokens, GRID, found.boxes[index, [1, 3, 0]], index)
    torch.testing.assert_close(exact, found.features[index, [1, 3, 0]])
    # Two thin boxes in corners, which overlap no query's: by hand, of equal hulls the smaller gap.
    queries = torch.tensor([[[0.0, 0.0, 0.2, 0.2], [0.6, 0.6, 0.8, 0.8]]])
    head.find = lambda tokens, grid: dataclasses.replace(found, boxes=queries, features=found.features[:1])
    far = head.encode_regions(data.tokens, GRID, torch.tensor([[0.9, 0.9, 1.0, 1.0]]), torch.tensor([0]))
    torch.testing.assert_close(far, found.features[:1, 1])


@pytest.mark.parametrize(("limit", "num_ignored"), [(0.9, 2), (1.0, 0)])
def test_a_query_decoder_filters_alike_phrases_as_it_is_told(monkeypatch, limit, num_ignored):
    import clipkit.losses.region as module

    seen = []
    plain = module.clip_loss
    monkeypatch.setattr(
        module,
        "clip_loss",
        lambda *args, **named: seen.append((args[1], named["pairs"])) or plain(*args, **named),
    )
    head = QueryDecoder(region_jobs.WIDTH, region_jobs.EMBED_DIM, _small_decoder(limit)).eval()
    texts = torch.eye(3, region_jobs.EMBED_DIM)[[0, 0, 1]]
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.0, 0.5, 0.3, 1.0]])
    batch = RegionBatch(boxes=boxes, box_index=torch.zeros(3, dtype=torch.int64), phrase_features=texts)
    head.losses(head(region_jobs.regions().tokens[:1], GRID, batch), batch, torch.tensor(10.0))
    ((compared, pairs),) = seen
    ignored = similar_texts(compared, compared, pairs.max_text_similarity)
    assert int(ignored.fill_diagonal_(False).sum()) == num_ignored


def _small_decoder(max_text_similarity):
    return QueryDecoderConfig(
        num_queries=4, num_layers=1, num_heads=2, mlp_width=16, max_text_similarity=max_text_similarity
    )


@pytest.mark.parametrize("kind", ["prompter", "query-decoder"])
def test_grounded_boxes_lie_in_the_image(kind):
    head = region_jobs.make_head(kind).eval()
    data = region_jobs.regions()
    boxes = head.ground(data.tokens, GRID, data.texts, data.box_index)
    assert boxes.shape == data.boxes.shape
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_roi_align_cannot_ground():
    data = region_jobs.regions()
    with pytest.raises(ValueError, match="cannot ground"):
        region_jobs.make_head("roi-align").ground(data.tokens, GRID, data.texts, data.box_index)


def test_a_width_that_cannot_be_encoded_is_refused():
    with pytest.raises(ValueError, match="multiple of 4, got 18"):
        Prompter(18, 8)
    with pytest.raises(ValueError, match="multiple of 4, got 18; or take places_tokens=False"):
        QueryDecoder(18, 8)
    QueryDecoder(18, 8, QueryDecoderConfig(places_tokens=False))


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_the_regions_of_a_batch(kind):
    head = region_jobs.make_head(kind)
    data = region_jobs.regions()
    texts = F.normalize(torch.randn(len(data.boxes), EMBED_DIM), dim=-1)
    batch = RegionBatch(boxes=data.boxes, box_index=data.box_index, phrase_features=texts)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    course = []
    for _ in range(150):
        losses = head.losses(head(data.tokens, GRID, batch), batch, torch.tensor(10.0))
        course.append({name: float(loss.detach()) for name, loss in losses.items()})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    for name, first in course[0].items():
        assert course[-1][name] < first * 2 / 3, name
