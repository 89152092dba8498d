"""Towers with prompts as loops over blocks: sequences are taken apart and put together by hand."""

import torch


def text_features(model, tokens, prompts, positions):
    """Unnormalised (C, D). `prompts[i]` (M, width) or (C, M, width) before block i, at `positions` (C, M)."""
    inner = model.model
    tower = inner if hasattr(inner, "token_embedding") else inner.text
    run = _bert if hasattr(tower, "config") else _open_clip_text
    return run(tower, tokens, prompts, positions)


def image_features(model, images, prompts):
    """Unnormalised (B, D). `prompts[i]` (M, width) before block i."""
    visual = model.model.visual
    return (_timm if hasattr(visual, "trunk") else _open_clip_image)(visual, images, prompts)


def _open_clip_text(tower, tokens, prompts, positions):
    is_causal, has_class = tower.attn_mask is not None, getattr(tower, "cls_emb", None) is not None
    sequence = _put(tower.token_embedding.weight[tokens], prompts, 0, positions)
    if has_class:
        sequence = torch.cat([sequence, tower.cls_emb.expand(len(tokens), 1, -1)], dim=1)
    length = sequence.shape[1]
    sequence = sequence + tower.positional_embedding[:length]
    allowed = torch.ones(length, length, dtype=torch.bool)
    mask = torch.zeros(len(tokens), length, length, dtype=sequence.dtype)
    mask = mask.masked_fill(~(allowed.tril() if is_causal else allowed), -torch.inf)
    if has_class:  # open_clip's mask of padding stands one column too far to the right
        is_padding = torch.cat([torch.zeros(len(tokens), 1), (tokens == 0).float()], dim=1).bool()
        mask = mask.masked_fill(is_padding[:, None], -torch.inf)
    mask = mask.repeat_interleave(2, dim=0)
    for number, block in enumerate(tower.transformer.resblocks):
        if number > 0:
            sequence = _put(sequence, prompts, number, positions)
        sequence = block(sequence, attn_mask=mask)
    normed = tower.ln_final(sequence)
    if has_class or getattr(tower, "pool_type", None) == "last":
        pooled = normed[:, -1]
    else:
        pooled = torch.stack([row[ids.argmax()] for row, ids in zip(normed, tokens, strict=True)])
    projection = tower.text_projection
    return projection(pooled) if isinstance(projection, torch.nn.Module) else pooled @ projection


def _bert(tower, tokens, prompts, positions):
    bert = tower.transformer
    table = bert.embeddings
    sequence = _put(table.word_embeddings.weight[tokens], prompts, 0, positions)
    length = sequence.shape[1]
    sequence = sequence + table.position_embeddings.weight[:length] + table.token_type_embeddings.weight[0]
    sequence = table.LayerNorm(sequence)
    is_word = tokens != 0
    mask = torch.zeros(len(tokens), 1, 1, length, dtype=sequence.dtype)
    mask = mask.masked_fill(~is_word[:, None, None], torch.finfo(sequence.dtype).min)
    for number, layer in enumerate(bert.encoder.layer):
        if number > 0:
            sequence = _put(sequence, prompts, number, positions)
        output = layer(sequence, mask.expand(-1, 1, length, -1))
        sequence = output[0] if isinstance(output, tuple) else output
    weights = is_word.to(sequence.dtype)[..., None]
    return tower.proj((sequence * weights).sum(1) / weights.sum(1))


def _open_clip_image(visual, images, prompts):
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(images), 1, -1)
    sequence = torch.cat([first, patches], dim=1) + visual.positional_embedding
    tokens = _through(visual.ln_pre, visual.transformer.resblocks, sequence, prompts)
    if visual.attn_pool is not None:
        pooled = visual.ln_post(visual.attn_pool(tokens))[:, 0]
    elif visual.pool_type == "avg":
        pooled = visual.ln_post(tokens)[:, 1:].mean(dim=1)
    else:
        pooled = visual.ln_post(tokens[:, 0])
    return pooled @ visual.proj


def _timm(visual, images, prompts):
    trunk = visual.trunk
    sequence = trunk._pos_embed(trunk.patch_embed(images))
    tokens = trunk.norm(_through(trunk.norm_pre, trunk.blocks, sequence, prompts))
    if trunk.attn_pool is not None:
        pooled = trunk.attn_pool(tokens)
    elif trunk.global_pool == "avg":
        pooled = tokens[:, trunk.num_prefix_tokens :].mean(dim=1)
    else:
        pooled = tokens[:, 0]
    return visual.head(trunk.fc_norm(pooled))


def _through(entry, blocks, sequence, prompts):
    """Image tokens behind the last block, without prompts."""
    count = sequence.shape[1]
    if prompts:
        sequence = torch.cat([sequence, prompts[0].expand(len(sequence), -1, -1)], dim=1)
    sequence = entry(sequence)
    for number, block in enumerate(blocks):
        if 0 < number < len(prompts):
            fresh = prompts[number].expand(len(sequence), -1, -1)
            sequence = torch.cat([sequence[:, :count], fresh], dim=1)
        sequence = block(sequence)
    return sequence[:, :count]


def _put(sequence, prompts, number, positions):
    """Sequences whose columns `positions` are the prompts before block `number`, if it has any."""
    if number >= len(prompts):
        return sequence
    rows = []
    for row, columns in enumerate(positions.tolist()):
        vectors = prompts[number] if prompts[number].ndim == 2 else prompts[number][row]
        slots = dict(zip(columns, vectors, strict=True))
        rows.append(torch.stack([slots.get(c, sequence[row, c]) for c in range(sequence.shape[1])]))
    return torch.stack(rows)
