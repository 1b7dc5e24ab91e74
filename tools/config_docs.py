"""Write what is generated from the schema: its YAML file, and the table of keys in the docs.

``python tools/config_docs.py`` writes both, with ``--check`` it only says whether they are
up to date (exit code 1 if not).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from iskd.config.schema import MOST, json_schema

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
README = ROOT / "config" / "README.md"
BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"


def schema_text() -> str:
    """Give the schema file's content."""
    head = "# Made by `make docs` from scripts/iskd/config/schema.py: do not edit.\n"
    return head + yaml.safe_dump(json_schema(), sort_keys=False, allow_unicode=True, width=100)


def _type_of(spec: dict[str, Any]) -> str:
    if "$ref" in spec:
        return _link(spec["$ref"])
    if choices := spec.get("enum", [spec["const"]] if "const" in spec else []):
        return " or ".join(f"`{value}`" for value in choices)
    for key in ("anyOf", "oneOf"):
        if key in spec:
            return " or ".join(_type_of(option) for option in spec[key])
    if spec.get("type") == "array":
        return f"list of {_type_of(spec['items'])}"
    if spec.get("type") == "object":
        (value,) = spec["patternProperties"].values()  # the pattern is that of a name
        return f"names, each with {_type_of(value)}"
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = [
        f"{words} {spec[key]:g}"
        for key, words in bounds.items()
        if key in spec and spec[key] != MOST  # which nobody comes near
    ]
    names = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "null": "null",
        "boolean": "true or false",
    }
    return ", ".join([names.get(spec.get("type", ""), "text"), *limits])


def _link(reference: str) -> str:
    name = reference.rsplit("/", 1)[-1]
    return f"[{name}](#{name.lower()})"


def _default(spec: dict[str, Any], *, required: bool) -> str:
    if required:
        return "needed"
    return f"`{spec['default']}`" if spec.get("default") is not None else ""


def _section(name: str, section: dict[str, Any]) -> list[str]:
    about = " ".join(section.get("description", "").split())
    lines = [f"### {name}", "", about, "", "| key | value | default | what it is |"]
    lines.append("|---|---|---|---|")
    needed = section.get("required", [])
    for key, spec in section.get("properties", {}).items():
        cells = [
            f"`{key}`",
            _type_of(spec),
            _default(spec, required=key in needed),
            spec.get("description", ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def keys_text() -> str:
    """Give the table of all keys, as Markdown."""
    schema = json_schema()
    for section in (schema, *schema["$defs"].values()):
        for spec in section.get("properties", {}).values():
            # pydantic leaves the description of a key to the section it stands for.
            if "$ref" in spec:
                target = schema["$defs"][spec["$ref"].rsplit("/", 1)[-1]]
                spec.setdefault("description", target["description"])
    lines = _section("Study", schema)
    for name, section in sorted(schema["$defs"].items()):
        lines += _section(name, section)
    return "\n".join(lines).strip()


def readme_text() -> str:
    """Give config/README.md with its table of keys made anew."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{keys_text()}\n\n{END}{after}"


def main() -> int:
    """Write or check the generated files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, report differences")
    check = parser.parse_args().check
    stale = 0
    for path, text in ((SCHEMA, schema_text()), (README, readme_text())):
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            print(f"{path.relative_to(ROOT)} is not what the code gives: run `make docs`")
            stale = 1
        else:
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
