"""CLIPScore with the embedded model's own tiny CLIP: how well pictures fit their captions.

The score is the mean cosine between picture and caption embeddings (Hessel et al. 2021, arXiv:2104.08718, without
their factor 2.5 and without clipping at 0). The model is `open_clip.CLIP`, trained from nothing on the drawn world of
`scripts/train_tiny`, so scores compare models of that world with each other and mean nothing elsewhere.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zimage_studio.core.evaluation.judge import as_tensor
from zimage_studio.core.torch_environment import prepare_torch

SCHEMA = 1


def build_clip(config: Mapping[str, Any]) -> nn.Module:
    """An untrained `open_clip.CLIP` from `embed_dim`, `vision_cfg` and `text_cfg`."""
    prepare_torch()
    from open_clip import CLIP  # imports torchvision: seconds, and not before prepare_torch

    model: nn.Module = CLIP(
        embed_dim=config["embed_dim"], vision_cfg=dict(config["vision_cfg"]), text_cfg=dict(config["text_cfg"])
    )
    return model


class ClipScorer:
    """A trained CLIP with its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Any, config: Mapping[str, Any]) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._config = config

    @classmethod
    def load(cls, folder: Path) -> "ClipScorer":
        """Read `config.json`, the tokenizer and `model.safetensors`, on the CPU in float32."""
        prepare_torch()
        from transformers import Qwen2Tokenizer

        config = json.loads((folder / "config.json").read_text("utf-8"))
        if config.get("schema") != SCHEMA:
            raise ValueError(f"{folder}: the CLIP has schema {config.get('schema')!r}; this version reads {SCHEMA}.")
        model = build_clip(config)
        model.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
        return cls(model, Qwen2Tokenizer.from_pretrained(folder), config)

    def save(self, folder: Path) -> None:
        """Write what `load` reads; the weights as bfloat16."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"schema": SCHEMA, **self._config}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        weights = {name: value.bfloat16().contiguous() for name, value in self._model.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        self._tokenizer.save_pretrained(folder)

    def similarities(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        """Cosines of every picture with every caption, (pictures, captions), float32."""
        side_px = int(self._config["vision_cfg"]["image_size"])
        with torch.no_grad():
            image_ND = self._model.encode_image(as_tensor(images, side_px), normalize=True)  # type: ignore[operator]
            ids_ML = tokenize(self._tokenizer, captions, int(self._config["text_cfg"]["context_length"]))
            text_MD = self._model.encode_text(ids_ML, normalize=True)  # type: ignore[operator]
        similarities: Tensor = image_ND @ text_MD.T
        return similarities

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> float:
        """Mean cosine of each picture with its own caption."""
        if len(images) != len(captions) or not images:
            raise ValueError(f"{len(images)} pictures and {len(captions)} captions; the score needs one caption each")
        return float(self.similarities(images, captions).diagonal().mean())


def tokenize(tokenizer: Any, captions: Sequence[str], context_length: int) -> Tensor:
    """Token ids (N, context_length): the caption without chat template, cut to fit, then one end token, then zeros.

    The end token is the last of the vocabulary, for open_clip reads the text embedding where the id is greatest.
    """
    ids_NL = torch.zeros(len(captions), context_length, dtype=torch.long)
    for row, caption in enumerate(captions):
        ids = [*tokenizer(caption).input_ids[: context_length - 1], len(tokenizer) - 1]
        ids_NL[row, : len(ids)] = torch.tensor(ids)
    return ids_NL
