"""JSON Schema of reports, from what they declare."""

from typing import Any

from memlens.record import Column, columns_of, help_of, is_compact
from memlens.report import JSON_NAMES, Cost, Missed, Origin, Report

_INT_BOUNDS = {"minimum": -(1 << 63), "maximum": (1 << 63) - 1}


def json_schema(kind: type[Report]) -> dict[str, Any]:
    """
    Return the JSON Schema of a kind of report.

    >>> from memlens.report import Report
    >>> class Nothing(Report, schema="memlens.nothing/2"): ...
    >>> json_schema(Nothing)["properties"]["schema"]
    {'const': 'memlens.nothing/2'}
    """
    origin = _row_schema(Origin)
    number = {"type": ["integer", "null"], **_INT_BOUNDS}
    members: dict[str, Any] = {
        "schema": {"const": kind.SCHEMA},
        **origin["properties"],
        "tables": _object_schema(
            {name: _table_schema(field.record) for name, field in kind.table_fields().items()}
        ),
        "sections": _object_schema(
            {name: _section_schema(field.kind) for name, field in kind.section_fields().items()}
        ),
        "sums": {
            "type": "object",
            "additionalProperties": {"type": "object", "additionalProperties": number},
        },
        "missed": _table_schema(Missed),
        "notes": {"type": "array", "items": {"type": "string"}},
        "cost": _row_schema(Cost),
        "is_complete": {"type": "boolean"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.SCHEMA,
        **_object_schema(members),
        "required": list(members),
    }


def _object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _section_schema(kind: type) -> dict[str, Any]:
    return {"type": JSON_NAMES[kind]} if kind in JSON_NAMES else _row_schema(kind)


def _row_schema(record: type) -> dict[str, Any]:
    columns = columns_of(record)
    return {
        "description": help_of(record),
        **_object_schema({column.name: _column_schema(column) for column in columns}),
        "required": [column.name for column in columns],
    }


def _table_schema(record: type) -> dict[str, Any]:
    if not is_compact(record):
        return {"type": "array", "items": _row_schema(record)}
    columns = columns_of(record)
    row = {"type": "array", "prefixItems": [_column_schema(column) for column in columns]}
    found = {
        "columns": {"type": "array", "prefixItems": [{"const": c.name} for c in columns]},
        "rows": {"type": "array", "items": row},
    }
    return {
        "description": help_of(record),
        **_object_schema(found),
        "required": list(found),
    }


def _column_schema(column: Column) -> dict[str, Any]:
    name = JSON_NAMES[column.type]
    bounds = _INT_BOUNDS if column.type is int else {}
    return {
        "type": [name, "null"] if column.nullable else name,
        **bounds,
        "description": column.help,
    }
