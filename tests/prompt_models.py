"""Small models of every kind that prompts attach to, frozen, and a tokenizer whose layout can be chosen."""

import functools
import re

import torch
from open_clip.tokenizer import SimpleTokenizer

from clipkit.architecture import build
from clipkit.dual_encoder import DualEncoder
from clipkit.preprocess import PreprocessConfig

VIT = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 24, "head_width": 12}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
WORDS = {**TEXT, "vocab_size": 500}
TIMM = {"timm_proj": "linear", "image_size": 32}
FULL = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
BERT = {"context_length": 16, "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}
ATTENTION = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}

VISION = {
    "class token": VIT,
    "average": {**VIT, "pool_type": "avg"},
    "attention": {**VIT, **ATTENTION},
    "pooled first": {**VIT, "no_ln_pre": True, "final_ln_after_pool": True},
    "timm class token": {**TIMM, "timm_model_name": "test_vit", "timm_pool": "token"},
    "timm average": {**TIMM, "timm_model_name": "test_vit2", "timm_pool": "avg"},
    "timm attention": {**TIMM, "timm_model_name": "test_vit3", "timm_pool": "map"},
}
# Start token, end token, padding; None for none.
TEXTS = {
    "causal": (TEXT, {}, None),
    "causal, custom": ({**TEXT, "pool_type": "eos", "eos_id": 49407}, {"custom_text": True}, None),
    "full": ({**WORDS, **FULL}, {"custom_text": True}, (None, 1, 1)),
    "class embedding": ({**WORDS, "embed_cls": True}, {"custom_text": True}, (2, 499, 0)),
    "bert": (BERT, {}, (2, 3, 0)),
}
MODELS = {
    "clip": ("class token", "causal"),
    "custom": ("average", "causal, custom"),
    "timm": ("timm class token", "class embedding"),
    "siglip": ("timm attention", "full"),
    "bert": ("attention", "bert"),
}


class WordTokenizer:
    """Words and signs to ids, with or without a start token, padded at either end."""

    def __init__(self, start, end, pad, *, context_length=16, last=None, left=False):
        self.context_length = context_length
        self.start, self.end, self.pad, self.last, self.left = start, end, pad, last, left
        self.ids = {}

    def __call__(self, texts):
        return torch.tensor([self._row(text) for text in ([texts] if isinstance(texts, str) else texts)])

    def _row(self, text):
        words = [self.ids.setdefault(word, 10 + len(self.ids)) for word in re.findall(r"\w+|[^\w\s]", text)]
        room = self.context_length - (self.last is not None)
        tokens = ([] if self.start is None else [self.start]) + words
        tokens = [*tokens[: room - 1], self.end]
        padding = [self.pad] * (room - len(tokens))
        tokens = [*padding, *tokens] if self.left else [*tokens, *padding]
        return tokens if self.last is None else [*tokens, self.last]


def make_model(vision="class token", text="causal", *, folder=None, seed=0, **settings):
    """A frozen dual encoder in evaluation mode; a BERT needs a folder for its config."""
    text_cfg, more, layout = TEXTS[text]
    text_cfg = dict(text_cfg)
    if text == "bert":
        text_cfg["hf_model_name"] = str(_bert_config(folder))
    vision_cfg = dict(VISION[vision] if isinstance(vision, str) else vision)
    config = {"embed_dim": 20, "vision_cfg": vision_cfg, "text_cfg": text_cfg, **more, **settings}
    torch.manual_seed(seed)
    model = DualEncoder(build(config), config, PreprocessConfig.from_dict({"size": vision_cfg["image_size"]}))
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):  # layer scales begin so small that no prompt is felt
            torch.nn.init.ones_(parameter)
    model._tokenizer = _open_clip_tokenizer() if layout is None else WordTokenizer(*layout)
    return model.eval().requires_grad_(False)


@functools.cache
def _open_clip_tokenizer():
    return SimpleTokenizer(context_length=16)


def _bert_config(folder):
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    BertConfig(vocab_size=500, max_position_embeddings=32, **sizes).save_pretrained(folder)
    return folder
