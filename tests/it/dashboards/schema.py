"""Compares dashboards with Grafana's schema, as the package grafana-foundation-sdk has it.

The models of the package drop what they do not know and believe every value: so what comes out again is compared with
what went in, and values with the types that are declared.
"""

import enum
import json
import sys
import types
import typing

try:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard
except ImportError as error:
    print(f"grafana-foundation-sdk is not installed for {sys.executable}: {error}")
    sys.exit(3)

PACKAGE = "grafana_foundation_sdk."

def lost(before, after, path):
    """The keys that went in and did not come out."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key not in after:
                yield f"{path}.{key} is no key of the schema"
            else:
                yield from lost(value, after[key], f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list):
        for index, (left, right) in enumerate(zip(before, after)):
            yield from lost(left, right, f"{path}[{index}]")
    elif before != after:
        yield f"{path}: {before!r} became {after!r}"


def fits(value, wanted):
    """Whether a value is of a type."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is typing.Any or wanted is object:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(fits(each, parts[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, parts[1]) for each in value.values())
    if origin is typing.Literal:
        return value in parts
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return isinstance(value, wanted) or value in [each.value for each in wanted]
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    # The package leaves some objects as they are.
    return isinstance(value, (wanted, dict) if wanted.__module__.startswith(PACKAGE) else wanted)


def faults(model, path):
    """The fields of a model, and of those in it, that have values of another type."""
    if isinstance(model, list):
        for index, each in enumerate(model):
            yield from faults(each, f"{path}[{index}]")
    elif isinstance(model, dict):
        for key, each in model.items():
            yield from faults(each, f"{path}.{key}")
    elif type(model).__module__.startswith(PACKAGE) and not isinstance(model, enum.Enum):
        for field, wanted in typing.get_type_hints(type(model)).items():
            value = getattr(model, field)
            if value is not None and not fits(value, wanted):
                yield f"{path}.{field}: {value!r} is no {wanted}"
            yield from faults(value, f"{path}.{field}")


def main(paths):
    register_default_plugins()
    found = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        dashboard = Dashboard.from_json(before)
        after = json.loads(JSONEncoder(sort_keys=True).encode(dashboard))
        name = path.rsplit("/", 1)[-1]
        found += [*lost(before, after, name), *faults(dashboard, name)]
    print("\n".join(found))
    sys.exit(1 if found else 0)


main(sys.argv[1:])
