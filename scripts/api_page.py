"""Writes the reference part of docs/api.md: services, messages and error reasons, from the sources of the API.

Services and messages come with their comments from proto/semipd/v1, error reasons from `semipd.core.errors.Reason`.
Only what stands between the two markers of the page is written; the rest is by hand.

usage: python scripts/api_page.py [--check]      --check: change nothing, exit 1 if the page is not current
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import grpc_tools
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from google.rpc import code_pb2
from grpc_tools import protoc

from semipd.core import errors
from semipd.wire.status import CODES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/api.md"
PROTOS = tuple(f"semipd/v1/{name}.proto" for name in ("generation", "model", "tokenizer", "admin"))
"""The files of the API, in the order of the page."""
BEGIN = "<!-- begin: written by scripts/api_page.py -->"
END = "<!-- end -->"

PACKAGE = ".semipd.v1."
SERVICE, MESSAGE, ENUM = 6, 4, 5
METHOD, FIELD, VALUE = 2, 2, 2
"""Numbers of fields in descriptor.proto, of which the paths of comments are made."""

Path_: TypeAlias = tuple[int, ...]
Kind = FieldDescriptorProto


class Comments:
    """The comments of one file, by the path of what they belong to."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._of = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}

    def text(self, *path: int) -> str:
        """Returns the comment as one line; empty if there is none."""
        return " ".join(self._of.get(path, "").split())


def described() -> list[FileDescriptorProto]:
    """Returns the API's files as protoc understands them, with comments."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "api.binpb"
        arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}", f"-o{out}", "--include_source_info"]
        if protoc.main([*arguments, *PROTOS]) != 0:
            raise SystemExit("protoc failed")
        found = FileDescriptorSet.FromString(out.read_bytes())
    return sorted(found.file, key=lambda file: PROTOS.index(file.name))


def reference() -> str:
    """Returns everything that stands between the markers."""
    files = described()
    lines = [*reasons(), ""]
    for file in files:
        lines += [*services(file), *messages(file)]
    return "\n".join(lines).rstrip() + "\n"


def reasons() -> Iterator[str]:
    yield "## Error reasons"
    yield ""
    yield "| reason | gRPC status | when |"
    yield "| --- | --- | --- |"
    for reason, when in documented_reasons():
        yield f"| `{reason}` | `{code_pb2.Code.Name(CODES[errors.Reason(reason)])}` | {when} |"


def documented_reasons() -> Iterator[tuple[str, str]]:
    """Yields each Reason and the text below it in its class."""
    tree = ast.parse(Path(errors.__file__).read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Reason")
    for assigned, text in pairwise(body):
        if isinstance(assigned, ast.Assign) and isinstance(assigned.value, ast.Constant):
            assert isinstance(text, ast.Expr)
            assert isinstance(text.value, ast.Constant)
            yield str(assigned.value.value), str(text.value.value)


def services(file: FileDescriptorProto) -> Iterator[str]:
    comments = Comments(file)
    for at, service in enumerate(file.service):
        yield f"## {service.name}"
        yield from _said(comments.text(SERVICE, at))
        yield ""
        yield "| method | takes | answers | |"
        yield "| --- | --- | --- | --- |"
        for number, method in enumerate(service.method):
            yield f"| `{method.name}` | {_takes(method)} | {comments.text(SERVICE, at, METHOD, number)} |"
        yield ""


def _takes(method: MethodDescriptorProto) -> str:
    answer = _link(method.output_type)
    return f"{_link(method.input_type)} | {'a stream of ' if method.server_streaming else ''}{answer}"


def messages(file: FileDescriptorProto) -> Iterator[str]:
    comments = Comments(file)
    for at, message in enumerate(file.message_type):
        yield f"### {message.name}"
        yield from _said(comments.text(MESSAGE, at))
        yield from _fields(message, comments, (MESSAGE, at))
        yield ""
    for at, enum in enumerate(file.enum_type):
        yield f"### {enum.name}"
        yield from _said(comments.text(ENUM, at))
        yield from _values(enum, comments, (ENUM, at))
        yield ""


def _fields(message: DescriptorProto, comments: Comments, path: Path_) -> Iterator[str]:
    yield ""
    if not message.field:
        yield "It has no fields."
        return
    yield "| field | type | |"
    yield "| --- | --- | --- |"
    for at, field in enumerate(message.field):
        said = comments.text(*path, FIELD, at)
        if field.HasField("oneof_index") and not field.proto3_optional:
            said = f"One of `{message.oneof_decl[field.oneof_index].name}`. {said}".rstrip()
        yield f"| `{field.name}` | {_type(field, message)} | {said} |"


def _values(enum: EnumDescriptorProto, comments: Comments, path: Path_) -> Iterator[str]:
    yield ""
    yield "| value | |"
    yield "| --- | --- |"
    for at, value in enumerate(enum.value):
        yield f"| `{value.name}` | {comments.text(*path, VALUE, at)} |"


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    entry = next((nested for nested in message.nested_type if field.type_name.endswith(f".{nested.name}")), None)
    if entry is not None and entry.options.map_entry:
        key, value = entry.field
        return f"map of {_plain(key)} to {_plain(value)}"
    before = "repeated " if field.label == Kind.LABEL_REPEATED else "optional " if field.proto3_optional else ""
    return before + _plain(field)


def _plain(field: FieldDescriptorProto) -> str:
    return _link(field.type_name) if field.type_name else Kind.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(type_name: str) -> str:
    name = type_name.removeprefix(PACKAGE)
    return f"[{name}](#{name.lower()})"


def _said(comment: str) -> Iterator[str]:
    if comment:
        yield ""
        yield comment


def main() -> int:
    """Returns the exit code."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    current = f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"
    if "--check" in sys.argv:
        if page != current:
            print("not current: docs/api.md (run `make protos`)")
        return int(page != current)
    if page != current:
        PAGE.write_text(current)
        print("wrote docs/api.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
