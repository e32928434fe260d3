"""CLIPScore by any open_clip checkpoint in safetensors: a local folder, or a repository of the hub.

Same score as clip_score.py: the cosine of picture and caption (Hessel et al. 2021, arXiv:2104.08718, without their
factor 2.5 and without clipping at 0). HPSv2 (Wu et al. 2023, arXiv:2306.09341) is the same cosine by weights that were
trained on what people preferred. Cosines of different checkpoints cannot be compared.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zimage_studio.core.model_files import is_hub_id
from zimage_studio.core.torch_environment import prepare_torch
from zimage_studio.errors import ModelError

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
WANTED = (CONFIG, WEIGHTS, "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "*.model")
MAX_CONFIG_BYTES = 1_000_000
BATCH = 16


class OpenClipScorer:
    """A checkpoint in memory, on the CPU or a device, in float32."""

    def __init__(self, name: str, model: Any, preprocess: Any, tokenizer: Any, device: torch.device) -> None:
        self.name = name
        self._model = model.eval().to(device)
        self._preprocess, self._tokenizer, self._device = preprocess, tokenizer, device

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        """The cosine of each picture with its own caption."""
        scores: list[float] = []
        for start in range(0, len(images), BATCH):
            pictures, texts = images[start : start + BATCH], list(captions[start : start + BATCH])
            scores += self._cosines(pictures, texts).tolist()
        return scores

    def _cosines(self, images: Sequence[Image.Image], captions: list[str]) -> Tensor:
        pixels_NCHW = torch.stack([self._preprocess(image.convert("RGB")) for image in images]).to(self._device)
        with torch.no_grad():
            image_ND = self._model.encode_image(pixels_NCHW, normalize=True)
            text_ND = self._model.encode_text(self._tokenizer(captions).to(self._device), normalize=True)
        cosines_N: Tensor = (image_ND * text_ND).sum(1).float().cpu()
        return cosines_N


def load_open_clip(source: str, *, device: str = "cpu", offline: bool = True) -> OpenClipScorer:
    """Read `source`, a folder or `organisation/name`. No pickle is opened and no code of the repository is run.

    Raises ModelError with what is missing or wrong.
    """
    folder = _folder(source, offline=offline)
    config = _config(folder)
    if not (folder / WEIGHTS).is_file():
        raise ModelError("report.clip_file_missing", value=source, file=WEIGHTS)
    if "hf_model_name" in config["model_cfg"].get("text_cfg", {}):
        raise ModelError("report.clip_foreign_tower", value=source)
    prepare_torch()
    import open_clip  # imports torchvision: seconds, and not before prepare_torch

    place = f"local-dir:{folder}"
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(place, load_weights=False, pretrained_text=False)
        model.load_state_dict(load_file(folder / WEIGHTS))
        tokenizer = open_clip.get_tokenizer(place)
    except (SafetensorError, RuntimeError, OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError("report.clip_damaged", value=source, why=str(error).splitlines()[0]) from error
    return OpenClipScorer(_name(source, config), model, preprocess, tokenizer, torch.device(device))


def _folder(source: str, *, offline: bool) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    repository = source.removeprefix("hf-hub:")
    if not is_hub_id(repository):
        raise ModelError("report.clip_not_here", value=source)
    try:
        return Path(snapshot_download(repository, allow_patterns=list(WANTED), local_files_only=offline))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError("report.clip_not_here", value=source) from error


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError("report.clip_file_missing", value=folder.name, file=CONFIG)
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError("report.clip_damaged", value=folder.name, why=error) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        raise ModelError("report.clip_damaged", value=folder.name, why="model_cfg")
    return config


def _name(source: str, config: dict[str, Any]) -> str:
    """The repository or the folder, and how large the model is: enough to tell checkpoints apart."""
    vision = config["model_cfg"].get("vision_cfg", {})
    size = f"{vision.get('layers')} layers, {vision.get('image_size')} px" if isinstance(vision, dict) else ""
    return f"{Path(source).name if Path(source).is_dir() else source} ({size})"
