"""Bounds what schemathesis asks for, so that no request waits longer than a moment: waits, timeouts, endless streams."""

import re

import schemathesis

TIME = re.compile(r"^[0-9]+(ms|s|m)$")
MOMENT = "20ms"


def whole(value):
    """Writes whole numbers without a fraction: 1.0 is an integer to JSON Schema, and refused here by design."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: whole(field) for name, field in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


def bounded(fields):
    """Shortens the times in a query or a body; what is no time, and so refused, stays as it is."""
    if isinstance(fields, dict):
        for name in ("wait", "timeout", "progress"):
            if isinstance(fields.get(name), str) and TIME.match(fields[name]):
                fields[name] = MOMENT


@schemathesis.hook
def before_call(context, case, kwargs):
    case.body = whole(case.body)
    bounded(case.query)
    bounded(case.body)
    # An observer's stream ends with the node.
    if isinstance(case.query, dict) and case.query.get("watch") in ("", "true"):
        case.query["watch"] = "false"
