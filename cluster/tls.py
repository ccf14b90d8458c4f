"""An authority and certificates for the nodes of a cluster and its clients, for TLS between them:

    python cluster/tls.py FOLDER --host head.example --host 10.0.0.7 --days 365

makes FOLDER/ca.crt, FOLDER/ca.key and, for each host, FOLDER/<host>.crt and .key; run again, it adds hosts under the
authority that is there. Both sides of every connection show a certificate, so a client needs one as well. The key of
the authority is not for any node: whoever has it can pass for one.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--host", "hosts", multiple=True, required=True, help="A node's name or IP address; repeatable.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True)
def main(folder: Path, hosts: tuple[str, ...], days: int) -> None:
    """Make an authority, unless FOLDER has one, and a certificate for each host."""
    folder = folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    authority, key = _authority(folder, until)
    for host in hosts:
        own = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
        certificate = (
            _begun(name, authority.subject, own, min(until, authority.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName([_place(host), _place("localhost"), _place("127.0.0.1")]), False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .sign(key, hashes.SHA256())
        )
        _write(folder / f"{host}.crt", certificate.public_bytes(serialization.Encoding.PEM))
        _write(folder / f"{host}.key", _pem(own))
    click.echo(
        f"On each node and client: RAY_USE_TLS=1 RAY_TLS_CA_CERT={folder / 'ca.crt'} "
        f"RAY_TLS_SERVER_CERT={folder}/HOST.crt RAY_TLS_SERVER_KEY={folder}/HOST.key"
    )


def _authority(folder: Path, until: dt.datetime) -> tuple[x509.Certificate, Key]:
    """The authority in a folder; a new one where there is none."""
    if (folder / "ca.key").exists():
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        if not isinstance(key, Key):
            raise click.ClickException(f"{folder / 'ca.key'}: not a key that this program made; give another FOLDER")
        return x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "frmu cluster")])
    certificate = (
        _begun(name, name, key, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))
    _write(folder / "ca.key", _pem(key))
    return certificate, key


def _begun(name: x509.Name, issuer: x509.Name, key: Key, until: dt.datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
    return builder.not_valid_before(dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)).not_valid_after(until)


def _place(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: Key) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """For its owner alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    main()
