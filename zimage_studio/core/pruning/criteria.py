"""Which units, heads and blocks are missed most: one call for every criterion.

random, l1 and group_l2 look at the weights on the disk (weights). taylor and fisher ask the loss (gradients),
activation and block_influence what passes through (activations), ablation takes parts out and looks (ablation); these
measure on the states of pictures that the model draws for a few prompts (calibration).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from diffusers import ZImagePipeline, ZImageTransformer2DModel

from zimage_studio.core import loading
from zimage_studio.core.model_files import inspect_folder
from zimage_studio.core.pruning.ablation import ablations
from zimage_studio.core.pruning.activations import block_influence, listen, stream_strength, unit_strengths
from zimage_studio.core.pruning.calibration import (
    DEFAULT_STEPS,
    MAX_SIDE_PX,
    Batch,
    Ways,
    default_size,
    states_of,
    ways,
)
from zimage_studio.core.pruning.calibration_prompts import calibration_prompts
from zimage_studio.core.pruning.gradients import gradient_scores, require_plain
from zimage_studio.core.pruning.groups import UnitGroup, unit_groups
from zimage_studio.core.pruning.raw_tensors import tensor_places
from zimage_studio.core.pruning.scores import Scores
from zimage_studio.core.pruning.shape import shape_of, transformer_shape
from zimage_studio.core.pruning.weights import Read, branch_strengths, random_scores, read_tensor, unit_magnitudes
from zimage_studio.core.weight_headers import read_json
from zimage_studio.errors import InvalidInputError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.compress import require_suited
from zimage_studio.records.plan import Calibration, Criterion, Kind, TransformerShape
from zimage_studio.records.progress import Progress, silent

WEIGHT_ONLY: tuple[Criterion, ...] = ("random", "l1", "group_l2")
POWERS = {"l1": 1, "group_l2": 2}
PROMPTS = 8
POINTS = 8
"""On how many states of one picture is measured, spread evenly over its steps."""
ABLATION_PICTURES, ABLATION_STEPS = 4, 8
"""Ablation draws anew for each head and group of units: few pictures, in few steps."""


def score(
    source: ZImagePipeline | Path,
    criterion: Criterion,
    kinds: Sequence[Kind],
    *,
    prompts: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = silent,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    guidance: float | None = None,
    device: str = "auto",
) -> Scores:
    """Scores for the cuts of `kinds`; equal arguments give equal scores on one machine.

    `source` is a diffusers folder or a pipeline of plain weights. From a folder weight-only criteria read one tensor at
    a time and build no model; for all others it is loaded to `device`, its prompts (8 of the model's own world where
    none are given) are drawn with seed, seed + 1, ... as it likes best. `steps`, `size` (width, height in px, up to 512
    where None) and `guidance` say otherwise; a pipeline does not know what it likes: 8 steps without guidance.

    Scores of units and heads compare within their block; of taylor, fisher and ablation also across blocks. Blocks are
    scored by what can be compared: see `branch_strengths` for l1 and group_l2, `gradients`, and for activation and
    block_influence, which are one measurement (arXiv:2407.14679), `block_influence`; under the second name it is for
    cuts that hold "depth", alone or with others. Ablation measures only what `kinds` need, for it takes long, and by
    the first 4 prompts in at most 8 steps. The residual stream (`dim`) is for the weight-only ones and activation.
    Raises InvalidInputError for a criterion that cannot serve these kinds, or a pipeline without prompts, UserError for
    quantised or offloaded weights, NonFiniteError, ModelError, Cancelled.
    """
    require_suited(criterion, kinds)
    if criterion in WEIGHT_ONLY:
        return _weighed(source, criterion, kinds, seed, progress)
    own = isinstance(source, Path)
    if isinstance(source, Path):
        prompts = tuple(prompts) or calibration_prompts(source, PROMPTS, seed)
        defaults = inspect_folder(source).defaults
        steps = steps or defaults.steps
        guidance = defaults.guidance if guidance is None else guidance
        size = size or (min(defaults.width, MAX_SIDE_PX), min(defaults.height, MAX_SIDE_PX))
        artifact = ModelArtifact(key=source.name, kind="folder", path=str(source), name=source.name)
        source = loading.load_pipeline(artifact, device=device, progress=progress)
    if not prompts:
        raise InvalidInputError("calibration_no_prompts", field="prompts", criterion=criterion)
    _require_plain(source.transformer, criterion)
    steps, size = steps or DEFAULT_STEPS, size or default_size(source)
    seeds = [seed + turn for turn in range(len(prompts))]
    if criterion == "ablation":
        prompts, steps = prompts[:ABLATION_PICTURES], min(steps, ABLATION_STEPS)
    drawn = ways(source, prompts, seeds, steps, size=size, guidance=guidance or 0.0)
    states = states_of(source.transformer, drawn, progress)
    if own:  # what is left to do needs the transformer alone
        source.register_modules(text_encoder=None, vae=None)
    states = _spread(states, steps)
    found = measured(source.transformer, criterion, kinds, states, drawn, progress)
    width, height = size
    said = Calibration(
        prompts=len(prompts), states=len(states), width=width, height=height, guidance=guidance or 0.0, seed=seed
    )
    return replace(found, calibration=said)


def measured(
    transformer: ZImageTransformer2DModel,
    criterion: Criterion,
    kinds: Sequence[Kind],
    states: Batch,
    drawn: Ways,
    progress: Progress = silent,
) -> Scores:
    """What a criterion that measures says on `states`, or by pictures that are `drawn` anew."""
    if criterion in ("taylor", "fisher"):
        return gradient_scores(transformer, groups_of(transformer), states, criterion, progress)
    if criterion == "ablation":
        ffn, heads, blocks = ablations(transformer, states, drawn, kinds, progress)
        return Scores(criterion=criterion, ffn=ffn, heads=heads, blocks=blocks)
    heard = listen(transformer, states, progress)
    ffn, heads = unit_strengths(transformer, heard)
    stream = stream_strength(heard, [place for place in heard.stream if place[0] == "layers"])
    return Scores(criterion=criterion, ffn=ffn, heads=heads, blocks=block_influence(heard), dim=stream)


def groups_of(transformer: ZImageTransformer2DModel) -> list[UnitGroup]:
    """The groups of a model in memory."""
    return unit_groups(type(transformer), transformer.config)


def _spread(states: Batch, steps: int) -> Batch:
    """At most POINTS states of each picture, evenly spread, those of one step together."""
    points = sorted({turn * steps // POINTS for turn in range(POINTS)})
    return states.part([first + point for point in points for first in range(0, len(states), steps)])


def _weighed(
    source: ZImagePipeline | Path, criterion: Criterion, kinds: Sequence[Kind], seed: int, progress: Progress
) -> Scores:
    shape, read, groups = _folder(source) if isinstance(source, Path) else _memory(source.transformer, criterion)
    if criterion == "random":
        ffn, heads, blocks, dim = random_scores(shape, seed)
        return Scores(criterion=criterion, ffn=ffn, heads=heads, blocks=blocks, dim=dim)
    wanted: tuple[Kind, ...] = ("ffn", "heads", "dim") if "dim" in kinds else ("ffn", "heads")
    power = POWERS[criterion]
    units, attention, stream = unit_magnitudes(read, groups(), power, wanted, progress)
    strengths = branch_strengths(read, shape, power)
    progress(1, 1, "note.scoring")
    return Scores(criterion=criterion, ffn=units, heads=attention, blocks=strengths, dim=stream)


_Model = tuple[TransformerShape, Read, Callable[[], list[UnitGroup]]]


def _folder(folder: Path) -> _Model:
    config = read_json(folder / "transformer" / "config.json")
    shape, places = transformer_shape(folder), tensor_places(folder)
    return (
        shape,
        lambda name: read_tensor(places[name]),
        lambda: unit_groups(loading.transformer_class(config, folder), config),
    )


def _memory(transformer: ZImageTransformer2DModel, criterion: Criterion) -> _Model:
    _require_plain(transformer, criterion)
    tensors = {name: parameter.detach() for name, parameter in transformer.named_parameters()}
    shape = shape_of({name: tuple(tensor.shape) for name, tensor in tensors.items()}, type(transformer).__name__)
    return shape, tensors.__getitem__, lambda: groups_of(transformer)


def _require_plain(transformer: ZImageTransformer2DModel, criterion: Criterion) -> None:
    """Raises UserError (score_not_plain)."""
    for name, parameter in transformer.named_parameters():
        require_plain(name, parameter, criterion)
