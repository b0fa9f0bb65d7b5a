"""Writes down the protocol as it is, so that later ones can be held to it.

`python proto/freeze.py` writes tests/golden/protocol/N.txtpb with the next number, unless the last one says the same;
run it for every release. The tests hold the present protocol to each of them, and speak to it in each.
"""

from pathlib import Path

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from specedge.verification.v1 import verification_pb2 as pb

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "protocol"


def main() -> None:
    protocol = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(protocol)
    text = text_format.MessageToString(protocol)
    numbers = sorted(int(path.stem) for path in FOLDER.glob("*.txtpb"))
    if numbers and (FOLDER / f"{numbers[-1]}.txtpb").read_text() == text:
        print(f"the protocol is that of {numbers[-1]}.txtpb")
        return
    path = FOLDER / f"{max(numbers, default=0) + 1}.txtpb"
    path.write_text(text)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
