"""What recovery is asked to do: it survives JSON, and what is wrong is refused by name."""

import json
import math

import pytest

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.recover import DEFAULT_STEPS, RecoveryConfig, parse_recovery, processes_on

REFUSED = [
    ({"steps": 3, "minutes": 1}, "steps"),
    ({"steps": 0}, "steps"),
    ({"minutes": math.nan}, "minutes"),
    ({"method": "magic"}, "method"),
    ({"optimiser": "sgd"}, "optimiser"),
    ({"data_set": ""}, "data_set"),
    ({"data_set": "", "method": "distil"}, "prompts"),
    ({"method": "flow", "flow_weight": 0}, "flow_weight"),
    ({"checkpoint_every_s": 61}, "checkpoint_every_s"),
    ({"lr": math.inf}, "lr"),
    ({"size": 100}, "size"),
    ({"cuts": [1.0]}, "cuts"),
    ({"cuts": [math.nan]}, "cuts"),
    ({"cuts": 0.5}, "cuts"),
    ({"sparsity_share": 0.2}, "sparsity_share"),
    ({"gradient_checkpointing": "yes"}, "gradient_checkpointing"),
    ({"prompts": ["a\0b"], "method": "distil"}, "prompts"),
    ({"trainable": "lora", "optimiser": "muon"}, "optimiser"),
    ({"processes": 0}, "processes"),
    ({"processes": "many"}, "processes"),
    ({"processes": 65}, "processes"),
    ({"colour": 1}, "colour"),
]


@pytest.mark.parametrize(("values", "field"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_refused_by_name(values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_recovery(values)
    assert caught.value.field == field


def test_it_survives_json_and_a_door_may_give_parts() -> None:
    config = parse_recovery({"minutes": "2", "cuts": [0.3, "plan-1"], "prompts": ["a cat", "一只猫"], "batch": "32"})
    assert config == RecoveryConfig(minutes=2.0, cuts=(0.3, "plan-1"), prompts=("a cat", "一只猫"), batch=32)
    assert RecoveryConfig.from_json(config.to_json()) == config
    assert parse_recovery({"steps": 5}, config).minutes is None
    assert RecoveryConfig().steps == DEFAULT_STEPS


def test_another_schema_and_broken_text_are_refused() -> None:
    data = {**RecoveryConfig().to_dict(), "schema": 2}
    for source in (json.dumps(data), "{", "[]", '{"schema": 1, "schema": 1}'):
        with pytest.raises(InvalidInputError):
            RecoveryConfig.from_json(source)


def test_one_process_for_each_accelerator_and_never_more() -> None:
    assert [processes_on("auto", devices) for devices in (0, 1, 4)] == [1, 1, 4]
    assert [processes_on(2, devices) for devices in (0, 2, 4)] == [2, 2, 2]  # on the processor any number
    assert parse_recovery({"processes": "2"}).processes == 2
    with pytest.raises(InvalidInputError, match=r"processes is 3; .* this machine has 2\. Choose at most 2, or auto"):
        processes_on(3, 2)
