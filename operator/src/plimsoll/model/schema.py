"""The JSON Schema of ModelFacts, for readers that are not Python; committed as
`docs/schemas/model_facts.schema.json`."""

from __future__ import annotations

import json

from plimsoll.model.facts import ModelFacts


def facts_schema() -> str:
    """The schema as it is committed. Write it again: python -m plimsoll.model.schema > docs/schemas/…"""
    schema = ModelFacts.model_json_schema(by_alias=True)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


if __name__ == "__main__":
    print(facts_schema(), end="")
