"""What in a protocol would keep peers that speak an earlier one from understanding it."""

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)


def breaks(old: FileDescriptorProto, new: FileDescriptorProto) -> list[str]:
    """One line for each; empty where every message of one can be read as the other."""
    found = []
    if (old.package, old.syntax) != (new.package, new.syntax):
        found.append(f"{old.syntax} package {old.package} became {new.syntax} package {new.package}")
    messages = {message.name: message for message in new.message_type}
    for message in old.message_type:
        found += _of_message(message, messages.get(message.name))
    enums = {enum.name: enum for enum in new.enum_type}
    for enum in old.enum_type:
        found += _of_enum(enum, enums.get(enum.name))
    services = {service.name: service for service in new.service}
    for service in old.service:
        found += _of_service(service, services.get(service.name))
    return found


def _of_message(old: DescriptorProto, new: DescriptorProto | None) -> Iterator[str]:
    if new is None:
        yield f"message {old.name} is gone"
        return
    numbers = {field.number: field for field in new.field}
    for field in old.field:
        same = numbers.get(field.number)
        where = f"field {field.number} of {old.name}"
        if same is None:
            is_kept_free = any(span.start <= field.number < span.end for span in new.reserved_range)
            if not is_kept_free or field.name not in new.reserved_name:
                yield f"{where}, {field.name}, is gone, and its number and name are not reserved"
            continue
        before, after = _form(field, old), _form(same, new)
        if before != after:
            yield f"{where} was {before} and is {after}"
    for span in old.reserved_range:
        for number in range(span.start, span.end):
            if number in numbers:
                yield f"field {number} of {old.name}, {numbers[number].name}, has a number that was used before"


def _form(field: FieldDescriptorProto, message: DescriptorProto) -> tuple[object, ...]:
    """What both ends must agree on; the name too, since JSON and text have it."""
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    is_packed = field.options.packed if field.options.HasField("packed") else None
    kind, label = FieldDescriptorProto.Type.Name(field.type), FieldDescriptorProto.Label.Name(field.label)
    return field.name, kind, label, field.type_name, field.proto3_optional, oneof, is_packed


def _of_enum(old: EnumDescriptorProto, new: EnumDescriptorProto | None) -> Iterator[str]:
    if new is None:
        yield f"enum {old.name} is gone"
        return
    names = {value.number: value.name for value in new.value}
    for value in old.value:
        if names.get(value.number) != value.name:
            yield f"{value.number} of {old.name} was {value.name} and is {names.get(value.number, 'gone')}"


def _of_service(old: ServiceDescriptorProto, new: ServiceDescriptorProto | None) -> Iterator[str]:
    if new is None:
        yield f"service {old.name} is gone"
        return
    methods = {method.name: method for method in new.method}
    for method in old.method:
        if methods.get(method.name) != method:
            yield f"method {method.name} of {old.name} is gone or takes and returns something else"
