import json
import tarfile

import numpy as np
import pytest
import torch
from broken_shards import write_tar
from PIL import Image
from shared_data import shared_data

from clipkit.data.samples import SampleKeys
from clipkit.data.sources import open_source
from clipkit.images import decode_image, decode_pixels


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_img2dataset_shard():
    path = shared_data("cc12m_wds_32.tar")
    source = open_source("cc12m", path, SampleKeys(caption=("txt", "json.caption"), fields=True))
    assert len(source) == 32
    assert source.problems.counts == {}
    with tarfile.open(path) as tar:
        for index in range(32):
            sample = source.read(index)
            assert sample.image == tar.extractfile(f"{sample.key}.jpg").read()
            assert sample.captions[0] == tar.extractfile(f"{sample.key}.txt").read().decode().strip()
            assert sample.captions[0] == sample.captions[1]
            pixels = decode_pixels(sample.image)
            assert pixels.shape == (3, sample.fields["height"], sample.fields["width"])


@pytest.mark.parametrize(
    "name", ["flickr8k/images_112.tar", "coco_mini/images_320.tar", "noto_emoji/png72.tar"]
)
def test_both_decoders_give_pillow_s_pixels(name):
    source = open_source("images", shared_data(name), SampleKeys(require=()))
    assert source.problems.counts == {}
    for index in range(0, len(source), max(1, len(source) // 100)):
        data = source.read(index).image
        image = decode_image(data)
        expected = np.asarray(image).transpose(2, 0, 1)
        assert torch.equal(decode_pixels(data), torch.from_numpy(expected.copy()))


def test_emoji_are_drawn_on_white():
    source = open_source("emoji", shared_data("noto_emoji/png72.tar"), SampleKeys(require=()))
    corners = [decode_pixels(source.read(index).image)[:, 0, 0].tolist() for index in range(20)]
    assert corners == [[255, 255, 255]] * 20


def test_flickr8k_as_shards(tmp_path):
    lines = shared_data("flickr8k/captions.jsonl").read_text().splitlines()[:50]
    records = [json.loads(line) for line in lines]
    with tarfile.open(shared_data("flickr8k/images_112.tar")) as tar:
        members = {}
        for record in records:
            members[record["image"]] = tar.extractfile(record["image"]).read()
            members[record["image"].replace(".jpg", ".txt")] = "\n".join(record["captions"]).encode()
    source = open_source("flickr8k", write_tar(tmp_path / "0.tar", members))
    assert len(source) == 50
    for index, record in enumerate(records):
        sample = source.read(index)
        assert list(sample.captions) == [caption.strip() for caption in record["captions"]]
        assert decode_image(sample.image).size == (112, 112)
        assert isinstance(decode_image(sample.image), Image.Image)


def test_class_folders_in_a_tar_become_labels_when_unpacked(tmp_path):
    with tarfile.open(shared_data("clothing_train_112.tar")) as tar:
        names = [member for member in tar.getmembers() if member.isreg()][::100]
        tar.extractall(tmp_path, members=names, filter="data")
    source = open_source("clothing", tmp_path, SampleKeys(require=("label",)))
    assert len(source) == len(names)
    assert source.classnames == tuple(sorted({member.name.split("/")[0] for member in names}))
    sample = source.read(0)
    assert sample.label == 0
    assert sample.key.startswith(source.classnames[0])
