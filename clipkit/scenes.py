"""The built-in data: captioned scenes of coloured shapes with exact ground truth.

```python
for scene in generate(10, seed=0, split="val"):
    scene.draw(64)  # PIL.Image
    scene.captions[3].text  # "a small red star at the top and two big blue rings on a noisy gray background"
    scene.captions[3].claims  # the same as data, so its truth can be decided
    scene.objects[0].box, scene.phrases()[0]  # (x0, y0, x1, y1) in [0, 1], "the small red star"
    scene.foils()  # captions that one exchange makes false
write_shards("scenes", SceneShards(num_train=20_000))
```

Eight (colour, shape) combinations appear in no training scene. What a scene is made of stands in
`scene_objects`, its drawing in `scene_drawing`, its captions in `scene_captions`, the false ones in
`scene_foils`, the random draws in `scene_sampling`, the files in `scene_shards`.
"""

from clipkit.scene_captions import Caption, Claim, Has, Related, StandsOn
from clipkit.scene_foils import Foil
from clipkit.scene_objects import (
    CLASSES,
    UNSEEN_CLASSES,
    Background,
    Description,
    SceneObject,
    class_names,
    relation,
    unseen_class_names,
)
from clipkit.scene_sampling import SPLITS, Scene, generate
from clipkit.scene_shards import SceneShards, describe, write_shards

__all__ = [
    "CLASSES",
    "SPLITS",
    "UNSEEN_CLASSES",
    "Background",
    "Caption",
    "Claim",
    "Description",
    "Foil",
    "Has",
    "Related",
    "Scene",
    "SceneObject",
    "SceneShards",
    "StandsOn",
    "class_names",
    "describe",
    "generate",
    "relation",
    "unseen_class_names",
    "write_shards",
]
