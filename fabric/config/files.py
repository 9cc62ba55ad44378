"""YAML into a pydantic model, with errors for people.

Every mistake is said as "file: path.inside.it: found X; allowed: Y". Knows nothing of what the model means. Also refuses
what YAML lets pass: doubled keys, keys that are not strings, `${NAME}` that the environment doesn't have.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from fabric.errors import InvalidConfig

Model = TypeVar("Model", bound=BaseModel)

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRETS: Final = frozenset({"dsn", "access_key_id", "secret_access_key", "session_token"})
"""Keys whose values are never shown, not even in an error."""
_SHOWN_MAX: Final = 80


def read_sections(file: Path, *, model: type[Model], environ: Mapping[str, str]) -> Model:
    """The file as a `model`, validated with `directory` and `state_dir` in the validation context.

    Raises:
        InvalidConfig: anything that is not as the model says.
    """
    written = read_yaml(file)
    if not isinstance(written, dict):
        found = "nothing" if written is None else type(written).__name__
        raise InvalidConfig(f"{file}: found {found}; allowed: a mapping of sections", file=str(file), path="")
    filled = _fill(written, environ=environ, file=file, path="")
    context = {"directory": str(file.absolute().parent), "state_dir": environ.get("FABRIC_STATE_DIR")}
    try:
        return model.model_validate(filled, context=context)
    except ValidationError as error:
        raise _explain(error, file=file, written=written) from None


def read_yaml(file: Path) -> Any:
    """What the file says, in plain YAML types.

    Raises:
        InvalidConfig: it can't be read, is not YAML, or has a key twice.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_OnceOnlyLoader)  # noqa: S506 (it is a SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error  # without the file's name once more
        raise InvalidConfig(f"{file}: can't be read: {why}", file=str(file), path="") from None
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{file}: is not valid YAML: {_in_one_line(error)}", file=str(file), path="") from None


def _in_one_line(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"


class _OnceOnlyLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key, _ in node.value:
            if key.tag not in {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}:
                found = f"found the key {key.value!r}; allowed: keys that are strings: write it in quotes"
                raise yaml.constructor.ConstructorError(None, None, found, key.start_mark)
            if keys.count(key.value) > 1:
                found = f"found the key {key.value!r} twice; allowed: every key once"
                raise yaml.constructor.ConstructorError(None, None, found, key.start_mark)
        return super().construct_mapping(node, deep=deep)


def _fill(value: Any, *, environ: Mapping[str, str], file: Path, path: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill(of, environ=environ, file=file, path=_join(path, key)) for key, of in value.items()}
    if isinstance(value, list):
        return [_fill(of, environ=environ, file=file, path=_join(path, at)) for at, of in enumerate(value)]
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if name not in environ:
            raise InvalidConfig(
                f"{file}: {path}: found ${{{name}}}, which the environment doesn't have; set it: export {name}=...",
                file=str(file),
                path=path,
            )
    return _VARIABLE.sub(lambda match: environ[match[1]], value)


def mistakes_in(error: ValidationError, written: dict[str, Any]) -> list[str]:
    """What is wrong with settings that stand in no file: where, what was found and what is allowed."""
    return [f"{path or 'the settings'}: {said}" for path, said in _told(error, written)]


def _told(error: ValidationError, written: dict[str, Any]) -> list[tuple[str, str]]:
    return [_say(mistake, written) for mistake in error.errors(include_url=False)]


def _explain(error: ValidationError, *, file: Path, written: dict[str, Any]) -> InvalidConfig:
    mistakes = _told(error, written)
    message = "\n".join(f"{file}: {path or 'the file'}: {said}" for path, said in mistakes)
    return InvalidConfig(message, file=str(file), path=mistakes[0][0], mistakes=len(mistakes))


def _say(mistake: ErrorDetails, written: dict[str, Any]) -> tuple[str, str]:
    path, found = _find(written, mistake["loc"])
    facts = mistake.get("ctx", {})
    match mistake["type"]:
        case "unknown_keys":
            return path, f"found {facts['unknown']}; allowed: {facts['known']}"
        case "missing":
            return _join(path, mistake["loc"][-1]), "found nothing; allowed: a value, and it must be there"
        case "literal_error" | "enum":
            allowed = facts["expected"]
        case "union_tag_invalid":
            return _join(
                path, facts["discriminator"].strip("'")
            ), f"found {facts['tag']!r}; allowed: {facts['expected_tags']}"
        case "union_tag_not_found":
            return _join(path, facts["discriminator"].strip("'")), "found nothing; allowed: the kind of this section"
        case "string_pattern_mismatch":
            allowed = f"text that matches {facts['pattern']}"
        case _:
            allowed = mistake["msg"].removeprefix("Input should be ")
    if mistake["loc"] and not path:  # a key that isn't written, and whose default won't do
        return str(mistake["loc"][0]), f"found nothing; allowed: {allowed}"
    return path, f"found {_show(found, path)}; allowed: {allowed}"


def _find(written: Any, loc: Sequence[str | int]) -> tuple[str, Any]:
    """Where a mistake is in the file, and what stands there: pydantic's names of union members are left out."""
    path, cursor = "", written
    for step in loc:
        inside = (
            step in cursor if isinstance(cursor, dict) else isinstance(cursor, list | tuple) and isinstance(step, int)
        )
        if inside:
            path, cursor = _join(path, step), cursor[step]
    return path, cursor


def _join(path: str, step: str | int) -> str:
    if isinstance(step, int):
        return f"{path}[{step}]"
    return f"{path}.{step}" if path else step


def _show(found: Any, path: str) -> str:
    if path.rpartition(".")[2] in _SECRETS or isinstance(found, SecretStr):
        return "a value that is not shown"
    text = repr(found)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."
