"""Scores that need no model, and plans made from them."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from diffusers import ZImageTransformer2DModel

from zimage_studio.core.fingerprint import fingerprint
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.pruning.planning import make_plan
from zimage_studio.core.pruning.shape import transformer_shape
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.compress import parse_prune
from zimage_studio.records.plan import PrunePlan, TransformerShape
from zimage_studio.records.progress import silent


@dataclass(frozen=True)
class Given:
    """Scores as a test gives them."""

    criterion: str = "l1"
    ffn: dict = field(default_factory=dict)
    heads: dict = field(default_factory=dict)
    blocks: dict = field(default_factory=dict)
    dim: np.ndarray | None = None
    calibration: None = None


def random_scores(shape: TransformerShape, seed: int = 0) -> Given:
    rng = np.random.default_rng(seed)
    places = [(block.stack, block.index) for block in shape.blocks]
    return Given(
        ffn={place: rng.random(block.ffn) for place, block in zip(places, shape.blocks, strict=True)},
        heads={place: rng.random(block.heads) for place, block in zip(places, shape.blocks, strict=True)},
        blocks={place: float(rng.random()) for place in places},
        dim=rng.random(shape.dim),
    )


def norm_scores(transformer: ZImageTransformer2DModel, shape: TransformerShape) -> Given:
    """Norms of w2's and to_out's columns."""
    tensors = {name: tensor.detach().float().numpy() for name, tensor in transformer.state_dict().items()}
    ffn, heads = {}, {}
    for block in shape.blocks:
        name = f"{block.stack}.{block.index}"
        ffn[(block.stack, block.index)] = np.abs(tensors[f"{name}.feed_forward.w2.weight"]).sum(0)
        out = np.abs(tensors[f"{name}.attention.to_out.0.weight"]).sum(0)
        heads[(block.stack, block.index)] = out.reshape(-1, shape.head_dim).sum(1)
    return Given(ffn=ffn, heads=heads)


def artifact(folder: Path) -> ModelArtifact:
    facts = inspect_folder(folder)
    return ModelArtifact(
        key="parent", kind="folder", path=str(folder), name=folder.name, sha256=fingerprint(facts.files),
        parameters=facts.parameters, bytes=facts.bytes, defaults=facts.defaults,
    )  # fmt: skip


def plan_of(folder: Path, kinds: str, *, seed: int = 0, scores: Given | None = None, **values: object) -> PrunePlan:
    """A plan by random scores, unless others are given."""
    request = parse_prune({"model": "parent", "kinds": kinds, "seed": seed, **values})
    scores = scores or random_scores(transformer_shape(folder), seed)
    return make_plan(request, artifact(folder), folder, scores, silent)
