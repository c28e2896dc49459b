"""Asks the schemas of Kubernetes. Reads JSON on stdin: a list of objects; prints what is wrong."""

import json
import sys
from typing import Any

import kubernetes_validate


def wrong(document: dict[str, Any]) -> str:
    """Return the complaint about one object, unknown fields included; empty where there is none."""
    try:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


if __name__ == "__main__":
    json.dump([wrong(document) for document in json.load(sys.stdin)], sys.stdout)
