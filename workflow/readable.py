"""Look at a call's config files before Snakemake reads them.

Snakemake reads what stands after ``--configfile`` before it reads the Snakefile, and of most files
that it cannot read it prints a traceback. Every call reads ``workflow/profiles/default`` first, and
that runs this file, which ends such a call in one line. Nothing of the library is imported: which
copy of it belongs to the call is the Snakefile's to say.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

DEFAULT = "config/config.yaml"
MOST_VALUES = 100_000


def unreadable(path: Path) -> str | None:
    """Say what keeps Snakemake from reading a config, in one line; None for nothing."""
    root, broken = None, None
    try:
        root, broken = _parsed(path.read_bytes().decode("utf-8"))
        return _misread(root, load_configfile(path))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return f"line {line}: not UTF-8 text; save the file as UTF-8"
    except OSError as error:
        return f"cannot be read ({error.strerror}); name a file that exists"
    except WorkflowError:
        broken = broken or _refused(root)
        return broken or "no keys at its top level; a study begins with `study: <name>`"
    except RecursionError:
        return "nested too deep; look for a bracket that is never closed"
    except Exception as error:  # whatever Python makes of a date, a number or a template
        reason = " ".join(str(error).split())[:200]
        return f"cannot be read ({type(error).__name__}: {reason}); correct or quote that value"


def _parsed(text: str) -> tuple[yaml.Node | None, str | None]:
    """Parse a config into YAML's nodes, or say what is wrong; it may be JSON all the same."""
    try:
        return yaml.compose(text, yaml.FullLoader), None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        return None, f"line {line}: character {error.character:#x} is not allowed; remove it"
    except yaml.MarkedYAMLError as error:
        return None, _place_of(error)


def _refused(root: yaml.Node | None) -> str | None:
    """Say which tag YAML's loader refuses, if it is one, as a call of Python's."""
    try:
        if root is not None:
            yaml.FullLoader("").construct_document(root)
    except yaml.MarkedYAMLError as error:
        return _place_of(error)
    return None


def _place_of(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}: " if mark else ""
    message = " ".join((error.problem or "").split())[:200]
    message = message if message.isprintable() else ascii(message)[1:-1]
    return f"{where}no YAML ({message}); look for brackets, quotes, tabs and colons there"


def _misread(root: yaml.Node | None, config: Any) -> str | None:
    """Say what Snakemake would stumble over, or misunderstand, in what it has read."""
    if _is_endless(config):
        return f"more than {MOST_VALUES} values; look for an alias (*name) inside of its &name"
    update_config({}, config)
    if "pathvars" in config:  # Snakemake would take it for its own
        return "pathvars: unknown key; remove it"
    return _twice(root)


def _is_endless(config: Any) -> bool:
    waiting, seen = [config], 0
    while waiting and seen <= MOST_VALUES:
        value = waiting.pop()
        seen += 1
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return seen > MOST_VALUES


def _twice(root: yaml.Node | None) -> str | None:
    """Find a key that stands twice in one place: the second one would silently win."""
    for mapping in _mappings(root):
        met = set()
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in met:
                line = key.start_mark.line + 1
                return f"line {line}: key {ascii(key.value)[:60]} stands here twice; remove one"
            met.add(key.value)
    return None


def _mappings(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [value for _, value in reversed(node.value)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)


def config_files(arguments: list[str]) -> list[str]:
    """Find the config files among Snakemake's arguments, or the one it reads without any."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+")
    # With these, the default may not be read.
    parser.add_argument("--config", "-C", nargs="*", dest="other", default=None)
    parser.add_argument("--profile", nargs="+", dest="other", default=None)
    try:
        args, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return []  # Snakemake says it
    default = [DEFAULT] if args.other is None and Path(DEFAULT).exists() else []
    return args.configfile or default


if __name__ == "__main__":
    for file in config_files(sys.argv[1:]):
        if wrong := unreadable(Path(file)):
            print(f"{os.path.relpath(file)}: {wrong}", file=sys.stderr)
            sys.exit(1)
