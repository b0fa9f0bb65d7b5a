"""The protocol as it is can be spoken with peers of every protocol that was written down."""

from collections.abc import Callable

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from protocol_breaks import breaks
from spoken_protocol import frozen, future, present


@pytest.mark.parametrize("number", frozen())
def test_the_protocol_breaks_with_no_earlier_one(number: str) -> None:
    assert breaks(frozen()[number], present()) == []


def test_additions_break_nothing() -> None:
    assert breaks(present(), future()) == []


def test_a_field_may_go_when_its_number_and_name_are_kept_free_and_never_come_back() -> None:
    protocol = present()
    message = protocol.message_type[0]
    padding = message.field.pop()
    message.reserved_range.add(start=padding.number, end=padding.number + 1)
    assert "is gone, and its number and name" in breaks(present(), protocol)[0]
    message.reserved_name.append(padding.name)
    assert breaks(present(), protocol) == []
    assert "a number that was used before" in breaks(protocol, present())[0]


def renumber(protocol: FileDescriptorProto) -> None:
    protocol.message_type[0].field[0].number = 9


def rename(protocol: FileDescriptorProto) -> None:
    protocol.message_type[0].field[0].name = "opening"


def retype(protocol: FileDescriptorProto) -> None:
    protocol.message_type[2].field[0].type = FieldDescriptorProto.TYPE_SINT32


def repeat(protocol: FileDescriptorProto) -> None:
    protocol.message_type[2].field[0].label = FieldDescriptorProto.LABEL_REPEATED


def unpack(protocol: FileDescriptorProto) -> None:
    protocol.message_type[2].field[2].options.packed = False


def leave_the_oneof(protocol: FileDescriptorProto) -> None:
    protocol.message_type[0].field[0].ClearField("oneof_index")


def lose_a_message(protocol: FileDescriptorProto) -> None:
    protocol.message_type.pop()


def renumber_a_value(protocol: FileDescriptorProto) -> None:
    protocol.enum_type[0].value[1].number = 7


def lose_an_enum(protocol: FileDescriptorProto) -> None:
    protocol.enum_type.pop()


def stream_no_more(protocol: FileDescriptorProto) -> None:
    protocol.service[0].method[0].server_streaming = False


def rename_the_service(protocol: FileDescriptorProto) -> None:
    protocol.service[0].name = "Verification"


def move(protocol: FileDescriptorProto) -> None:
    protocol.package = "specedge.verification.v2"


@pytest.mark.parametrize(
    "change",
    [
        renumber,
        rename,
        retype,
        repeat,
        unpack,
        leave_the_oneof,
        lose_a_message,
        renumber_a_value,
        lose_an_enum,
        stream_no_more,
        rename_the_service,
        move,
    ],
)
def test_what_an_earlier_peer_could_not_read_is_found(change: Callable[[FileDescriptorProto], None]) -> None:
    protocol = present()
    change(protocol)
    assert len(breaks(present(), protocol)) == 1
