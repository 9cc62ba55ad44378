"""What vLLM says of its own API, as far as a gateway passes it on: `python -m tests.serving.gateway.openapi_of_vllm FILE`.

Schemas are kept, words for people are not. Run it again when vLLM changes; a test says when.
"""

import json
import os
import sys
from pathlib import Path

from serving.gateway.routes import ROUTES

SNAPSHOT = Path(__file__).with_name("openapi.json")
_WORDS = {"description", "title", "summary", "examples", "operationId"}


def of_installed():
    """From the installed vLLM's own application, without an engine."""
    os.environ.update(VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    return build_app(arguments, ("generate",), None).openapi()


def filtered(document):
    """Only the routes that pass, only the requests, and only the schemas that these name."""
    served = {(route.path, route.method.lower()) for route in ROUTES}
    paths = {
        path: {method: {"responses": {"200": {"description": ""}}, "requestBody": each["requestBody"]}}
        for path, methods in document["paths"].items()
        for method, each in methods.items()
        if (path, method) in served and "requestBody" in each
    }
    schemas, wanted = document["components"]["schemas"], _named(paths)
    kept = {}
    while wanted - set(kept):
        for name in wanted - set(kept):
            kept[name] = _bare(schemas[name])
            wanted |= _named(kept[name])
    return {
        "openapi": document["openapi"], "info": {"title": "token-fabric", "version": document["info"]["version"]},
        "paths": _bare(paths), "components": {"schemas": dict(sorted(kept.items()))},
    }  # fmt: skip


def _named(value):
    marks = json.dumps(value).split('"#/components/schemas/')[1:]
    return {mark.split('"')[0] for mark in marks}


def _bare(value, *, names=False):
    """Without words; below `properties` and the like a key is a field's name, and stays."""
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _bare(each, names=key in {"properties", "paths"})
        for key, each in value.items()
        if names or key not in _WORDS or (key == "description" and each == "")
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(filtered(of_installed()), separators=(",", ":"), sort_keys=True) + "\n")
