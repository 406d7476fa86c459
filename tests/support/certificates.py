# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates for the time of a test, by an authority of its own."""

import dataclasses
import ipaddress
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

_CA_USAGE = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python asks for it


@dataclasses.dataclass(frozen=True)
class Certificate:
    """PEM files."""

    certificate: Path
    private_key: Path

    def server_context(self) -> ssl.SSLContext:
        """For who accepts connections as this party."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.private_key)
        return context


class Authority(Certificate):
    """Who signs the others."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "authority.pem", directory / "authority.key")
        _openssl(self, "authority", "-addext", "basicConstraints=critical,CA:TRUE", *_CA_USAGE)

    def issue(self, *hosts: str) -> Certificate:
        """A certificate for these names and addresses."""
        stem = self.certificate.with_name(hosts[0].replace(":", "-"))
        made = Certificate(Path(f"{stem}.pem"), Path(f"{stem}.key"))
        names = ",".join(f"{'IP' if _is_address(host) else 'DNS'}:{host}" for host in hosts)
        usage = ("-addext", "basicConstraints=critical,CA:FALSE")
        signed = ("-CA", str(self.certificate), "-CAkey", str(self.private_key))
        _openssl(made, hosts[0], "-addext", f"subjectAltName={names}", *usage, *signed)
        return made

    def client_context(self, identity: Certificate | None = None) -> ssl.SSLContext:
        """For who connects and trusts this authority alone."""
        context = ssl.create_default_context(cafile=self.certificate)
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.private_key)
        return context


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _openssl(made: Certificate, name: str, *more: str) -> None:
    command: Sequence[str | Path] = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "1", "-subj", f"/CN={name}", "-out", made.certificate, "-keyout", made.private_key),
        *more,
    ]
    subprocess.run(command, check=True, capture_output=True)
