import open_clip
import pytest
import torch
from small_models import RESNET, TIMM_CONV, images_for, small_model


@pytest.mark.parametrize("unlocked", [0, 1, 2, 4])
def test_locking_a_vit_is_open_clips(unlocked):
    ours, theirs = small_model(), open_clip.CLIP(**small_model().config)
    ours.lock_image(unlocked)
    theirs.lock_image_tower(unlocked)
    ours.lock_text(unlocked if unlocked < 4 else 0)
    theirs.lock_text_tower(unlocked if unlocked < 4 else 0)
    expected = {name: p.requires_grad for name, p in theirs.named_parameters()}
    assert {name: p.requires_grad for name, p in ours.model.named_parameters()} == expected
    with pytest.raises(ValueError, match="unlocked_groups must be 0 to 4 for this tower, got 9"):
        ours.lock_image(9)


@pytest.mark.parametrize(
    "vision",
    [TIMM_CONV, RESNET],
)
def test_a_locked_conv_tower_keeps_its_statistics(vision):
    model = small_model(vision_cfg=vision)
    model.lock_image()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.model.visual.state_dict().items()}
    model(images_for(model, 4), model.tokenizer(["a"] * 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.visual.state_dict().items())
    assert not any(p.requires_grad for p in model.model.visual.parameters())
    half = small_model(vision_cfg=vision)
    half.lock_image(2)
    trainable = [p.requires_grad for p in half.model.visual.parameters()]
    assert any(trainable)
    assert not all(trainable)
