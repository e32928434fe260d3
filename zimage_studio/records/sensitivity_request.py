"""What a door asks of a sensitivity map."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.checks import flag, refuse_unknown, text, whole
from zimage_studio.records.request import MAX_PROMPT_CHARS, MAX_SEED

DEFAULT_COUNT, MAX_COUNT = 4, 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SensitivityRequest:
    """With how many `prompts` it is measured: those given, or `count` of the model's usual ones. Prompt i has seed
    `seed` + i. `by_timestep` keeps the change at each step of the sampler as well, `heads` also measures every head.
    """

    prompts: tuple[str, ...] = ()
    count: int = DEFAULT_COUNT
    seed: int = 0
    by_timestep: bool = False
    heads: bool = False

    def __post_init__(self) -> None:
        prompts = self.prompts
        if not isinstance(prompts, list | tuple):
            raise InvalidInputError("report.prompts_list", field="prompts", value=type(prompts).__name__)
        prompts = tuple(text("prompt", prompt, MAX_PROMPT_CHARS) for prompt in prompts)
        whole("count", len(prompts), 0, MAX_COUNT)
        object.__setattr__(self, "prompts", prompts)
        object.__setattr__(self, "count", len(prompts) or whole("count", self.count, 1, MAX_COUNT))
        object.__setattr__(self, "seed", whole("seed", self.seed, 0, MAX_SEED - MAX_COUNT))
        flag("by_timestep", self.by_timestep)
        flag("heads", self.heads)

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each prompt."""
        return tuple(range(self.seed, self.seed + self.count))

    def to_dict(self) -> dict[str, object]:
        """As a job keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Read what `to_dict` gave, or what a door sent. Raises InvalidInputError naming the field."""
        refuse_unknown(data, cls.__dataclass_fields__)
        return cls(**{name: value for name, value in data.items() if value is not None})  # type: ignore[arg-type]
