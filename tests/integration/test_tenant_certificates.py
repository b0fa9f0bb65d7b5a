"""Tenants by client certificate: the names in a certificate that TLS has verified, and in no other."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from specedge.verification.v1 import verification_pb2 as pb
from specedge.verification.v1 import verification_pb2_grpc as pb_grpc
from specedge_verifier.authentication import Authentication, calling_tenant
from specedge_verifier.tenants import Tenants

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")

TIMEOUT_S = 10.0
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Certificates:
    """Authorities and what they have signed, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def authority(self, name: str) -> None:
        self._run("req", "-x509", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}")

    def sign(self, authority: str, name: str, *alternative_names: str) -> None:
        self._run("req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        extension = self._folder / "extension"
        extension.write_text(f"subjectAltName={','.join(alternative_names)}" if alternative_names else "")
        signer = ["-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", "extension"]
        self._run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signer)

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True, timeout=30)


class WhoAmI(pb_grpc.VerificationServiceServicer):
    """Answers with the tenant's name."""

    async def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: object
    ) -> pb.GetServerInfoResponse:
        account = calling_tenant()
        assert account is not None
        return pb.GetServerInfoResponse(target_model=account.name)


@asynccontextmanager
async def listening(tenants_file: Path, made: Certificates) -> AsyncIterator[int]:
    server = grpc.aio.server(interceptors=(Authentication(Tenants(tenants_file)),))
    pb_grpc.add_VerificationServiceServicer_to_server(WhoAmI(), server)
    pair = (made.read("server.key"), made.read("server.crt"))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], made.read("ca.crt"), True))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_a_certificate_of_the_authority_is_a_tenant_by_its_names(tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    made.authority("ca")
    made.authority("other-ca")
    made.sign("ca", "server", "IP:127.0.0.1")
    made.sign("ca", "edge-1", "DNS:edge-1.example", "URI:spiffe://example/alice")
    made.sign("ca", "plain")
    made.sign("ca", "bob", "DNS:mallory.example")
    made.sign("other-ca", "foreign", "DNS:edge-1.example")
    tenants_file = tmp_path / "tenants.yaml"
    tenants_file.write_text(
        "- name: alice\n  certificates: ['spiffe://example/alice']\n- name: bob\n  certificates: [bob, plain]\n"
    )

    async def told(port: int, name: str) -> str:
        credentials = grpc.ssl_channel_credentials(
            made.read("ca.crt"), made.read(f"{name}.key"), made.read(f"{name}.crt")
        )
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            stub = pb_grpc.VerificationServiceStub(channel)
            try:
                return (await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=TIMEOUT_S)).target_model
            except grpc.aio.AioRpcError as error:
                return error.code().name

    async with asyncio.timeout(6 * TIMEOUT_S), listening(tenants_file, made) as port:
        assert await told(port, "edge-1") == "alice"
        assert await told(port, "plain") == "bob", "its common name, as it names nothing else"
        assert await told(port, "bob") == "UNAUTHENTICATED", "not its common name beside other names"
        assert await told(port, "foreign") == "UNAVAILABLE", "TLS lets nobody in whom the authority does not know"
